"""`saescope select`: which of the detected features to edit, by what changing them does."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.detect import detect as detect_in
from saescope.analysis.detection import Detection, DetectSettings
from saescope.analysis.sets import check_sets
from saescope.control.edits import EditSet, Op
from saescope.control.edits_file import write_edits
from saescope.control.evaluation.behaviour import FeatureRule
from saescope.control.evaluation.judge import Judge
from saescope.control.evaluation.settings import ReferenceData, SelectSettings
from saescope.errors import PromptError
from saescope.store.resume_cache import ResumeCache, key_of
from saescope.store.runs import Run
from saescope.surfaces.cli.detect import Target
from saescope.surfaces.cli.inputs import Inputs, Masks, obtain_run, parse_layers
from saescope.surfaces.cli.judging import Asking, Judging, Material
from saescope.surfaces.cli.show import cell, note, percent, print_json, progress, stdout, table

if TYPE_CHECKING:
    from saescope.control.evaluation.arm_results import ArmResult
    from saescope.control.evaluation.selection import Selection

_TOKENS = 3


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Choosing:
    """How edits of them are tried, and how many are kept."""

    goal: Literal["suppress", "amplify"] = "suppress"
    "Whether the behaviour is to go (asked of the target's prompts) or to come (asked of the others')."

    op: Op | None = None
    "How features are edited; scale to suppress, add to amplify when left out."

    strengths: str | None = None
    "Strengths to try, as -1,-2,-3; of add in multiples of the feature's largest activation."

    max_features: int = 5
    "Features in the set at most."

    candidates: int = 12
    "Detected features that are tried, best detectors first."

    prompts: int = 16
    "Prompts of each part, to choose on and to judge on, and neutral texts."

    max_new_tokens: int = 32
    "Tokens of a reply at most."

    seed: int = 0
    "Decides which prompts are held out, and which are for choosing."

    def settings(self) -> SelectSettings:
        """These, checked; raises PromptError for what makes no sense."""
        made = SelectSettings(
            max_features=self.max_features,
            candidates=self.candidates,
            strengths=self._strengths(),
            op=self.op or ("scale" if self.goal == "suppress" else "add"),
            goal=self.goal,
            prompts=self.prompts,
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
        )
        made.check()
        return made

    def _strengths(self) -> tuple[float, ...]:
        text = self.strengths or ("-1,-2,-3" if self.goal == "suppress" else "0.5,1,2")
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError as error:
            raise PromptError(f"--strengths {text!r} is not numbers such as -1,-2") from error


def select(
    sets: str,
    /,
    *,
    among: Target,
    choosing: Choosing = Choosing(),
    judging: Judging = Judging(),  # noqa: B008
    asking: Asking = Asking(),  # noqa: B008
    edits: Path | None = None,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008
    masks: Masks = Masks(),  # noqa: B008
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Of the features that detect a behaviour, find those that control it, as few as will do.

    Parameters
    ----------
    sets
        Prompt sets, as for detect, or a run made before.
    edits
        Where to write the chosen features as an edits file; beside the run when left out.
    out
        Directory for the run; runs/NAME-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    decides, settings = judging.decider(), choosing.settings()
    detecting = DetectSettings(
        among.min_rate, among.max_other, seed=choosing.seed, shuffles=0, masking=masks.masking()
    )
    detecting.check()
    asked = asking.read()
    run, detection = _detected(sets, among, detecting, inputs, out)
    result = _select(run, detection, decides, settings, inputs, asked)
    path = None
    if result.edits:
        path = edits or run.path.with_name(f"{run.path.name}.{among.target}.selected.toml")
        write_edits(_edit_set(run, result), path, _comments(result))
    if json:
        print_json({**result.to_dict(), "edits": str(path) if path else None, "run": str(run.path)})
        return
    show_selection(stdout(), result)
    note(f"edits: {path}" if path else "no candidate does anything: no edits were written")
    note(f"run: {run.path}")


def _detected(
    sets: str, among: Target, rules: DetectSettings, inputs: Inputs, out: Path | None
) -> tuple[Run, Detection]:
    """The run of these prompts, and what detects the target in it."""
    others = among.others()
    layers = None if inputs.layers in (None, "all") else parse_layers(inputs.layers)
    options = {
        "target": among.target,
        "against": others,
        "transfer": None,
        "settings": asdict(rules),
        "layers": layers,
    }
    run = obtain_run(
        sets,
        inputs,
        out,
        {"verb": "detect", "options": options},
        compared=rules.masking,
        check=lambda names: check_sets(names, among.target, others, None),
    )
    return run, detect_in(run, among.target, rules, against=others, layers=layers)


def _select(
    run: Run,
    detection: Detection,
    decides: "Judge | FeatureRule",
    settings: SelectSettings,
    inputs: Inputs,
    asked: Material,
) -> "Selection":
    """The model of the run, and what changing its features does."""
    cut, thinking = asked.cut, asked.thinking
    lm, saes = _opened(run, inputs).load(decoder=True)
    from saescope.control.evaluation.feature_judge import FeatureJudge
    from saescope.control.evaluation.select import select as select_among
    from saescope.engine.tokens import beginning

    judge = (
        FeatureJudge(lm, saes, decides, thinking) if isinstance(decides, FeatureRule) else decides
    )
    begun = None if cut is None else (lambda prompt: beginning(lm, prompt, cut))
    name = key_of(str(run.path.resolve()), str(settings), repr(decides), cut, thinking)
    kept = ResumeCache(Path("runs") / f".select-{name[:12]}.jsonl")
    with progress("edits", "tried") as advance:
        result = select_among(
            lm, saes, run, detection, judge, replace(settings, thinking=thinking),
            reference=ReferenceData(asked.neutral, asked.answers), prepare=begun, cache=kept, progress=advance,
        )  # fmt: skip
    kept.forget()
    return result


def _opened(run: Run, inputs: Inputs) -> Inputs:
    """Options that open the run's model, and SAEs of its layers, again."""
    stored: Mapping[str, Any] = run.manifest["inputs"]
    sae = inputs.sae or next(iter(stored["saes"].values()))
    return replace(
        inputs,
        model=inputs.model or stored["model"],
        sae=sae,
        layers=",".join(map(str, run.layers)),
    )


