"""`saescope evaluate`: what edits do to a behaviour and to everything else, before and after, beside controls."""

import json as jsonlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from saescope.control.edits import EditSet
from saescope.control.evaluation.behaviour import FeatureRule, Judge, ReplyJudge, read_behaviour
from saescope.control.evaluation.judges import HttpJudge, load_function
from saescope.errors import PromptError, ResourceError
from saescope.sources.prompts import Prompt, read_prompts, split_prompts
from saescope.store.kept import Kept, key_of
from saescope.surfaces.cli.inputs import Inputs
from saescope.surfaces.cli.show import cell, note, percent, print_json, progress, stdout, table
from saescope.surfaces.cli.steer import load_for, wanted_edits

if TYPE_CHECKING:
    from saescope.control.evaluation.conditions import Condition
    from saescope.control.evaluation.evaluate import Evaluation
    from saescope.engine.lm import LM
    from saescope.engine.sae import Sae


def evaluate(
    *,
    prompts: str,
    edits: Path | None = None,
    edit: tuple[str, ...] = (),
    target: str | None = None,
    behaviour: str | None = None,
    judge: str | None = None,
    judge_batch: int = 1,
    judge_timeout: float = 60.0,
    neutral: str = "neutral",
    answers: Path | None = None,
    sweep: str = "1",
    draws: int = 3,
    found_on: str | None = None,
    instruction: str | None = None,
    cut: float | None = None,
    every_prompt: Annotated[bool, Parameter(negative="")] = False,
    thinking: bool | None = None,
    max_new_tokens: int = 48,
    seed: int = 0,
    plot: Path | None = None,
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
        What is looked for in replies: declining (when left out), language:ja, feature:17/23991 (with @0.3, on at least
        that share of a reply's tokens, else half), or a JSON file of phrases by language.
    judge
        Who decides instead: FILE.py:FUNCTION or MODULE:FUNCTION, given a reply, or the URL of a server.
    judge_batch
        Replies that a server is asked about at once.
    judge_timeout
        Seconds that a server may take to answer.
    neutral
        Prompt sets of plain text on which damage is measured; the bundled sentences when left out.
    answers
        A JSON file of right answers by prompt id.
    sweep
        Multiples of the edits' strengths, as 0.5,1,2.
    draws
        How often each random control is drawn.
    found_on
        The sets that edits were found on, separated by commas: of their other part the difference of means is made; all
        when left out.
    instruction
        What the prompt-only control tells the model instead of any edit.
    cut
        Keep only this share of each prompt, up to a whole word, so that there is something to go on from.
    every_prompt
        Use the prompts that features were found on too.
    thinking
        Tell the chat template to think, or not to.
    max_new_tokens
        Tokens of a reply at most.
    seed
        Decides which prompts are held out, and the random controls.
    plot
        A file for the plot of behaviour against damage: .svg, .png or .html.
    out
        A .json file for all of it, replies included; or a folder for that and a page with the plot.
    json
        Print one JSON document instead of tables.
    """
    decides = decider(behaviour, judge, judge_batch, judge_timeout)
    strengths = _strengths(sweep)
    _check_plot(plot)
    wanted = wanted_edits(edits, edit)
    every = flat_prompts(prompts)
    plain, known = flat_prompts(neutral), read_answers(answers)
    lm, saes = load_for(wanted, inputs, _layers_read(decides))
    from saescope.control.evaluation.evaluate import evaluate as evaluate_edits
    from saescope.control.evaluation.feature_judge import ByFeature
    from saescope.engine.tokens import beginning

    if cut is not None:
        every = [beginning(lm, prompt, cut) for prompt in every]
    found, held = _parts(every, found_on, seed)
    kept = _kept(lm, saes, wanted, every, seed)
    with progress("conditions", "done") as advance:
        result = evaluate_edits(
            lm,
            saes,
            wanted.edits,
            every if every_prompt else held,
            ByFeature(lm, saes, decides, thinking) if isinstance(decides, FeatureRule) else decides,
            target=target.split(",") if target else None,
            neutral=plain,
            answers=known,
            sweep=strengths,
            draws=draws,
            discovery=found,
            instruction=instruction,
            seed=seed,
            max_new_tokens=max_new_tokens,
            thinking=thinking,
            kept=kept,
            progress=advance,
        )
    about = {"part": "all" if every_prompt else "holdout", "cut": cut, "seed": seed, "instruction": instruction}
    document = {**result.to_dict(), **_of(lm, saes, wanted), **about}
    written = _publish(document, out, plot)
    kept.forget()
    if json:
        print_json(document)
        return
    show_evaluation(stdout(), result)
    for path in written:
        note(f"written: {path}")


def decider(
    behaviour: str | None, judge: str | None, batch: int = 1, timeout: float = 60.0
) -> "Judge | ReplyJudge | FeatureRule":
    """What decides whether a reply shows the behaviour, as far as it is known before a model is."""
    if judge is None:
        return read_behaviour(behaviour or "declining")
    if behaviour is not None:
        raise PromptError(f"--behaviour {behaviour} and --judge {judge} both say what decides: give one of the two")
    if not judge.startswith(("http://", "https://")):
        return load_function(judge)
    asked = HttpJudge(judge, batch, timeout)  # refused here, before anything is read
    return HttpJudge(judge, batch, timeout, kept=Kept(Path("runs") / f"judged-{key_of(asked.url)[:12]}.jsonl"))


def _layers_read(decides: "Judge | ReplyJudge | FeatureRule") -> list[int]:
    return sorted({f.layer for f in decides.features}) if isinstance(decides, FeatureRule) else []


def _parts(every: Sequence[Prompt], found_on: str | None, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Discovery prompts of the sets that edits were found on, and all held-out ones."""
    names = found_on.split(",") if found_on else None
    sets = dict.fromkeys(prompt.set for prompt in every)
    if unknown := [name for name in names or () if name not in sets]:
        raise PromptError(f"--found-on: there is no set {unknown[0]!r}: the sets are {', '.join(sets)}")
    parts = list(zip(every, split_prompts(every, seed=seed), strict=True))
    found = [prompt for prompt, part in parts if part == "discovery" and (names is None or prompt.set in names)]
    held = [prompt for prompt, part in parts if part == "holdout"]
    if not held:
        raise PromptError("no prompt is held out: give more, or use those that features were found on (--every-prompt)")
    return found, held


def _kept(lm: "LM", saes: "Sequence[Sae]", wanted: EditSet, prompts: Sequence[Prompt], seed: int) -> Kept:
    """Where finished conditions are kept until all of it is published, by what is asked."""
    asked = [asdict(prompt) for prompt in prompts]
    name = key_of(lm.spec.fingerprint, [sae.spec.fingerprint for sae in saes], repr(wanted.edits), asked, seed)
    return Kept(Path("runs") / f".evaluate-{name[:12]}.jsonl")


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


def flat_prompts(sets: str) -> list[Prompt]:
    """The prompts of all sets."""
    return [prompt for group in read_prompts(sets) for prompt in group.prompts]


def _strengths(text: str) -> list[float]:
    try:
        strengths = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise PromptError(f"--sweep {text!r} is not numbers such as 0.5,1,2") from error
    if not any(strengths) or not all(abs(s) < 1e6 for s in strengths):
        raise PromptError(f"--sweep {text!r} has no strength that edits anything")
    return strengths


def read_answers(path: Path | None) -> dict[str, str] | None:
    """Right answers by prompt id, where there is a file; raises PromptError for anything else."""
    if path is None:
        return None
    try:
        data = jsonlib.loads(path.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PromptError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise PromptError(f'{path}: answers are given by prompt id, as {{"q-01": "The hill."}}')
    return data


def _check_plot(path: Path | None) -> None:
    if path is not None and path.suffix not in (".svg", ".png", ".html"):
        raise PromptError(f"--plot {path} is neither .svg, .png nor .html")


def _publish(document: dict[str, Any], out: Path | None, plot: Path | None) -> list[Path]:
    """Write what was asked for, each file whole or not at all."""
    files: dict[Path, bytes] = {}
    if out is not None or plot is not None:
        from saescope.surfaces.report.evaluation import picture, render_evaluation
    if out is not None:
        data = jsonlib.dumps(document, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
        folder = None if out.suffix == ".json" else out.expanduser()
        files[folder / "evaluation.json" if folder else out.expanduser()] = data
        if folder:
            files[folder / "evaluation.html"] = render_evaluation(document).encode()
    if plot is not None:
        html = plot.suffix == ".html"
        drawn = render_evaluation(document).encode() if html else picture(document, png=plot.suffix == ".png")
        files[plot.expanduser()] = drawn
    for path, data in files.items():
        _write(path, data)
    return list(files)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"cannot write {path}: {error.strerror or error}") from error


def show_evaluation(console: Console, result: "Evaluation") -> None:
    """A row a condition, the sets one by one, and the verdict."""
    own = ("shown, 95 % CI", "p", "unscored", "lang.", "rep.", "tokens", "ended", "change")
    title = f"{cell(str(result.behaviour['name']))} on {', '.join(map(cell, result.target))}"
    made = table(title, "condition", "strength", *own, "KL mean", "p99", "flips", "ppl")
    for c in result.conditions:
        name = f"[bold]{_short(c)}[/]" if c is result.chosen else _short(c)
        made.add_row(name, "-" if c.strength is None else f"{c.strength:g}", *_figures(c))
    for column in made.columns:
        column.no_wrap = True
    console.print(made)
    _show_sets(console, result.conditions)
    for line in result.verdict:
        console.print(cell(line))
    for line in result.left_out:
        note(f"not measured: {line}")


def _short(c: "Condition") -> str:
    return c.name.removeprefix("difference of ")


def _figures(c: "Condition") -> list[str]:
    p = "-" if c.mcnemar_p is None else f"{c.mcnemar_p:.0e}"
    flip = "-" if c.language_flip is None else f"{100 * c.language_flip:.0f} %"
    aside = str(c.empty + c.unscored)
    own = [_shown(c), p, aside, flip, f"{c.repetition:.2f}", f"{c.mean_tokens:.0f}", f"{100 * c.ended:.0f} %"]
    change = percent(c.delta_norm_ratio) if c.applied else "nothing"
    if c.damage is None:
        return [*own, change, "-", "-", "-", "-"]
    d = c.damage
    return [*own, change, f"{d.kl_mean:.2g}", f"{d.kl_p99:.2g}", percent(d.top1_flips), f"{d.ppl_ratio:.2f}"]


def _shown(c: "Condition") -> str:
    """The rate with its interval, or over several draws with the smallest and the largest."""
    if c.behaviour_rate is None:
        return "-"
    if c.spread is not None:
        low, high = (100 * end for end in c.spread)
        return f"{percent(c.behaviour_rate)} ({low:.0f}-{high:.0f} in {c.draws})"
    return f"{percent(c.behaviour_rate)} ({100 * c.ci[0]:.0f}-{100 * c.ci[1]:.0f})"


def _show_sets(console: Console, conditions: "Sequence[Condition]") -> None:
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
