"""`saescope detect`: features that detect a behaviour, and a classifier made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.classify import Scores
from saescope.analysis.detect import detect as detect_in
from saescope.analysis.detection import Detection, DetectSettings
from saescope.analysis.directions import Position, difference_of_means
from saescope.analysis.sets import check_sets
from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import write_edits
from saescope.errors import PromptError
from saescope.store.directions import write_directions
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.cli.inputs import Inputs, Masks, obtain_run, parse_layers
from saescope.surfaces.cli.show import cell, left_out, note, percent, print_json, stdout, table

_SHOWN = 20
_MARKS = 120


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Which sets are told apart, and on what shares of their prompts a feature fires that does so."""

    target: str
    "The set that shows the behaviour."

    against: str | None = None
    "The sets that do not, separated by commas; all others when left out."

    min_rate: float = 0.8
    "A feature fires on at least this share of the target's discovery prompts."

    max_other: float = 0.2
    "And on at most this share of any other set's."

    def others(self) -> list[str] | None:
        """The sets that do not show it, where they are named."""
        return self.against.split(",") if self.against else None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Detector:
    """How features are confirmed, and the detector made of them."""

    transfer: tuple[str, ...] = ()
    "Try the detector on another set: NAME, or NAME:OTHER with the set it is told from. May be given again."

    max_k: int = 10
    "Features in the detector at most; how many is chosen on the discovery part."

    alpha: float = 0.05
    "False discovery rate of finding, and of confirming."

    shuffles: int = 100
    "How often the rule is tried with shuffled labels, to know what passes by chance."

    seed: int = 0
    "Decides which prompts are held out, the shuffles and the intervals."

    def settings(self, told: Target, masking: Masking) -> DetectSettings:
        """These, checked; raises PromptError for what makes no sense."""
        limits = (told.min_rate, told.max_other, self.max_k, self.alpha, self.shuffles, self.seed)
        made = DetectSettings(*limits, masking)
        made.check()
        return made


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Written:
    """Files that findings are written to, for other commands to read."""

    edits: Path | None = None
    "Where to write the detector's features as an edits file; beside the run when left out."

    direction: Path | None = None
    (
        "Also write the difference of means as a safetensors file that edits read, one direction a layer: the mean "
        "residual of the target's discovery prompts less that of the others'."
    )

    position: Position = "mean"
    "Of which residual of a prompt: the mean over its scored positions, or its last one."


