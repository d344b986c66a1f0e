"""`saescope evaluate`: what edits do to a behaviour and to everything else, beside controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from saescope.jobs.evaluate import EvaluateRequest
from saescope.store.atomic import replace_file, replace_files
from saescope.strict_json import to_json
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.naming import as_typed
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    interval,
    note,
    number,
    p_value,
    percent,
    present,
    print_finding,
    significant,
)
from saescope.surfaces.cli.tables import ResultTable

if TYPE_CHECKING:
    from saescope.control.evaluation.arm_results import ArmResult
    from saescope.control.evaluation.evaluation import Evaluation


_EXPLANATION = (
    "shown: share of replies with the behaviour. p: McNemar's, against no edit. lang.: replies in "
    "another language. rep.: repetition in replies. change: norm of what the edits add / spread "
    "of the residuals about their mean. On neutral text: KL in nats per token, flips of the "
    "likeliest token, ratio of perplexities (ppl)."
)
_CONTROLS_AT = {
    "same-damage": "Controls run where their KL is that of the edits, within {tolerance:.0f} %.",
    "same-strength": "Controls run at the strength of the edits.",
}
_MATCHES = {
    "milder": "milder: less KL than the edits.",
    "costlier": "costlier: more KL than the edits.",
    "wrecked": (
        "wrecked, so no evidence: KL above {kl:g} and {factor:g} times the edits', or broken "
        "replies."
    ),
}


@command
def evaluate(request: EvaluateRequest, *, output: Output = Output()) -> None:
    with request.claimed():
        answer = request.run(TERMINAL)
        paths = _write_files(answer.to_dict(), request.out, request.plot)
        answer.cache.forget()
    present(answer, output, lambda console: show_evaluation(console, answer.result))
    if not output.json:
        for path in paths:
            note(f"written: {path}")


def _write_files(document: Mapping[str, Any], out: Path | None, plot: Path | None) -> list[Path]:
    """Write what was requested, whole or not at all: one JSON file, or a folder; and the plot."""
    paths = []
    if out is not None:
        out = out.expanduser()
        text = to_json(document, indent=1)
        content = text.encode("utf-8", "surrogatepass")
        if out.suffix == ".json":
            replace_file(out, content)
            paths.append(out)
        else:
            files = {"evaluation.json": content, "evaluation.html": _page_bytes(document)}
            replace_files(out, files)
            paths += [out / name for name in files]
    if plot is not None:
        plot = plot.expanduser()
        replace_file(plot, _plot_bytes(document, plot.suffix))
        paths.append(plot)
    return paths


def _plot_bytes(document: Mapping[str, Any], suffix: str) -> bytes:
    from saescope.surfaces.report.evaluation import picture

    if suffix == ".html":
        return _page_bytes(document)
    return picture(document, png=suffix == ".png")


def _page_bytes(document: Mapping[str, Any]) -> bytes:
    from saescope.surfaces.report.evaluation import render_evaluation

    return render_evaluation(document).encode()


def show_evaluation(console: Console, result: "Evaluation") -> None:
    """Print the verdict, one row per arm, and the sets one by one."""
    for line in result.verdict:
        print_finding(console, as_typed(line))
    if result.quick:
        counts = ", ".join(f"{n} of {cell(name)}" for name, n in result.n_prompts.items())
        print_line(
            console,
            f"quick: measured on a sample ({counts}; {result.neutral_tokens} tokens of neutral "
            "text): for reliable figures, run it without --quick.",
        )
    title = f"{cell(str(result.behaviour['name']))} on {', '.join(map(cell, result.target))}"
    arm_table(title, result.arms, result.chosen).print(console)
    print_line(console, f"{_EXPLANATION} {_controls_sentence(result)}")
    _sets(console, result.arms)
    for line in result.controls_left_out:
        note(f"not measured: {line}")


def _controls_sentence(result: "Evaluation") -> str:
    """Say at which strength the controls run, and what the words beside their names mean."""
    from saescope.control.evaluation.matching import TOLERANCE, WRECKED_FACTOR, WRECKED_KL

    matches = {arm.match for arm in result.arms}
    words = [text for match, text in _MATCHES.items() if match in matches]
    sentences = " ".join([_CONTROLS_AT[result.controls], *words])
    return sentences.format(tolerance=100 * TOLERANCE, kl=WRECKED_KL, factor=WRECKED_FACTOR)


def arm_table(
    title: str, arms: "Sequence[ArmResult]", chosen: "ArmResult | None" = None
) -> ResultTable:
    """Return the table of arms, the chosen one in bold; counts of replies are per draw."""
    # Only some models think or reply with nothing, and few columns fit.
    unfinished = ["unfinished"] if any(arm.unfinished for arm in arms) else []
    empty = ["empty"] if any(arm.empty for arm in arms) else []
    optional = ("unscored", "flips", "lang.", "rep.", "change", "p")
    table = ResultTable(
        title,
        text=("arm", "strength"),
        numbers=(
            "shown, 95 % CI",
            "p",
            *unfinished,
            *empty,
            "unscored",
            "lang.",
            "rep.",
            "tokens",
            "ended",
            "change",
            "KL mean",
            "p99",
            "flips",
            "ppl",
        ),
        optional=("tokens", "ended", "p99", *empty, *optional),
    )
    for arm in arms:
        name = f"[bold]{_name(arm)}[/]" if arm is chosen else _name(arm)
        rate, p, *others = _reply_cells(arm)
        counts = [_count(arm, name) for name in (*unfinished, *empty)]
        table.add(name, number(arm.strength, "g"), rate, p, *counts, *others, *_damage_cells(arm))
    return table


def _count(arm: "ArmResult", name: str) -> str:
    """Format a count of replies; of several draws, the mean per draw."""
    return f"{round(arm.per_draw(getattr(arm, name)), 1):g}"


def _name(arm: "ArmResult") -> str:
    name = arm.name.removeprefix("difference of ")
    if arm.match in (None, "matched"):
        return name
    return f"{name}, {arm.match}"


def _reply_cells(arm: "ArmResult") -> list[str]:
    flips = "-"
    if arm.language_flip is not None:
        flips = f"{100 * arm.language_flip:.0f} %"
    return [
        _rate_with_range(arm),
        p_value(arm.mcnemar_p),
        _count(arm, "unscored"),
        flips,
        f"{arm.repetition:.2f}",
        f"{arm.mean_tokens:.0f}",
        f"{100 * arm.ended:.0f} %",
        percent(arm.relative_change) if arm.applied else "nothing",
    ]


def _damage_cells(arm: "ArmResult") -> list[str]:
    damage = arm.damage
    if damage is None:
        return ["-"] * 4
    return [
        significant(damage.kl_mean, 2),
        significant(damage.kl_p99, 2),
        percent(damage.top1_flips),
        f"{damage.ppl_ratio:.2f}",
    ]


def _rate_with_range(arm: "ArmResult") -> str:
    """Format the rate with its interval, or with the range over several draws."""
    if arm.behaviour_rate is None:
        return "-"
    if arm.spread is not None:
        return f"{percent(arm.behaviour_rate)} ({interval(arm.spread)} in {arm.draws})"
    return f"{percent(arm.behaviour_rate)} ({interval(arm.ci)})"


def _sets(console: Console, arms: "Sequence[ArmResult]") -> None:
    """Print the rates by set, if there are several sets or right answers."""
    names = list(arms[0].sets)
    has_answers = any(arm.right_rate is not None for arm in arms)
    if len(names) < 2 and not has_answers:
        return
    measured = "shown / right answers" if has_answers else "shown"
    columns = [cell(name) for name in names]
    table = ResultTable(
        f"{measured} by set, in percent",
        text=("arm", "strength"),
        numbers=columns,
        optional=columns[::-1],
    )
    for arm in arms:
        cells = []
        for in_set in arm.sets.values():
            shown = _whole_percent(in_set.behaviour_rate) or "-"
            right = _whole_percent(in_set.right_rate)
            cells.append(f"{shown} / {right}" if right else shown)
        table.add(_name(arm), number(arm.strength, "g"), *cells)
    table.print(console)


def _whole_percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{100 * share:.0f}"
