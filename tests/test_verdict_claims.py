"""No sentence of a verdict contradicts a figure of its table, whatever the figures are."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saescope.control.evaluation.arm_results import ArmResult
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.control_rows import control_rows
from saescope.control.evaluation.damage import Damage
from saescope.control.evaluation.effects import Baseline
from saescope.control.evaluation.evidence import Evidence, FindingName
from saescope.control.evaluation.metrics import wilson_interval
from saescope.control.evaluation.verdict import verdict

PROJECT, ADD = "difference of means, project", "difference of means, add"
FULL = "difference of means, add in full"
DRAWN = ("random feature", "random direction")
CONTROLS = ("zero", "minus", *DRAWN, PROJECT, FULL, ADD, "prompt only")
RATES, KLS = (
    st.integers(0, 20),
    st.sampled_from([2e-6, 0.0009, 0.001, 0.0011, 0.02, 0.09, 0.2, 2.0]),
)
FIGURES = re.compile(
    rf"(?P<name>{'|'.join(CONTROLS)})[^();]*"
    r"\((?P<rate>\d+ %) \((?P<low>\d+)-(?P<high>\d+)(?: in (?P<draws>\d+))?\)"
    r"(?:, KL (?P<kl>[\d.e-]+))?",
    re.IGNORECASE,
)


def result(name: str, shown: int, kl: float | None, repetition: float = 0.0) -> ArmResult:
    """A row over 20 replies, of which `shown` have the behaviour."""
    damage = None if kl is None else Damage(100, kl, kl, kl, 0.0, 1 + kl)
    return ArmResult(
        name=name,
        strength=1.0,
        behaviour_rate=shown / 20,
        ci=wilson_interval(shown / 20, 20),
        mcnemar_p=None,
        scored=20,
        empty=0,
        unscored=0,
        right_rate=None,
        repetition=repetition,
        mean_tokens=9.0,
        ended=1.0,
        language_flip=None,
        off_language=None,
        delta_norm_ratio=0.1,
        spread_ratio=0.2,
        applied=True,
        damage=damage,
        sets={},
    )


@dataclass(frozen=True)
class Table:
    """A random table of figures: what is said of it, and how to look its rows up."""

    base: ArmResult
    edits: ArmResult
    controls: list[ArmResult]

    def row(self, said: Mapping[str, str]) -> ArmResult:
        """The row that a sentence gives figures of: they are the row's own."""
        named = [row for row in self.controls if row.name == said["name"].lower()]
        [row] = [row for row in named if row.match != "wrecked"]
        low, high = row.spread or row.ci
        figures = (f"{100 * row.behaviour_rate:.0f} %", f"{100 * low:.0f}", f"{100 * high:.0f}")
        assert (said["rate"], said["low"], said["high"]) == figures
        assert said["draws"] == (str(row.draws) if row.spread else None)
        if said["kl"] is not None:
            assert float(said["kl"]) == float(f"{row.damage.kl_mean:.1e}")
        return row

    def moved(self, rate: float) -> float:
        """The change of a rate as a share of the edits' change."""
        own = self.edits.behaviour_rate - self.base.behaviour_rate
        return (rate - self.base.behaviour_rate) / own if own else 0.0

    def has_clear_part(self, row: ArmResult) -> bool:
        return apart(row, self.base) and self.moved(row.behaviour_rate) > 0

    def goes_as_far(self, row: ArmResult) -> bool:
        share = self.moved(row.behaviour_rate)
        clearly_less = share < 1 and apart(row, self.edits)
        return self.has_clear_part(row) and share > 0.8 - 1e-9 and not clearly_less

    def damage(self, row: ArmResult) -> str:
        """The damage beside the edits', in the words of a verdict."""
        if row.damage is None or self.edits.damage is None:
            return ""
        kl, own = row.damage.kl_mean, self.edits.damage.kl_mean
        if abs(kl - own) <= max(0.15 * own, 1e-5):
            return "the same"
        return "more" if kl > own else "less"

    def reaches(self, row: ArmResult) -> bool:
        """Whether a row goes the whole way, from where the behaviour is."""
        down = self.edits.behaviour_rate < self.base.behaviour_rate
        if not apart(self.edits, self.base):
            down = self.base.behaviour_rate >= 0.5
        change = row.behaviour_rate - self.base.behaviour_rate
        share = (
            -change / self.base.behaviour_rate if down else change / (1 - self.base.behaviour_rate)
        )
        return apart(row, self.base) and share > 0.8 - 1e-9


