"""`saescope select`: which of the detected features to edit, by what changing them does."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from saescope.analysis.detect import Detection, DetectSettings, check_sets
from saescope.analysis.detect import detect as detect_in
from saescope.control.edits import EditSet, Op, write_edits
from saescope.control.evaluation.behaviour import FeatureRule
from saescope.errors import PromptError
from saescope.store.kept import Kept, key_of
from saescope.store.runs import Run
from saescope.surfaces.cli.evaluate import decider, flat_prompts, read_answers
from saescope.surfaces.cli.inputs import Inputs, Masks, obtain_run, parse_layers
from saescope.surfaces.cli.show import cell, note, percent, print_json, progress, stdout, table

if TYPE_CHECKING:
    from saescope.control.evaluation.conditions import Condition
    from saescope.control.evaluation.select import Selection

_TOKENS = 3


def select(
    sets: str,
    /,
    *,
    target: str,
    against: str | None = None,
    min_rate: float = 0.8,
    max_other: float = 0.2,
    behaviour: str | None = None,
    judge: str | None = None,
    goal: Literal["suppress", "amplify"] = "suppress",
    op: Op | None = None,
    strengths: str | None = None,
    max_features: int = 5,
    candidates: int = 12,
    prompts: int = 16,
    neutral: str = "neutral",
    answers: Path | None = None,
    cut: float | None = None,
    thinking: bool | None = None,
    max_new_tokens: int = 32,
    seed: int = 0,
    edits: Path | None = None,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    masks: Masks = Masks(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Of the features that detect a behaviour, find those that control it, as few as will do.

    Parameters
    ----------
    sets
        Prompt sets, as for detect, or a run made before.
    target
        The set that shows the behaviour.
    against
        The sets that do not, separated by commas; all others when left out.
    min_rate
        A candidate fires on at least this share of the target's discovery prompts.
    max_other
        And on at most this share of any other set's.
    behaviour
        What is looked for in replies, as for evaluate; declining when left out.
    judge
        Who decides instead, as for evaluate.
    goal
        Whether the behaviour is to go (asked of the target's prompts) or to come (asked of the others').
    op
        How features are edited; scale to suppress, add to amplify when left out.
    strengths
        Strengths to try, as -1,-2,-3; of add in multiples of the feature's largest activation.
    max_features
        Features in the set at most.
    candidates
        Detected features that are tried, best detectors first.
    prompts
        Prompts of each part, to choose on and to judge on, and neutral texts.
    neutral
        Prompt sets of plain text on which damage is measured; the bundled sentences when left out.
    answers
        A JSON file of right answers by prompt id: of equal effects the edits with more of them are taken.
    cut
        Keep only this share of each prompt, up to a whole word, so that there is something to go on from.
    thinking
        Tell the chat template to think, or not to.
    max_new_tokens
        Tokens of a reply at most.
    seed
        Decides which prompts are held out, and which are for choosing.
    edits
        Where to write the chosen features as an edits file; beside the run when left out.
    out
        Directory for the run; runs/NAME-HASH when left out.
    json
        Print one JSON document instead of tables.
    """
    decides = decider(behaviour, judge)
    settings = _settings(goal, op, strengths, max_features, candidates, prompts, max_new_tokens, seed)
    detecting = DetectSettings(min_rate, max_other, seed=seed, shuffles=0, masking=masks.masking())
    detecting.check()
    others = against.split(",") if against else None
    plain, known = flat_prompts(neutral), read_answers(answers)
    command = {"verb": "detect", "options": _asked(target, others, detecting, inputs)}
    run = obtain_run(
        sets,
        inputs,
        out,
        command,
        compared=detecting.masking,
        check=lambda names: check_sets(names, target, others, None),
    )
    layers = None if inputs.layers in (None, "all") else parse_layers(inputs.layers)
    detection = detect_in(run, target, detecting, against=others, layers=layers)
    result = _select(run, detection, decides, settings, inputs, plain, known, cut, thinking)
    path = None
    if result.edits:
        path = edits or run.path.with_name(f"{run.path.name}.{target}.selected.toml")
        write_edits(_edit_set(run, result), path, _comments(result))
    if json:
        print_json({**result.to_dict(), "edits": str(path) if path else None, "run": str(run.path)})
        return
    show_selection(stdout(), result)
    note(f"edits: {path}" if path else "no candidate does anything: no edits were written")
    note(f"run: {run.path}")


