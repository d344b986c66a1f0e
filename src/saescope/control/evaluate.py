"""Before and after: what edits do to a behaviour on held-out prompts, and to everything else, beside controls.

Every condition is measured on the same prompts: without edits, with them at every strength, and, at the strength that
does most without harm, under the controls. An effect counts for these edits only where the controls do not have it too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, final

from saescope.control.behaviour import InLanguage, Judge, Label, Reply, ReplyJudge, describe, label_replies
from saescope.control.conditions import Asked, Condition, Measured, condition, pooled
from saescope.control.damage import Damage, damage
from saescope.control.edits import Edit
from saescope.control.verdict import Case, Finding, choose, verdict
from saescope.control.ways import Controls, Way, instructed, mean_directions, other_features, times
from saescope.engine.generate import Generation, generate
from saescope.engine.lm import LM
from saescope.engine.sae import TopKSae
from saescope.engine.tokens import prompt_ids
from saescope.errors import PromptError
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.kept import Kept, key_of
from saescope.table import Table

_BATCH = 32
Progress = Callable[[int, int], None]


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
                {"id": p.id, "set": p.set, "prompt": p.shown, "by": {k: texts[n] for k, texts in self.replies.items()},
                 "labels": {k: labels[n] for k, labels in self.labels.items()}}
                for n, p in enumerate(self.prompts)
            ],
        }  # fmt: skip

    def rows(self) -> list[dict[str, Any]]:
        """A row a condition."""
        nested = ("sets", "kl_sets", "languages", "each", "spread", "ci")
        return [
            {**{k: v for k, v in c.to_dict().items() if k not in nested}, "ci_low": c.ci[0], "ci_high": c.ci[1]}
            for c in self.conditions
        ]


@dataclass(frozen=True)
class _Bench:
    """What every way is measured on, and how."""

    lm: LM
    saes: Sequence[TopKSae]
    prompts: Sequence[Prompt]
    neutral: Mapping[int, str]
    rows: Sequence[Sequence[int]]
    max_new_tokens: int
    thinking: bool | None
    kept: Kept
    advance: Callable[[], None]

    def measure(self, ways: Sequence[Way]) -> list[Measured]:
        """Replies and damage under each way, taken from what is kept where it was measured before."""
        keys = [self._key(way) for way in ways]
        missing = [way for way, key in zip(ways, keys, strict=True) if key not in self.kept]
        hurt = dict(zip([way.title for way in missing], self._damage(missing), strict=True))
        for way, key in zip(ways, keys, strict=True):
            if key not in self.kept:
                self.kept.put(key, self._measure(way, hurt[way.title]).to_plain())
            self.advance()
        return [Measured.from_plain(self.kept[key]) for key in keys]

    def asked(self, way: Way) -> Sequence[Prompt]:
        """The prompts as this way puts them."""
        return instructed(self.lm, self.prompts, way.instruction) if way.instruction else self.prompts

    def _measure(self, way: Way, hurt: Damage | None) -> Measured:
        with way.enter(self.lm, self.saes) as receipt:
            written = self._reply(self.asked(way))
        return Measured(
            written=written,
            applied=receipt.applied if receipt else False,
            delta_norm_ratio=receipt.delta_norm_ratio if receipt else 0.0,
            damage=hurt,
        )

    def _damage(self, ways: Sequence[Way]) -> list[Damage | None]:
        """Damage under each way; an instruction edits nothing, so neutral text says nothing of it."""
        edited = [way for way in ways if way.instruction is None]
        if not self.rows or not edited:
            return [None] * len(ways)
        conditions = [partial(way.enter, self.lm, self.saes) for way in edited]
        found = iter(damage(self.lm, self.rows, conditions, list(self.neutral.values())))
        return [next(found) if way.instruction is None else None for way in ways]

    def _reply(self, prompts: Sequence[Prompt]) -> list[Generation]:
        written: list[Generation] = []
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            written += generate(self.lm, batch, max_new_tokens=self.max_new_tokens, thinking=self.thinking)
        return written

    def _key(self, way: Way) -> str:
        lm, saes = self.lm, [(sae.spec.layer, sae.spec.fingerprint) for sae in self.saes]
        model = [lm.spec.repo, lm.spec.fingerprint, str(lm.dtype), lm.device.type, saes]
        prompts = fingerprint([PromptSet("", tuple(self.prompts))])
        return key_of("way", model, way.parts, prompts, self.rows, self.neutral, self.max_new_tokens, self.thinking)


@dataclass
class _Rows:
    """Rows as they are made, with the replies and labels behind them."""

    bench: _Bench
    asked: Asked
    judge: Judge | ReplyJudge
    replies: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, list[Label]] = field(default_factory=dict)
    base: tuple[Measured, list[Label]] | None = None

    def add(self, ways: Sequence[Way]) -> list[Condition]:
        """A row for each way, one for several draws of the same."""
        rows = [self._row(way, one) for way, one in zip(ways, self.bench.measure(ways), strict=True)]
        made = []
        for (_, drawn), group in groupby(
            zip(ways, rows, strict=True), key=lambda pair: (pair[0].name, pair[0].drawn != "")
        ):
            members = list(group)
            if drawn:
                made.append(pooled([row for _, row in members], [way.drawn for way, _ in members]))
            else:
                made += [row for _, row in members]
        return made

    def _row(self, way: Way, measured: Measured) -> Condition:
        prompts = self.bench.asked(way)
        written = [Reply(prompt, one.ids, one.text) for prompt, one in zip(prompts, measured.written, strict=True)]
        labels = label_replies(self.judge, written)
        row = condition(way.name, way.strength, self.asked, measured, labels, self.base)
        self.base = self.base or (measured, labels)
        self.replies[way.title] = [one.text for one in written]
        self.labels[way.title] = labels
        return row


def evaluate(
    lm: LM,
    saes: Sequence[TopKSae],
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
    kept: Kept | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Greedy replies to every prompt without edits, with them at every multiple of `sweep`, and under the controls.

    The behaviour's rate is over prompts of the sets `target`, all when left out; right answers are replies that are
    `answers` to the letter, case and spaces aside. Random controls are drawn `draws` times. From `discovery` prompts,
    of target sets and others, the difference of means is made; `instruction` is what a prompt-only control says. What
    is `kept` of an interrupted evaluation is not measured again. Raises PromptError for sets that are not there.
    """
    sets = list(dict.fromkeys(p.set for p in prompts))
    wanted = list(target or sets)
    if unknown := [name for name in wanted if name not in sets]:
        raise PromptError(f"there is no set {unknown[0]!r}: the sets are {', '.join(sets)}")
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
    first = [Way("none"), *(Way("edits", s, tuple(times(edit, s) for edit in edits)) for s in strengths)]
    total = len(first) + len(controls.ways(1.0, removes=True))
    bench = _bench(
        lm,
        saes,
        prompts,
        neutral,
        max_new_tokens,
        thinking,
        Kept() if kept is None else kept,
        _counting(progress, total),
    )
    rows = _Rows(bench, Asked(prompts, wanted, answers), judge)
    base, *tried = rows.add(first)
    case = Case(base, tried, [], _named(edits), isinstance(judge, InLanguage))
    best = choose(case)
    assert best.strength is not None
    made = rows.add(controls.ways(best.strength, removes=case.moved(best) <= 0))
    return Evaluation(
        behaviour=describe(judge),
        target=wanted,
        conditions=[base, *tried, *made],
        chosen=best,
        findings=verdict(Case(base, tried, made, case.features, case.about_language)),
        replies=rows.replies,
        labels=rows.labels,
        prompts=list(prompts),
        neutral_tokens=sum(map(len, bench.rows)),
        left_out=_left_out(controls, draws),
    )


