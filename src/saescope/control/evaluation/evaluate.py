"""Before and after: what edits do to a behaviour on held-out prompts, and to everything else, beside controls.

Every condition is measured on the same prompts: without edits, with them at every strength, and, at the strength that
does most without harm, under the controls. An effect counts for these edits only where the controls do not have it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from saescope.control.edits import Edit
from saescope.control.evaluation.behaviour import InLanguage, Judge, Label, ReplyJudge, describe
from saescope.control.evaluation.bench import Bench, Progress, Rows, counting, neutral_rows
from saescope.control.evaluation.conditions import Asked, Condition
from saescope.control.evaluation.verdict import Case, Finding, choose, verdict
from saescope.control.evaluation.ways import Controls, Way, mean_directions, other_features, times
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.errors import PromptError
from saescope.sources.prompts import Prompt
from saescope.store.resume_cache import ResumeCache
from saescope.table import Table


@final
@dataclass(frozen=True)
class Evaluation(Table):
    """The answer to `evaluate`: the unedited condition first, then the edits, then the controls."""

    behaviour: dict[str, Any]
    target: list[str]
    conditions: list[Condition]
    chosen: Condition
    findings: list[Finding]
    replies: dict[str, list[str]]
    labels: dict[str, list[Label]]
    prompts: list[Prompt]
    neutral_tokens: int
    left_out: list[str]

    @property
    def verdict(self) -> list[str]:
        """What may be concluded, a sentence each."""
        return [finding.text for finding in self.findings]

    def to_dict(self) -> dict[str, Any]:
        """As the JSON of `saescope evaluate`."""
        return {
            "behaviour": self.behaviour,
            "target": self.target,
            "conditions": [condition.to_dict() for condition in self.conditions],
            "chosen": {"name": self.chosen.name, "strength": self.chosen.strength},
            "neutral_tokens": self.neutral_tokens,
            "verdict": " ".join(self.verdict),
            "findings": [vars(finding) for finding in self.findings],
            "controls_left_out": self.left_out,
            "replies": [
                {"id": p.id, "set": p.set, "prompt": p.display_text, "by": {k: texts[n] for k, texts in self.replies.items()},
                 "labels": {k: labels[n] for k, labels in self.labels.items()}}
                for n, p in enumerate(self.prompts)
            ],
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row a condition."""
        nested = ("sets", "kl_sets", "languages", "each", "spread", "ci")
        return [
            {
                **{k: v for k, v in c.to_dict().items() if k not in nested},
                "ci_low": c.ci[0],
                "ci_high": c.ci[1],
            }
            for c in self.conditions
        ]