def _settings(
    goal: Literal["suppress", "amplify"],
    op: Op | None,
    strengths: str | None,
    max_features: int,
    candidates: int,
    prompts: int,
    max_new_tokens: int,
    seed: int,
) -> Any:
    from saescope.control.evaluation.select import SelectSettings

    chosen: Op = op or ("scale" if goal == "suppress" else "add")
    text = strengths or ("-1,-2,-3" if goal == "suppress" else "0.5,1,2")
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise PromptError(f"--strengths {text!r} is not numbers such as -1,-2") from error
    made = SelectSettings(max_features, candidates, values, chosen, goal, prompts, max_new_tokens, seed)
    made.check()
    return made


def _asked(target: str, against: Sequence[str] | None, settings: DetectSettings, inputs: Inputs) -> dict[str, Any]:
    layers = None if inputs.layers in (None, "all") else parse_layers(inputs.layers)
    return {"target": target, "against": against, "transfer": None, "settings": asdict(settings), "layers": layers}


def _select(
    run: Run,
    detection: Detection,
    decides: Any,
    settings: Any,
    inputs: Inputs,
    neutral: Sequence[Any],
    answers: Mapping[str, str] | None,
    cut: float | None,
    thinking: bool | None,
) -> "Selection":
    """The model of the run, and what changing its features does."""
    lm, saes = _opened(run, inputs).load(decoder=True)
    from saescope.control.evaluation.feature_judge import ByFeature
    from saescope.control.evaluation.select import select as select_among
    from saescope.engine.tokens import beginning

    if isinstance(decides, FeatureRule):
        decides = ByFeature(lm, saes, decides, thinking)
    asked = None if cut is None else (lambda prompt: beginning(lm, prompt, cut))
    name = key_of(str(run.path.resolve()), str(settings), repr(decides), cut, thinking)
    kept = Kept(Path("runs") / f".select-{name[:12]}.jsonl")
    with progress("edits", "tried") as advance:
        result = select_among(
            lm, saes, run, detection, decides, settings,
            neutral=neutral, answers=answers, asked=asked, thinking=thinking, kept=kept, progress=advance,
        )  # fmt: skip
    kept.forget()
    return result


def _opened(run: Run, inputs: Inputs) -> Inputs:
    """Options that open the run's model, and SAEs of its layers, again."""
    stored: Mapping[str, Any] = run.manifest["inputs"]
    sae = inputs.sae or next(iter(stored["saes"].values()))
    return replace(inputs, model=inputs.model or stored["model"], sae=sae, layers=",".join(map(str, run.layers)))


def _edit_set(run: Run, result: "Selection") -> EditSet:
    spec = run.saes[result.edits[0].layer]
    sae = run.manifest["inputs"]["saes"].get(str(spec.layer), spec.release)
    return EditSet(run.manifest["inputs"]["model"], sae, result.edits, spec.d_model, spec.d_sae)


def _comments(result: "Selection") -> list[str]:
    last = result.steps[-1]
    return [
        f"Selected of {len(result.candidates)} candidates for {result.target}: the behaviour goes from "
        f"{_rate(result.base[1])} to {_rate(last.judged_on)} on {result.prompts[1]} discovery prompts not chosen on.",
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
            f"#{one.detect_rank}", f"{100 * one.found.prompt_rate:.0f} / {100 * one.found.prompt_other_rate:.0f} %",
            f"#{one.output_rank}", f"{one.output.score:.1g}", f"{one.output.probability:.1g}, {one.output.rank:.0f}",
            f"#{one.effect_rank}", f"{100 * one.effect:.0f} %", f"{one.strength:.3g}",
            _rate(one.row), _right(one.row), _kl(one.row),
        )  # fmt: skip
    console.print(made)
    steps = table("the set, feature by feature", "edits", "shown where chosen", "shown elsewhere", "right", "KL")
    chosen, judged = result.base
    steps.add_row("none", _with_ci(chosen), _with_ci(judged), _right(judged), "-")
    for step in result.steps:
        names = ", ".join(f"{e.name} {e.op} {e.amount:g}" for e in step.edits)
        steps.add_row(
            names, _with_ci(step.chosen_on), _with_ci(step.judged_on), _right(step.judged_on), _kl(step.judged_on)
        )
    console.print(steps)
    console.print(
        f"Ranks: as a detector, by output score (its own tokens when it is amplified), by measured effect. Chosen on "
        f"{result.prompts[0]} discovery prompts, judged on {result.prompts[1]} others; none that is held out was used."
    )


def _rate(c: "Condition") -> str:
    return "-" if c.behaviour_rate is None else percent(c.behaviour_rate)


def _right(c: "Condition") -> str:
    return "-" if c.right_rate is None else percent(c.right_rate)


def _with_ci(c: "Condition") -> str:
    return f"{_rate(c)} ({100 * c.ci[0]:.0f}-{100 * c.ci[1]:.0f})"


def _kl(c: "Condition") -> str:
    return f"{c.damage.kl_mean:.2g}" if c.damage else "-"