def apart(one: ArmResult, other: ArmResult) -> bool:
    return one.ci[1] < other.ci[0] or one.ci[0] > other.ci[1]


FIGURES_OF_A_ROW = st.tuples(RATES, KLS, st.sampled_from([0.0, 0.0, 0.4]))
RowFigures = tuple[int, float, float]


def table_of(
    shown: int, edits: RowFigures, controls: Mapping[str, list[RowFigures]], measured: bool
) -> Table:
    def row(name: str, figures: RowFigures) -> ArmResult:
        rate, kl, repetition = (shown, 0.0, 0.0) if name == "zero" else figures
        return result(name, rate, kl if measured and name != "prompt only" else None, repetition)

    base, edited = row("none", (shown, 0.0, 0.0)), row("edits", edits)
    arms, results = [], []
    for name, draws in controls.items():
        for n, figures in enumerate(draws if name in DRAWN else draws[:1]):
            arms.append(Arm(name, 1.0, draw=f"seed {n}" if name in DRAWN else ""))
            results.append(row(name, figures))
    return Table(base, edited, control_rows(Baseline(base), edited, arms, results))


def test_every_finding_has_its_rule_in_the_docs() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "evaluate.md").read_text("utf-8")
    rules = page.partition("## The verdict")[2].partition("\n## ")[0]
    named = re.findall(r"→\s+\*([a-z\s]+)\*", rules)
    assert [" ".join(name.split()) for name in named] == list(get_args(FindingName))


TABLES = st.builds(
    dict,
    shown=st.integers(1, 19),
    edits=FIGURES_OF_A_ROW,
    controls=st.dictionaries(
        st.sampled_from(CONTROLS), st.lists(FIGURES_OF_A_ROW, min_size=1, max_size=4)
    ),
    measured=st.booleans(),
)


@given(TABLES)
@settings(max_examples=50, deadline=None)
def test_every_claim_of_a_verdict_is_in_its_table(figures: dict[str, Any]) -> None:
    check_claims(table_of(**figures))


@pytest.mark.slow
@given(TABLES)
@settings(max_examples=400, deadline=None)
def test_every_claim_is_in_one_of_many_tables(figures: dict[str, Any]) -> None:
    check_claims(table_of(**figures))


def check_claims(table: Table) -> None:
    evidence = Evidence(Baseline(table.base), [table.edits], table.controls, "1 feature")
    findings: dict[str, str] = {}
    for finding in verdict(evidence):
        findings[finding.name] = findings.get(finding.name, "") + finding.text + " "
    for name, text in findings.items():
        if name in CLAIMS:
            CLAIMS[name](table, text)
    clear = apart(table.edits, table.base)
    assert ("detection without control" in findings) == (not clear)
    assert ("partial" in findings) == (clear and not table.reaches(table.edits))
    equal = {row.name for row in table.controls if is_equal_way(table, row)}
    ways = findings.get("equal or better way", "")
    assert all(name in ways.lower() for name in equal)
    assert ways.count(" way (") == len(equal)
    wrecked = [row for row in table.controls if is_wrecked(table, row)]
    assert wrecked == [row for row in table.controls if row.match == "wrecked"]
    assert all(row.name in findings["wrecked control"] for row in wrecked)
    assert bool(wrecked) == ("wrecked control" in findings)


def is_wrecked(table: Table, row: ArmResult) -> bool:
    """A row far beyond the edits' damage, or with broken replies; draws are judged one by one."""
    if row.name == "zero":
        return False
    if row.draws > 1 or row.each:
        return row.match == "wrecked"
    broken = row.repetition > table.edits.repetition + 0.3
    if row.damage is None or table.edits.damage is None:
        return broken
    return broken or row.damage.kl_mean > max(0.1, 3 * table.edits.damage.kl_mean)


def is_equal_way(table: Table, row: ArmResult) -> bool:
    if not apart(table.edits, table.base) or row.name == "zero" or row.match == "wrecked":
        return False
    return (
        table.damage(row) in ("the same", "less")
        and table.goes_as_far(row)
        and set(lost(row)) <= set(lost(table.edits))
    )


def lost(row: ArmResult) -> list[str]:
    text = row.damage is not None and (row.damage.kl_mean > 0.1 or row.damage.ppl_ratio > 1.2)
    return ["text"] * text + ["repetition"] * (row.repetition > 0.1)


