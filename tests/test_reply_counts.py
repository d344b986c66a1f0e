"""A reply without a verdict is counted once, and tables show counts per draw."""

import re
from io import StringIO

import pytest
from rich.console import Console

from saescope.control.evaluation.arm_results import ArmResult, pooled
from saescope.control.evaluation.judge import EMPTY, UNFINISHED, UNSCORED, Label
from saescope.control.evaluation.scoring import JudgedReply
from saescope.engine.generate import Generation
from saescope.sources.prompts import Prompt
from saescope.surfaces.cli.evaluate import arm_table
from test_verdict import row

ENGLISH = "The weather is nice today and we are going to the market."


@pytest.mark.parametrize(
    ("answer", "label", "counted_as"),
    [
        (ENGLISH, "shown", "en"),
        (ENGLISH, UNSCORED, "en"),
        ("", EMPTY, "empty"),
        ("", UNFINISHED, "unfinished"),
        ("12 34", UNSCORED, "unscored"),
        ("12 34", None, "unknown"),
    ],
)
def test_reply_has_a_language_or_one_reason(answer: str, label: Label, counted_as: str) -> None:
    prompt = Prompt("x", "a", "hi")
    generation = Generation([1], answer, True, answer, label == UNFINISHED)
    assert JudgedReply(prompt, generation, label).counted_as == counted_as


def _cells(*arms: ArmResult) -> list[dict[str, str]]:
    """The cells of the printed table by column."""
    shown = StringIO()
    arm_table("a table", arms).print(Console(width=250, file=shown))
    lines = [re.split(r"\s{2,}", line.strip()) for line in shown.getvalue().splitlines()]
    header = next(line for line in lines if line[0] == "arm")
    return [dict(zip(header, line, strict=True)) for line in lines if len(line) == len(header)][1:]


def test_table_counts_empty_and_unscored_replies_apart_and_per_draw() -> None:
    draws = [
        row("random feature", 0.9, scored=91, empty=4, unscored=5),
        row("random feature", 0.8, scored=90, empty=7, unscored=3),
    ]
    both = pooled(draws, ["2/1", "2/2"])
    assert (both.scored, both.empty, both.unscored, both.draws) == (181, 11, 8, 2)
    unedited, control = _cells(row("none", 0.95, scored=97, empty=2, unscored=1), both)
    assert (unedited["empty"], unedited["unscored"]) == ("2", "1")
    assert (control["empty"], control["unscored"]) == ("5.5", "4")


def test_table_has_no_column_for_what_never_happens() -> None:
    [unedited] = _cells(row("none", 0.95, unscored=5))
    assert "empty" not in unedited
    assert "unfinished" not in unedited
    assert unedited["unscored"] == "5"