def _edit_set(run: Run, result: "Selection") -> EditSet:
    spec = run.saes[result.edits[0].layer]
    sae = run.manifest["inputs"]["saes"].get(str(spec.layer), spec.release)
    return EditSet(run.manifest["inputs"]["model"], sae, result.edits, spec.d_model, spec.d_sae)


def _comments(result: "Selection") -> list[str]:
    last = result.steps[-1]
    return [
        f"Selected of {len(result.candidates)} candidates for {result.target}: the behaviour goes from "
        f"{_rate(result.unedited.judged_on)} to {_rate(last.judged_on)} on {result.n_judged_on} discovery prompts not chosen on.",
        "Held-out prompts were not looked at: measure these edits on them with saescope evaluate, beside its controls.",
    ]


def show_selection(console: Console, result: "Selection") -> None:
    """Candidates with their three ranks, and the set step by step."""
    made = table(
        f"features that detect {result.target}, by what changing them does", "feature", "own tokens", "detects",
        "fires / elsewhere", "says", "score", "p, rank", "does", "effect", "strength", "shown", "right", "KL", left=2,
    )  # fmt: skip
    for one in result.candidates:
        tokens = " ".join(cell(token) for token in one.output.tokens[:_TOKENS])
        made.add_row(
            str(one.feature), tokens,
            f"#{one.detect_rank}", f"{100 * one.detected.prompt_rate:.0f} / {100 * one.detected.prompt_other_rate:.0f} %",
            f"#{one.output_rank}", f"{one.output.score:.1g}", f"{one.output.probability:.1g}, {one.output.rank:.0f}",
            f"#{one.effect_rank}", f"{100 * one.effect:.0f} %", f"{one.strength:.3g}",
            _rate(one.result), _right(one.result), _kl(one.result),
        )  # fmt: skip
    console.print(made)
    steps = table(
        "the set, feature by feature",
        "edits",
        "shown where chosen",
        "shown elsewhere",
        "right",
        "KL",
    )
    chosen, judged = result.unedited.chosen_on, result.unedited.judged_on
    steps.add_row("none", _with_ci(chosen), _with_ci(judged), _right(judged), "-")
    for step in result.steps:
        names = ", ".join(f"{e.name} {e.op} {e.amount:g}" for e in step.edits)
        steps.add_row(
            names,
            _with_ci(step.chosen_on),
            _with_ci(step.judged_on),
            _right(step.judged_on),
            _kl(step.judged_on),
        )
    console.print(steps)
    console.print(
        f"Ranks: as a detector, by output score (its own tokens when it is amplified), by measured effect. Chosen on "
        f"{result.n_chosen_on} discovery prompts, judged on {result.n_judged_on} others; none that is held out was used."
    )


def _rate(c: "ArmResult") -> str:
    return "-" if c.behaviour_rate is None else percent(c.behaviour_rate)


def _right(c: "ArmResult") -> str:
    return "-" if c.right_rate is None else percent(c.right_rate)


def _with_ci(c: "ArmResult") -> str:
    return f"{_rate(c)} ({100 * c.ci[0]:.0f}-{100 * c.ci[1]:.0f})"


def _kl(c: "ArmResult") -> str:
    return f"{c.damage.kl_mean:.2g}" if c.damage else "-"
