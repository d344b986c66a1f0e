"""`saescope evaluate`: what edits do to a behaviour and to everything else, before and after, beside controls."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.control.edits import EditSet
from saescope.control.evaluation.behaviour import FeatureRule
from saescope.control.evaluation.judge import Judge
from saescope.control.evaluation.settings import EvaluateSettings, ReferenceData
from saescope.errors import PromptError
from saescope.sources.prompts import Prompt, split_prompts
from saescope.store.atomic import replace_file
from saescope.store.resume_cache import ResumeCache, key_of
from saescope.surfaces.cli.editing import Edits, load_for
from saescope.surfaces.cli.inputs import Inputs
from saescope.surfaces.cli.judging import Asking, Judging, Material, flat_prompts
from saescope.surfaces.cli.show import cell, note, percent, print_json, progress, stdout, table

if TYPE_CHECKING:
    from saescope.control.evaluation.arm_results import ArmResult
    from saescope.control.evaluation.evaluation import Evaluation
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What edits are measured on, and beside what."""

    prompts: str
    "Prompt sets, as for contrast. Those of the held-out part are used."

    target: str | None = None
    "The sets that show the behaviour, separated by commas; all when left out. The others are measured beside them."

    sweep: str = "1"
    "Multiples of the edits' strengths, as 0.5,1,2."

    draws: int = 3
    "How often each random control is drawn."

    found_on: str | None = None
    (
        "The sets that edits were found on, separated by commas: of their other part the difference of means is made; "
        "all when left out."
    )

    instruction: str | None = None
    "What the prompt-only control tells the model instead of any edit."

    every_prompt: Annotated[bool, Parameter(negative="")] = False
    "Use the prompts that features were found on too."

    max_new_tokens: int = 48
    "Tokens of a reply at most."

    seed: int = 0
    "Decides which prompts are held out, and the random controls."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Written:
    """Files that an evaluation is written to."""

    plot: Path | None = None
    "A file for the plot of behaviour against damage: .svg, .png or .html."

    out: Path | None = None
    "A .json file for all of it, replies included; or a folder for that and a page with the plot."