def claims_equal(table: Table, text: str) -> None:
    for sentence in filter(str.strip, text.split(". ")):
        said = re.match(rf"({'|'.join(CONTROLS)}),? is (a better|an equal) way", sentence, re.I)
        assert said, sentence
        row = table.row(figures(sentence.replace(said[0], said[1] + " ")))
        assert is_equal_way(table, row)
        share = table.moved(row.behaviour_rate)
        better = share >= 1 - 1e-9 if table.damage(row) == "less" else share > 1
        if table.damage(row) == "the same":
            better = better and apart(row, table.edits)
        assert (said[2] == "a better") == better
        low, high = (f"{100 * end:.0f}" for end in table.edits.ci)
        assert f"the edits {100 * table.edits.behaviour_rate:.0f} % ({low}-{high})" in sentence


def figures(text: str) -> Mapping[str, str]:
    said = FIGURES.search(text)
    assert said, text
    return said.groupdict()


def claims_means(table: Table, text: str) -> None:
    assert apart(table.edits, table.base)
    for said in FIGURES.finditer(text):
        row = table.row(said.groupdict())
        assert ("does it too" in said[0]) == table.goes_as_far(row)
        assert ("has no clear effect" in said[0]) == (not apart(row, table.base))
        opposite = apart(row, table.base) and not table.has_clear_part(row)
        assert ("does the opposite" in said[0]) == opposite
        part = table.has_clear_part(row) and not table.goes_as_far(row)
        assert ("does part of it" in said[0]) == part
        damage = re.search(r"at (the same|more|less) damage", said[0])
        assert (damage[1] if damage else "") == table.damage(row)


def claims_half(table: Table, text: str, *, costlier: bool) -> None:
    assert apart(table.edits, table.base)
    clauses = list(FIGURES.finditer(text))
    for said in clauses:
        row = table.row(said.groupdict())
        assert table.moved(row.behaviour_rate) > 0.5
        assert (table.damage(row) == "more") == costlier
    assert len(clauses) + claims_draws(table, text, least=0.5) > 0


def claims_draws(table: Table, text: str, least: float, below: float = 2.0) -> int:
    """Check every "2 of 3 draws of a …", and return how many there are."""
    said = re.findall(r"(\d) of (\d) draws of an? (random \w+) \(to (\d+ %)\)", text, re.I)
    for count, total, name, furthest in said:
        [row] = [one for one in table.controls if one.name == name and one.match != "wrecked"]
        rates = [draw["behaviour_rate"] for draw in row.each]
        moved = [rate for rate in rates if table.moved(rate) > 0.5]
        assert (len(moved), len(rates)) == (int(count), int(total))
        assert furthest == f"{100 * max(moved, key=table.moved):.0f} %"
        assert least <= len(moved) / len(rates) < below
    return len(said)


def claims_some_draws(table: Table, text: str) -> None:
    assert claims_draws(table, text, least=1e-9, below=0.5) > 0
    assert not FIGURES.search(text)


def claims_milder(table: Table, text: str) -> None:
    for said in FIGURES.finditer(text.replace("edits:", "edits;")):
        row = table.row(said.groupdict())
        assert table.damage(row) == "less"
        assert table.moved(row.behaviour_rate) <= 0.5


def claims_mechanism(table: Table, text: str, *, whole: bool) -> None:
    assert not (apart(table.edits, table.base) and table.reaches(table.edits))
    if not (said := FIGURES.search(text)):
        assert "not measured" in text or "cannot tell" in text
        return
    row = table.row(said.groupdict())
    if "only at a loss" in text:
        assert table.reaches(row)
        assert lost(row)
    else:
        assert table.reaches(row) == whole


def claims_prompt(table: Table, text: str) -> None:
    row = table.row(figures(text.replace("An instruction in the prompt", "prompt only")))
    clear = apart(table.edits, table.base)
    assert ("too" in text) == clear
    assert table.goes_as_far(row) if clear else table.reaches(row)


def claims_effect(table: Table, text: str) -> None:
    for row in (table.base, table.edits):
        low, high = row.ci
        assert f"{100 * row.behaviour_rate:.0f} % ({100 * low:.0f}-{100 * high:.0f})" in text
    assert ("KL" in text) == (table.edits.damage is not None)


CLAIMS: Mapping[str, Callable[[Table, str], None]] = {
    "effect": claims_effect,
    "several features needed": lambda table, text: claims_mechanism(table, text, whole=True),
    "another mechanism": lambda table, text: claims_mechanism(table, text, whole=False),
    "not specific": lambda table, text: claims_half(table, text, costlier=False),
    "costlier control": lambda table, text: claims_half(table, text, costlier=True),
    "some draws": claims_some_draws,
    "equal or better way": claims_equal,
    "difference of means": claims_means,
    "milder control": claims_milder,
    "prompt alone": claims_prompt,
}
