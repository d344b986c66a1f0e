"""Rows of the table of controls: draws labelled by their damage, and pooled."""

from collections.abc import Sequence
from dataclasses import replace

from saescope.control.evaluation.arm_results import ArmResult, Match, pooled
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.effects import Baseline
from saescope.control.evaluation.matching import damage_match


def control_rows(
    baseline: Baseline, chosen: ArmResult, arms: Sequence[Arm], results: Sequence[ArmResult]
) -> list[ArmResult]:
    """One row per control. Its wrecked draws, which are no evidence, are a row of their own."""
    labelled = [replace(one, match=_match(baseline, chosen, one)) for one in results]
    groups: dict[tuple[str, bool], list[int]] = {}
    for n, (arm, result) in enumerate(zip(arms, labelled, strict=True)):
        title = arm.name if arm.draw else arm.title
        groups.setdefault((title, result.match == "wrecked"), []).append(n)
    rows = []
    for (_, is_wrecked), members in groups.items():
        draws = [arms[n].draw for n in members]
        row = labelled[members[0]]
        if draws[0]:
            row = pooled([labelled[n] for n in members], draws)
        if draws[0] and not is_wrecked:
            row = replace(row, match=damage_match(row.kl_mean, chosen.kl_mean))
        rows.append(row)
    return rows


def _match(baseline: Baseline, chosen: ArmResult, control: ArmResult) -> Match | None:
    """How a control's damage compares with the edits'; broken replies wreck it at any KL."""
    if control.name == "zero":
        return None
    if baseline.breaks_replies(control, chosen):
        return "wrecked"
    return damage_match(control.kl_mean, chosen.kl_mean)