def evaluate(
    *,
    measuring: Measuring,
    given: Edits = Edits(),  # noqa: B008 (frozen)
    judging: Judging = Judging(),  # noqa: B008
    asking: Asking = Asking(),  # noqa: B008
    written: Written = Written(),
    inputs: Inputs = Inputs(),  # noqa: B008
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure edits: how often a behaviour shows before and after, what else changes, and what controls do.

    Parameters
    ----------
    json
        Print one JSON document instead of tables.
    """
    _check_plot(written.plot)
    decides, wanted = judging.decider(), given.wanted()
    result, document, kept = _measured(wanted, decides, measuring, asking.read(), inputs)
    paths = _publish(document, written.out, written.plot)
    kept.forget()
    if json:
        print_json(document)
        return
    show_evaluation(stdout(), result)
    for path in paths:
        note(f"written: {path}")


def _measured(
    wanted: EditSet,
    decides: "Judge | FeatureRule",
    measuring: Measuring,
    asked: Material,
    inputs: Inputs,
) -> "tuple[Evaluation, dict[str, Any], ResumeCache]":
    """The evaluation, the document of it, and what was kept until that is published."""
    strengths = _strengths(measuring.sweep)
    every = flat_prompts(measuring.prompts)
    lm, saes = load_for(wanted, inputs, _layers_read(decides))
    from saescope.control.evaluation.evaluate import evaluate as evaluate_edits
    from saescope.control.evaluation.feature_judge import FeatureJudge
    from saescope.engine.tokens import beginning

    if asked.cut is not None:
        every = [beginning(lm, prompt, asked.cut) for prompt in every]
    found, held = _parts(every, measuring.found_on, measuring.seed)
    kept = _kept(lm, saes, wanted, every, measuring.seed)
    with progress("conditions", "done") as advance:
        result = evaluate_edits(
            lm,
            saes,
            wanted.edits,
            every if measuring.every_prompt else held,
            FeatureJudge(lm, saes, decides, asked.thinking)
            if isinstance(decides, FeatureRule)
            else decides,
            EvaluateSettings(
                target=tuple(measuring.target.split(",")) if measuring.target else None,
                sweep=tuple(strengths),
                draws=measuring.draws,
                instruction=measuring.instruction,
                max_new_tokens=measuring.max_new_tokens,
                thinking=asked.thinking,
                seed=measuring.seed,
            ),
            reference=ReferenceData(asked.neutral, asked.answers, found),
            cache=kept,
            progress=advance,
        )
    part = "all" if measuring.every_prompt else "holdout"
    about = {
        "part": part,
        "cut": asked.cut,
        "seed": measuring.seed,
        "instruction": measuring.instruction,
    }
    return result, {**result.to_dict(), **_of(lm, saes, wanted), **about}, kept


def _layers_read(decides: "Judge | FeatureRule") -> list[int]:
    return sorted({f.layer for f in decides.features}) if isinstance(decides, FeatureRule) else []


def _parts(
    every: Sequence[Prompt], found_on: str | None, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """Discovery prompts of the sets that edits were found on, and all held-out ones."""
    names = found_on.split(",") if found_on else None
    sets = dict.fromkeys(prompt.set for prompt in every)
    if unknown := [name for name in names or () if name not in sets]:
        raise PromptError(
            f"--found-on: there is no set {unknown[0]!r}: the sets are {', '.join(sets)}"
        )
    parts = list(zip(every, split_prompts(every, seed=seed), strict=True))
    found = [
        prompt
        for prompt, part in parts
        if part == "discovery" and (names is None or prompt.set in names)
    ]
    held = [prompt for prompt, part in parts if part == "holdout"]
    if not held:
        raise PromptError(
            "no prompt is held out: give more, or use those that features were found on (--every-prompt)"
        )
    return found, held


def _kept(
    lm: "LM", saes: "Sequence[Sae]", wanted: EditSet, prompts: Sequence[Prompt], seed: int
) -> ResumeCache:
    """Where finished conditions are kept until all of it is published, by what is asked."""
    asked = [asdict(prompt) for prompt in prompts]
    name = key_of(
        lm.spec.fingerprint, [sae.spec.fingerprint for sae in saes], repr(wanted.edits), asked, seed
    )
    return ResumeCache(Path("runs") / f".evaluate-{name[:12]}.jsonl")


def _of(lm: "LM", saes: "Sequence[Sae]", wanted: EditSet) -> dict[str, Any]:
    return {
        "model": lm.spec.repo,
        "sae": saes[0].spec.release if saes else None,
        "edits": [
            {
                "feature": e.name,
                "op": e.op,
                "strength": e.amount,
                "gate": e.gate,
                "scope": e.scope,
                "when": str(e.when) if e.when else None,
            }
            for e in wanted.edits
        ],
    }


def _strengths(text: str) -> list[float]:
    try:
        strengths = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PromptError(f"--sweep {text!r} is not numbers such as 0.5,1,2") from error
    if not any(strengths) or not all(abs(s) < 1e6 for s in strengths):
        raise PromptError(f"--sweep {text!r} has no strength that edits anything")
    return strengths


def _check_plot(path: Path | None) -> None:
    if path is not None and path.suffix not in (".svg", ".png", ".html"):
        raise PromptError(f"--plot {path} is neither .svg, .png nor .html")


def _publish(document: dict[str, Any], out: Path | None, plot: Path | None) -> list[Path]:
    """Write what was asked for, each file whole or not at all."""
    files: dict[Path, bytes] = {}
    if out is not None or plot is not None:
        from saescope.surfaces.report.evaluation import picture, render_evaluation
    if out is not None:
        data = jsonlib.dumps(document, ensure_ascii=False, indent=1).encode(
            "utf-8", "surrogatepass"
        )
        folder = None if out.suffix == ".json" else out.expanduser()
        files[folder / "evaluation.json" if folder else out.expanduser()] = data
        if folder:
            files[folder / "evaluation.html"] = render_evaluation(document).encode()
    if plot is not None:
        html = plot.suffix == ".html"
        drawn = (
            render_evaluation(document).encode()
            if html
            else picture(document, png=plot.suffix == ".png")
        )
        files[plot.expanduser()] = drawn
    for path, data in files.items():
        replace_file(path, data)
    return list(files)


def show_evaluation(console: Console, result: "Evaluation") -> None:
    """A row a condition, the sets one by one, and the verdict."""
    own = ("shown, 95 % CI", "p", "unscored", "lang.", "rep.", "tokens", "ended", "change")
    title = f"{cell(str(result.behaviour['name']))} on {', '.join(map(cell, result.target))}"
    made = table(title, "condition", "strength", *own, "KL mean", "p99", "flips", "ppl")
    for c in result.arms:
        name = f"[bold]{_short(c)}[/]" if c is result.chosen else _short(c)
        made.add_row(name, "-" if c.strength is None else f"{c.strength:g}", *_figures(c))
    for column in made.columns:
        column.no_wrap = True
    console.print(made)
    _show_sets(console, result.arms)
    for line in result.verdict:
        console.print(cell(line))
    for line in result.controls_left_out:
        note(f"not measured: {line}")


def _short(c: "ArmResult") -> str:
    return c.name.removeprefix("difference of ")


def _figures(c: "ArmResult") -> list[str]:
    p = "-" if c.mcnemar_p is None else f"{c.mcnemar_p:.0e}"
    flip = "-" if c.language_flip is None else f"{100 * c.language_flip:.0f} %"
    aside = str(c.empty + c.unscored)
    own = [
        _shown(c),
        p,
        aside,
        flip,
        f"{c.repetition:.2f}",
        f"{c.mean_tokens:.0f}",
        f"{100 * c.ended:.0f} %",
    ]
    change = percent(c.delta_norm_ratio) if c.applied else "nothing"
    if c.damage is None:
        return [*own, change, "-", "-", "-", "-"]
    d = c.damage
    return [
        *own,
        change,
        f"{d.kl_mean:.2g}",
        f"{d.kl_p99:.2g}",
        percent(d.top1_flips),
        f"{d.ppl_ratio:.2f}",
    ]


def _shown(c: "ArmResult") -> str:
    """The rate with its interval, or over several draws with the smallest and the largest."""
    if c.behaviour_rate is None:
        return "-"
    if c.spread is not None:
        low, high = (100 * end for end in c.spread)
        return f"{percent(c.behaviour_rate)} ({low:.0f}-{high:.0f} in {c.draws})"
    return f"{percent(c.behaviour_rate)} ({100 * c.ci[0]:.0f}-{100 * c.ci[1]:.0f})"


def _show_sets(console: Console, conditions: "Sequence[ArmResult]") -> None:
    names = list(conditions[0].sets)
    if len(names) < 2 and all(c.right_rate is None for c in conditions):
        return
    right = any(c.right_rate is not None for c in conditions)
    title = f"shown{' / right answers' if right else ''} by set, in percent"
    made = table(title, "condition", "strength", *map(cell, names))
    for c in conditions:
        cells = [
            ("-" if one.behaviour_rate is None else f"{100 * one.behaviour_rate:.0f}")
            + ("" if one.right_rate is None else f" / {100 * one.right_rate:.0f}")
            for one in c.sets.values()
        ]
        made.add_row(_short(c), "-" if c.strength is None else f"{c.strength:g}", *cells)
    console.print(made)