def evaluate(
    lm: LM,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    prompts: Sequence[Prompt],
    judge: Judge | ReplyJudge,
    *,
    target: Sequence[str] | None = None,
    neutral: Sequence[Prompt] = (),
    answers: Mapping[str, str] | None = None,
    sweep: Sequence[float | int] = (1.0,),
    draws: int = 3,
    discovery: Sequence[Prompt] = (),
    instruction: str | None = None,
    seed: int = 0,
    max_new_tokens: int = 48,
    thinking: bool | None = None,
    kept: ResumeCache | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy replies to every prompt without edits, with them at every multiple of `sweep`, and under the controls.

    The behaviour's rate is over prompts of the sets `target`, all when left out; right answers are replies that are
    `answers` to the letter, case and spaces aside. Damage is measured on `neutral` texts, those of target sets left
    out: there a change is wanted. Random controls are drawn `draws` times. From `discovery` prompts, of target sets and
    others, the difference of means is made; `instruction` is what a prompt-only control says. What is `kept` of an
    interrupted evaluation is not measured again. Raises PromptError for sets that are not there.
    """
    wanted = _targets(prompts, target)
    strengths = _strengths(edits, sweep)
    if draws < 0:
        raise PromptError(f"--draws is {draws}: it must be 0 or more")
    controls = Controls(
        edits=tuple(edits),
        others=other_features(lm, saes, edits, prompts, draws, seed),
        seeds=range(seed, seed + draws),
        means=mean_directions(lm, _edited(saes, edits), discovery, wanted, thinking),
        instruction=instruction,
    )
    first = [
        Way("none"),
        *(Way("edits", s, tuple(times(edit, s) for edit in edits)) for s in strengths),
    ]
    total = len(first) + len(controls.ways(1.0, removes=True))
    plain = neutral_rows(lm, neutral, wanted)
    kept = ResumeCache() if kept is None else kept
    bench = Bench(
        lm, saes, prompts, plain, max_new_tokens, thinking, kept, counting(progress, total)
    )
    rows = Rows(bench, Asked(prompts, wanted, answers), judge)
    base, *tried = rows.add(first)
    case = Case(base, tried, [], _named(edits), isinstance(judge, InLanguage), wanted)
    best = choose(case)
    assert best.strength is not None
    made = rows.add(controls.ways(best.strength, removes=_removes(case, best, discovery)))
    return Evaluation(
        behaviour=describe(judge),
        target=wanted,
        conditions=[base, *tried, *made],
        chosen=best,
        findings=verdict(replace(case, controls=made)),
        replies=rows.replies,
        labels=rows.labels,
        prompts=list(prompts),
        neutral_tokens=sum(len(ids) for _, ids in plain),
        left_out=_left_out(controls, draws),
    )


def _targets(prompts: Sequence[Prompt], target: Sequence[str] | None) -> list[str]:
    """The sets that show the behaviour, all where none is named; raises PromptError for one that is not there."""
    sets = list(dict.fromkeys(p.set for p in prompts))
    if unknown := [name for name in target or () if name not in sets]:
        raise PromptError(f"there is no set {unknown[0]!r}: the sets are {', '.join(sets)}")
    return list(target or sets)


def _removes(case: Case, best: Condition, discovery: Sequence[Prompt]) -> bool:
    """Whether edits lead away from the target sets' mean: what they show goes, or what they do not show comes."""
    others = {prompt.set for prompt in discovery} - set(case.target)
    rates = [case.base.sets[name].behaviour_rate for name in others if name in case.base.sets]
    known = [rate for rate in rates if rate is not None]
    elsewhere = sum(known) / len(known) if known else 0.0
    shows = (case.base.behaviour_rate or 0.0) >= elsewhere
    return (case.moved(best) <= 0) == shows


def _strengths(edits: Sequence[Edit], sweep: Sequence[float | int]) -> list[float]:
    if len(sweep) > 1 and all(edit.op in ("clamp", "readout_clamp") for edit in edits):
        raise PromptError("a clamp has a target and no multiples of it: leave --sweep out")
    strengths = [float(strength) for strength in dict.fromkeys(sweep) if strength]
    if not strengths:
        raise PromptError("--sweep has no strength that edits anything")
    return strengths


def _edited(saes: Sequence[Sae], edits: Sequence[Edit]) -> list[Sae]:
    return [sae for sae in saes if any(edit.layer == sae.spec.layer for edit in edits)]


def _named(edits: Sequence[Edit]) -> str:
    """How many of what is edited."""
    features, directions = (
        len({e.name for e in edits if e.feature is not None}),
        sum(e.feature is None for e in edits),
    )
    said = [
        f"{n} {what}{'s' if n > 1 else ''}"
        for n, what in ((features, "feature"), (directions, "direction"))
        if n
    ]
    return " and ".join(said)


def _left_out(controls: Controls, draws: int) -> list[str]:
    """Controls that could not be measured, and what they would need."""
    lines = []
    if not controls.means:
        lines.append(
            "difference of means: it needs discovery prompts of sets that show the behaviour and of others"
        )
    if not controls.instruction:
        lines.append("prompt only: it needs an instruction (--instruction)")
    if not draws:
        lines.append("random feature, random direction: no draws were asked for")
    return lines
