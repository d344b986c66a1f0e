"""`saescope select`: which of the detected features to edit, by what changing them does."""

from typing import TYPE_CHECKING

from rich.console import Console

from saescope.jobs.select import SelectAnswer, SelectRequest
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.naming import as_typed
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    interval,
    note,
    percent,
    present,
    print_finding,
    print_warnings,
    significant,
)
from saescope.surfaces.cli.tables import ResultTable

if TYPE_CHECKING:
    from saescope.control.edits import Edit
    from saescope.control.evaluation.arm_results import ArmResult
    from saescope.control.evaluation.selection import Candidate, Selection

_TOKENS_SHOWN = 3


@command
def select(request: SelectRequest, *, output: Output = Output()) -> None:
    answer = request.run(TERMINAL)
    present(answer, output, lambda console: _show(console, answer))
    if not output.json:
        edits = answer.edits
        note(f"edits: {edits}" if edits else "no candidate has an effect: no edits were written")
        note(f"run: {answer.run.path}")


def _show(console: Console, answer: SelectAnswer) -> None:
    show_selection(console, answer.result)
    print_warnings(console, answer.warnings)


def show_selection(console: Console, result: "Selection") -> None:
    """Print what was selected, candidates with their three ranks, and the edits step by step."""
    print_finding(console, _sentence(result))
    settings = result.settings
    if settings.quick:
        strengths = ", ".join(f"{strength:g}" for strength in settings.edit_strengths)
        print_line(
            console,
            f"quick: tried {len(result.candidates)} candidates at strengths {strengths} on "
            f"{result.n_chosen_on} prompts: run it without --quick before relying on it.",
        )
    _candidates(result).print(console)
    _steps(result).print(console)
    from saescope.control.evaluation.judge_check import error_sentence

    print_line(console, as_typed(error_sentence(result.judge_error)))
    print_line(
        console,
        "Ranks: as a detector; by output score (promotes its own tokens when amplified); by "
        f"measured effect. Chosen on {result.n_chosen_on} discovery prompts, judged on "
        f"{result.n_judged_on} others. No held-out prompt was used.",
    )


def _sentence(result: "Selection") -> str:
    """Say which edits are selected, and what they do to prompts not used to choose them."""
    behaviour = result.behaviour["name"]
    if not result.steps:
        return f"No candidate changes {behaviour}: no edit is selected."
    names = ", ".join(_describe(edit) for edit in result.edits)
    before, after = result.unedited.judged_on, result.steps[-1].judged_on
    change = f"from {percent(before.behaviour_rate)} to {percent(after.behaviour_rate)}"
    right = after.right_rate
    answers = "" if right is None else f", and {percent(right)} of answers are right,"
    return f"Selected: {names}; {behaviour} goes {change}{answers} on prompts not used to choose."


def _candidates(result: "Selection") -> ResultTable:
    table = ResultTable(
        f"features that detect {cell(result.target)}, by what changing them does",
        text=("feature", "own tokens"),
        numbers=(
            "detects",
            "fires / elsewhere",
            "promotes",
            "score",
            "p, rank",
            "acts",
            "effect",
            "strength",
            "shown",
            "right",
            "KL",
        ),
        optional=("p, rank", "score", "fires / elsewhere", "right", "shown", "strength"),
    )
    for candidate in result.candidates:
        table.add(*_candidate_cells(candidate))
    return table


def _candidate_cells(candidate: "Candidate") -> list[str]:
    detected, output, arm = candidate.detected, candidate.output, candidate.result
    tokens = [cell(token) for token in output.tokens[:_TOKENS_SHOWN]]
    return [
        str(candidate.feature),
        " ".join(tokens),
        f"#{candidate.detect_rank}",
        f"{100 * detected.prompt_rate:.0f} / {100 * detected.prompt_other_rate:.0f} %",
        f"#{candidate.output_rank}",
        f"{output.score:.1g}",
        f"{output.probability:.1g}, {output.rank:.0f}",
        f"#{candidate.effect_rank}",
        f"{100 * candidate.effect:.0f} %",
        f"{candidate.strength:.3g}",
        percent(arm.behaviour_rate),
        percent(arm.right_rate),
        _kl(arm),
    ]


def _steps(result: "Selection") -> ResultTable:
    table = ResultTable(
        "the set of edits, feature by feature",
        text=("edits",),
        numbers=("shown where chosen", "shown elsewhere", "right", "KL"),
        optional=("right",),
    )
    for step in (result.unedited, *result.steps):
        names = ", ".join(_describe(edit) for edit in step.edits)
        table.add(
            names or "none",
            _rate_with_interval(step.chosen_on),
            _rate_with_interval(step.judged_on),
            percent(step.judged_on.right_rate),
            _kl(step.judged_on) if names else "-",
        )
    return table


def _describe(edit: "Edit") -> str:
    return f"{edit.name} {edit.op} {edit.amount:g}"


def _rate_with_interval(arm: "ArmResult") -> str:
    if arm.behaviour_rate is None:
        return "-"
    return f"{percent(arm.behaviour_rate)} ({interval(arm.ci)})"


def _kl(arm: "ArmResult") -> str:
    if arm.damage is None:
        return "-"
    return significant(arm.damage.kl_mean, 2)