def _strengths(edits: Sequence[Edit], sweep: Sequence[float | int]) -> list[float]:
    if len(sweep) > 1 and all(edit.op in ("clamp", "readout_clamp") for edit in edits):
        raise PromptError("a clamp has a target and no multiples of it: leave --sweep out")
    strengths = [float(strength) for strength in dict.fromkeys(sweep) if strength]
    if not strengths:
        raise PromptError("--sweep has no strength that edits anything")
    return strengths


def _edited(saes: Sequence[TopKSae], edits: Sequence[Edit]) -> list[TopKSae]:
    return [sae for sae in saes if any(edit.layer == sae.spec.layer for edit in edits)]


def _bench(
    lm: LM,
    saes: Sequence[TopKSae],
    prompts: Sequence[Prompt],
    neutral: Sequence[Prompt],
    max_new_tokens: int,
    thinking: bool | None,
    kept: Kept,
    advance: Callable[[], None],
) -> _Bench:
    tokens = [(prompt_ids(lm, prompt), prompt.set) for prompt in neutral]
    usable = [(ids, name) for ids, name in tokens if len(ids) > 1]
    of = {n: name for n, (_, name) in enumerate(usable)}
    return _Bench(lm, saes, prompts, of, [ids for ids, _ in usable], max_new_tokens, thinking, kept, advance)


def _counting(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, max(done, total))

    return advance


def _named(edits: Sequence[Edit]) -> str:
    """How many of what is edited."""
    features, directions = len({e.name for e in edits if e.feature is not None}), sum(e.feature is None for e in edits)
    said = [f"{n} {what}{'s' if n > 1 else ''}" for n, what in ((features, "feature"), (directions, "direction")) if n]
    return " and ".join(said)


def _left_out(controls: Controls, draws: int) -> list[str]:
    """Controls that could not be measured, and what they would need."""
    lines = []
    if not controls.means:
        lines.append("difference of means: it needs discovery prompts of sets that show the behaviour and of others")
    if not controls.instruction:
        lines.append("prompt only: it needs an instruction (--instruction)")
    if not draws:
        lines.append("random feature, random direction: no draws were asked for")
    return lines
