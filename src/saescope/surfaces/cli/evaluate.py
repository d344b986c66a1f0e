"""`saescope evaluate`: what edits do to a behaviour and to everything else, before and after, beside controls."""

import json as jsonlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.console import Console

from saescope.control.behaviour import read_behaviour
from saescope.errors import PromptError, ResourceError
from saescope.sources.prompts import Prompt, read_prompts, split_prompts
from saescope.surfaces.cli.inputs import Inputs
from saescope.surfaces.cli.show import cell, note, percent, print_json, progress, stdout, table
from saescope.surfaces.cli.steer import load_for, wanted_edits

if TYPE_CHECKING:
    from saescope.control.evaluate import Condition, Evaluation


def evaluate(
    *,
    prompts: str,
    edits: Path | None = None,
    edit: tuple[str, ...] = (),
    target: str | None = None,
    behaviour: str = "declining",
    neutral: str = "neutral",
    answers: Path | None = None,
    sweep: str = "1",
    every_prompt: Annotated[bool, Parameter(negative="")] = False,
    thinking: bool | None = None,
    max_new_tokens: int = 48,
    seed: int = 0,
    out: Path | None = None,
    inputs: Inputs = Inputs(),  # noqa: B008 (frozen)
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure edits: how often a behaviour shows before and after, what else changes, and what controls do.

    Parameters
    ----------
    prompts
        Prompt sets, as for contrast. Those of the held-out part are used.
    edits
        An edits file, such as detect writes; its model and SAE are taken where --model and --sae do not say.
    edit
        An edit such as "17/23991 scale -1". May be given again.
    target
        The sets that show the behaviour, separated by commas; all when left out. The others are measured beside them.
    behaviour
        What is looked for in replies: declining, or a JSON file of phrases by language.
    neutral
        Prompt sets of plain text on which damage is measured; the bundled sentences when left out.
    answers
        A JSON file of right answers by prompt id.
    sweep
        Multiples of the edits' strengths, as 0.5,1,2.
    every_prompt
        Use the prompts that features were found on too.
    thinking
        Tell the chat template to think, or not to.
    max_new_tokens
        Tokens of a reply at most.
    seed
        Decides which prompts are held out, and the random controls.
    out
        A JSON file for all of it, replies included.
    json
        Print one JSON document instead of tables.
    """
    judge, strengths = read_behaviour(behaviour), _strengths(sweep)
    wanted = wanted_edits(edits, edit)
    asked = _flat(prompts)
    if not every_prompt:
        parts = split_prompts(asked, seed=seed)
        asked = [prompt for prompt, part in zip(asked, parts, strict=True) if part == "holdout"]
    plain, known = _flat(neutral), _answers(answers)
    lm, saes = load_for(wanted, inputs)
    from saescope.control.evaluate import evaluate as evaluate_edits

    with progress("conditions", "done") as advance:
        result = evaluate_edits(
            lm,
            saes,
            wanted.edits,
            asked,
            judge,
            target=target.split(",") if target else None,
            neutral=plain,
            answers=known,
            sweep=strengths,
            seed=seed,
            max_new_tokens=max_new_tokens,
            thinking=thinking,
            progress=advance,
        )
    document = {
        **result.to_dict(),
        "behaviour": {"name": judge.name, "phrases": judge.by_language, "within": judge.within},
        "model": lm.spec.repo,
        "sae": saes[0].spec.release if saes else "",
        "edits": [{"feature": e.name, "op": e.op, "strength": e.amount, "gate": e.gate, "scope": e.scope}
                  for e in wanted.edits],
        "part": "all" if every_prompt else "holdout",
        "seed": seed,
    }  # fmt: skip
    if out is not None:
        _write(out, jsonlib.dumps(document, ensure_ascii=False, indent=1))
    if json:
        print_json(document)
    else:
        show_evaluation(stdout(), result)
        if out is not None:
            note(f"all of it, replies included: {out}")


def _flat(sets: str) -> list[Prompt]:
    return [prompt for group in read_prompts(sets) for prompt in group.prompts]


def _strengths(text: str) -> list[float]:
    try:
        strengths = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PromptError(f"--sweep {text!r} is not numbers such as 0.5,1,2") from error
    if not any(strengths) or not all(abs(s) < 1e6 for s in strengths):
        raise PromptError(f"--sweep {text!r} has no strength that edits anything")
    return strengths


def _answers(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    try:
        data = jsonlib.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise PromptError(f'{path}: answers are given by prompt id, as {{"q-01": "The hill."}}')
    return data


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error


def show_evaluation(console: Console, result: "Evaluation") -> None:
    """A row a condition, the sets one by one, and the verdict."""
    own = ("shown, 95 % CI", "McNemar p", "empty", "repeats", "tokens", "ended", "change")
    title = f"behaviour on {', '.join(map(cell, result.target))}"
    made = table(title, "condition", "strength", *own, "KL mean", "p99", "flips", "ppl")
    for c in result.conditions:
        made.add_row(c.name, "-" if c.strength is None else f"{c.strength:g}", *_figures(c))
    console.print(made)
    _show_sets(console, result.conditions)
    for line in result.verdict:
        console.print(line)


def _figures(c: "Condition") -> list[str]:
    shown = f"{percent(c.behaviour_rate)} ({100 * c.ci[0]:.0f}-{100 * c.ci[1]:.0f})"
    p = "-" if c.mcnemar_p is None else f"{c.mcnemar_p:.0e}"
    own = [shown, p, str(c.empty), f"{c.repetition:.2f}", f"{c.mean_tokens:.0f}", percent(c.ended)]
    change = percent(c.delta_norm_ratio) if c.applied else "nothing"
    if c.damage is None:
        return [*own, change, "-", "-", "-", "-"]
    d = c.damage
    return [*own, change, f"{d.kl_mean:.2g}", f"{d.kl_p99:.2g}", percent(d.top1_flips), f"{d.ppl_ratio:.2f}"]


def _show_sets(console: Console, conditions: Sequence["Condition"]) -> None:
    names = list(conditions[0].sets)
    if len(names) < 2 and all(c.right_rate is None for c in conditions):
        return
    made = table("shown / right answers by set", "condition", "strength", *map(cell, names))
    for c in conditions:
        cells = [
            f"{100 * one.behaviour_rate:.0f}" + ("" if one.right_rate is None else f" / {100 * one.right_rate:.0f}")
            for one in c.sets.values()
        ]
        made.add_row(c.name, "-" if c.strength is None else f"{c.strength:g}", *cells)
    console.print(made)