def detect(
    sets: str,
    /,
    *,
    told: Target,
    detector: Detector = Detector(),
    written: Written = Written(),
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find features that fire on one set's prompts and not on the others', and try them as a detector.

    Parameters
    ----------
    sets
        Prompt sets, as for contrast, or a run made before.
    out
        Directory for the run; runs/NAME-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    masking = masks.masking()
    options: dict[str, Any] = {
        "target": told.target,
        "against": told.others(),
        "transfer": _pairs(detector.transfer) if detector.transfer else None,
        "settings": asdict(detector.settings(told, masking)),
        "layers": None if inputs.layers in (None, "all") else parse_layers(inputs.layers),
    }
    command = {"verb": "detect", "options": options}

    def check(names: Sequence[str]) -> None:
        check_sets(names, told.target, options["against"], options["transfer"])

    run = obtain_run(sets, inputs, out, command, compared=masking, check=check)
    result = answer(run, options)
    path = None
    if result.classifier.features:
        path = written.edits or run.path.with_name(f"{run.path.name}.{told.target}.toml")
        write_edits(_edit_set(run, result), path, _comments(result))
    if (direction := written.direction) is not None:
        means = partial(
            difference_of_means, run, told.target, against=result.against, position=written.position
        )
        layers = options["layers"] or run.layers
        write_directions([means(layer, seed=detector.seed) for layer in layers], direction)
    if json:
        files = {
            "edits": str(path) if path else None,
            "direction": str(direction) if direction else None,
        }
        print_json({**result.to_dict(), **files})
    else:
        show_detection(stdout(), result)
        note(
            f"edits: {path}"
            if path
            else f"no feature fires more often on {told.target}: no edits were written"
        )
        if direction is not None:
            note(
                f'direction: {direction}, to be steered with as "{direction}@{result.classifier.layer} add 1"'
            )
        note(f"run: {run.path}")


def answer(run: Run, options: Mapping[str, Any]) -> Detection:
    """What the command asks of a run."""
    stored = dict(options["settings"])
    settings = DetectSettings(**{**stored, "masking": Masking(**stored["masking"])})
    against, transfer = options["against"], options["transfer"]
    if transfer is not None:
        others = against or [name for name in run.sets if name != options["target"]]
        transfer = {
            name: negatives or [n for n in others if n != name]
            for name, negatives in transfer.items()
        }
    return detect_in(
        run,
        options["target"],
        settings,
        against=against,
        transfer=transfer,
        layers=options["layers"],
    )


def _pairs(transfer: tuple[str, ...]) -> dict[str, list[str]]:
    pairs = {}
    for text in transfer:
        name, _, negatives = text.partition(":")
        if not name:
            raise PromptError(f"--transfer {text!r} names no set: give NAME or NAME:OTHER")
        pairs[name] = negatives.split("+") if negatives else []
    return pairs


def _edit_set(run: Run, result: Detection) -> EditSet:
    spec = run.saes[result.classifier.layer]
    sae = run.manifest["inputs"]["saes"].get(str(spec.layer), spec.release)
    edits = tuple(Edit(feature) for feature in result.classifier.features)
    files = {str(spec.layer): spec.fingerprint}
    return EditSet(
        run.manifest["inputs"]["model"], sae, edits, spec.d_model, spec.d_sae, spec.k, files
    )


def _comments(result: Detection) -> list[str]:
    held, features = result.classifier.holdout, result.classifier.features
    return [
        f"The detector of {result.target} against {', '.join(result.against)}: "
        f"{len(features)} feature{'s' if len(features) > 1 else ''}, F1 {_figure(held.f1)} on held-out prompts.",
        "Detection is not control: measure these edits with saescope evaluate before believing in them.",
    ]


def show_detection(console: Console, result: Detection) -> None:
    """The features, what they fire on, the detector beside plainer ones, transfer, and Qwen-Scope's measures."""
    _show_features(console, result)
    _show_firings(console, result)
    _show_classifier(console, result)
    _show_measures(console, result)
    console.print(left_out(result.masked))
    for line in result.warnings:
        console.print(f"[yellow]warning:[/] {cell(line)}")


def _show_features(console: Console, result: Detection) -> None:
    rule = result.settings
    limits = f"≥ {100 * rule.min_rate:.0f} % of {result.target} prompts and ≤ {100 * rule.max_other:.0f} % elsewhere"
    columns = (
        "feature",
        "prompts / elsewhere",
        "held out",
        "95 % CI",
        "holds",
        "confirmed",
        "monolinguality",
        "group",
    )
    made = table(f"features on {limits}", *columns)
    for f in result.features[:_SHOWN]:
        made.add_row(
            str(f.feature),
            f"{100 * f.prompt_rate:.0f} / {100 * f.prompt_other_rate:.0f} % {cell(f.other_set)}",
            f"{100 * f.holdout_rate:.0f} / {100 * f.holdout_other_rate:.0f}",
            f"{100 * f.holdout_ci[0]:.0f}-{100 * f.holdout_ci[1]:.0f}",
            "yes" if f.holdout_passes else "no",
            f"[green]q {f.q:.0e}[/]" if f.confirmed else "no",
            f"{f.monolinguality:.3g}",
            str(f.group),
        )
    console.print(made)
    more = len(result.features) - _SHOWN
    console.print(
        f"{len(result.features)} pass on discovery prompts{f' ({more} not shown)' if more > 0 else ''}; with labels "
        f"shuffled {result.by_chance:.2f} do (mean of {rule.shuffles}; 95 % have at most {result.by_chance_95:.0f})."
    )


def _show_firings(console: Console, result: Detection) -> None:
    """█ a prompt on which it fires, · one on which it does not, held-out ones last; counts where that is too wide."""
    names = [result.target, *result.against]
    wide = sum(p.set in names for p in result.firings) <= _MARKS
    made = table(
        "prompts it fires on (discovery | held out)", "feature", *names, left=len(names) + 1
    )
    shown = list(
        dict.fromkeys([*result.classifier.features, *(f.feature for f in result.features[:5])])
    )[:8]
    for feature in shown:
        cells = []
        for name in names:
            prompts = [p for p in result.firings if p.set == name]
            parts = ["".join("█" if feature in p.fires else "·" for p in prompts if p.split == part)
                     for part in ("discovery", "holdout")]  # fmt: skip
            counts = [f"{part.count('█')} of {len(part)}" for part in parts]
            cells.append(" | ".join(parts if wide else counts))
        made.add_row(str(feature), *cells)
    console.print(made)


def _show_classifier(console: Console, result: Detection) -> None:
    one = result.classifier
    made = table(f"detectors on held-out prompts, layer {one.layer}", "detector", "tried on", "F1", "95 % CI",
                 "precision", "recall", "false alarms", "always-yes F1", left=2)  # fmt: skip
    names = ", ".join(map(str, one.features)) or "none"
    made.add_row(f"any of {names}", result.target, *_scores(one.holdout))
    for name, scores in one.baselines.items():
        made.add_row(name.replace("_", " "), result.target, *_scores(scores))
    for name, (scores, others) in one.transfer.items():
        made.add_section()
        made.add_row(f"any of {names}", cell(name), *_scores(scores))
        made.add_row("probe", cell(name), *_scores(others["probe"]))
    console.print(made)


def _scores(s: Scores) -> list[str]:
    ci = f"{s.f1_ci[0]:.2f}-{s.f1_ci[1]:.2f}" if s.f1_ci else "-"
    shares = [
        percent(v) if v is not None else "-" for v in (s.precision, s.recall, s.false_positive_rate)
    ]
    return [_figure(s.f1), ci, *shares, _figure(s.always_f1)]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _show_measures(console: Console, result: Detection) -> None:
    made = table(
        "features at the last position of each prompt",
        "set",
        "features",
        "redundancy",
        "most shared with",
        "overlap",
    )
    for name, one in result.sets.items():
        nearest = max(one.overlap, key=lambda other: one.overlap[other], default=None)
        shared = percent(one.overlap[nearest]) if nearest is not None else "-"
        made.add_row(
            cell(name), str(one.features), f"{one.redundancy:.2f}", cell(nearest or "-"), shared
        )
    console.print(made)
