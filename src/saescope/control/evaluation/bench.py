"""What is measured under each way of editing, the same for an evaluation and a selection: replies, labels, damage.

Every way is measured once: what is kept of work that was interrupted is taken from there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from saescope.control.evaluation.behaviour import Judge, Label, Reply, ReplyJudge, label_replies
from saescope.control.evaluation.conditions import Asked, Condition, Measured, condition, pooled
from saescope.control.evaluation.damage import Damage, damage
from saescope.control.evaluation.ways import Way, instructed
from saescope.engine.generate import Generation, generate
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.resume_cache import ResumeCache, key_of

_BATCH = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Bench:
    """What every way is measured on, and how."""

    lm: LM
    saes: Sequence[Sae]
    prompts: Sequence[Prompt]
    neutral: Sequence[tuple[str, list[int]]]
    max_new_tokens: int
    thinking: bool | None
    kept: ResumeCache
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
        return (
            instructed(self.lm, self.prompts, way.instruction) if way.instruction else self.prompts
        )

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
        if not self.neutral or not edited:
            return [None] * len(ways)
        conditions = [partial(way.read, self.lm, self.saes) for way in edited]
        sets, rows = zip(*self.neutral, strict=True)
        found = iter(damage(self.lm, rows, conditions, sets))
        return [next(found) if way.instruction is None else None for way in ways]

    def _reply(self, prompts: Sequence[Prompt]) -> list[Generation]:
        written: list[Generation] = []
        for start in range(0, len(prompts), _BATCH):
            batch = prompts[start : start + _BATCH]
            written += generate(
                self.lm, batch, max_new_tokens=self.max_new_tokens, thinking=self.thinking
            )
        return written

    def _key(self, way: Way) -> str:
        lm, saes = self.lm, [(sae.spec.layer, sae.spec.fingerprint) for sae in self.saes]
        model = [lm.spec.repo, lm.spec.fingerprint, str(lm.dtype), lm.device.type, saes]
        prompts = fingerprint([PromptSet("", tuple(self.prompts))])
        return key_of(
            "way", model, way.parts, prompts, self.neutral, self.max_new_tokens, self.thinking
        )


@dataclass
class Rows:
    """Rows as they are made, with the replies and labels behind them."""

    bench: Bench
    asked: Asked
    judge: Judge | ReplyJudge
    replies: dict[str, list[str]] = field(default_factory=dict)
    labels: dict[str, list[Label]] = field(default_factory=dict)
    base: tuple[Measured, list[Label]] | None = None

    def add(self, ways: Sequence[Way]) -> list[Condition]:
        """A row for each way, one for several draws of the same."""
        rows = self.each(ways)
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

    def each(self, ways: Sequence[Way]) -> list[Condition]:
        """A row for every way by itself."""
        return [
            self._row(way, one) for way, one in zip(ways, self.bench.measure(ways), strict=True)
        ]

    def _row(self, way: Way, measured: Measured) -> Condition:
        prompts = self.bench.asked(way)
        written = [
            Reply(prompt, one.ids, one.text)
            for prompt, one in zip(prompts, measured.written, strict=True)
        ]
        labels = label_replies(self.judge, written)
        row = condition(way.name, way.strength, self.asked, measured, labels, self.base)
        self.base = self.base or (measured, labels)
        self.replies[way.title] = [one.text for one in written]
        self.labels[way.title] = labels
        return row


def neutral_rows(
    lm: LM, neutral: Sequence[Prompt], target: Sequence[str]
) -> list[tuple[str, list[int]]]:
    """Set and token ids of neutral texts with a second token, those of target sets left out."""
    tokens = [
        (prompt.set, prompt_ids(lm, prompt)) for prompt in neutral if prompt.set not in target
    ]
    return [(name, ids) for name, ids in tokens if len(ids) > 1]


def counting(progress: Progress | None, total: int) -> Callable[[], None]:
    """Calls `progress` with one more done each time, of at least `total`."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, max(done, total))

    return advance
