"""Runs arms on the same prompts and neutral texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.damage import Damage, damage
from saescope.control.evaluation.settings import EvaluateSettings, SelectSettings
from saescope.engine.generate import Generation, generate_batch
from saescope.engine.lm import LM
from saescope.engine.numerics import library_versions, numerics
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.resume_cache import ResumeCache, key_of

_BATCH_PROMPTS = 32
Progress = Callable[[int, int], None]
"Called with the number of replies that are written, and of all replies."


@dataclass(frozen=True)
class NeutralText:
    """Token ids of a neutral text, and its set."""

    set: str
    ids: list[int]


@dataclass(frozen=True)
class ArmOutput:
    """What the model did under one arm: replies, size of the edits, damage."""

    replies: list[Generation]
    applied: bool
    delta_norm_ratio: float
    damage: Damage | None

    def to_plain(self) -> dict[str, Any]:
        """Return a JSON-compatible dict for the cache."""
        replies = [vars(reply) for reply in self.replies]
        damage = vars(self.damage) if self.damage else None
        return {**vars(self), "replies": replies, "damage": damage}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "ArmOutput":
        """The output that `to_plain` was called on."""
        replies = [Generation(**reply) for reply in plain["replies"]]
        damage = Damage(**plain["damage"]) if plain["damage"] else None
        return cls(replies, bool(plain["applied"]), float(plain["delta_norm_ratio"]), damage)


@dataclass(frozen=True)
class ArmRunner:
    """Runs the model under arms. Outputs that the cache has are not computed again."""

    lm: LM
    saes: Sequence[Sae]
    prompts: Sequence[Prompt]
    neutral: Sequence[NeutralText]
    settings: EvaluateSettings | SelectSettings
    cache: ResumeCache
    counter: "ReplyCounter"

    def run(self, arms: Sequence[Arm]) -> list[ArmOutput]:
        """Replies and damage under each arm."""
        keys = [self._key(arm) for arm in arms]
        missing = [arm for arm, key in zip(arms, keys, strict=True) if key not in self.cache]
        self.counter.start(len(arms) * len(self.prompts))
        damages = self._damages(missing)
        for arm, key in zip(arms, keys, strict=True):
            if key not in self.cache:
                output = self._run(arm, damages[arm.title])
                self.cache.put(key, output.to_plain())
            else:
                self.counter.add(len(self.prompts))
        return [ArmOutput.from_plain(self.cache[key]) for key in keys]

    def _run(self, arm: Arm, arm_damage: Damage | None) -> ArmOutput:
        with arm.steered(self.lm, self.saes) as receipt:
            replies = self._generate(arm.prompts(self.lm, self.prompts))
        if receipt is None:
            return ArmOutput(replies, applied=False, delta_norm_ratio=0.0, damage=arm_damage)
        return ArmOutput(replies, receipt.applied, receipt.delta_norm_ratio, arm_damage)

    def _generate(self, prompts: Sequence[Prompt]) -> list[Generation]:
        replies: list[Generation] = []
        for start in range(0, len(prompts), _BATCH_PROMPTS):
            batch = prompts[start : start + _BATCH_PROMPTS]
            replies += generate_batch(
                self.lm,
                batch,
                max_new_tokens=self.settings.max_new_tokens,
                thinking=self.settings.thinking,
            )
            self.counter.add(len(batch))
        return replies

    def _damages(self, arms: Sequence[Arm]) -> dict[str, Damage | None]:
        """Damage by the arm's title; None for an instruction, which neutral text does not get."""
        damages: dict[str, Damage | None] = dict.fromkeys(arm.title for arm in arms)
        edited = [arm for arm in arms if arm.instruction is None]
        if not self.neutral or not edited:
            return damages
        blocks = [partial(arm.steered_everywhere, self.lm, self.saes) for arm in edited]
        rows = [text.ids for text in self.neutral]
        sets = [text.set for text in self.neutral]
        measured = damage(self.lm, rows, blocks, sets)
        damages.update(zip([arm.title for arm in edited], measured, strict=True))
        return damages

    def _key(self, arm: Arm) -> str:
        lm, settings = self.lm, self.settings
        saes = [(sae.spec.layer, sae.spec.fingerprint) for sae in self.saes]
        model = [lm.spec.repo, lm.whole_fingerprint, str(lm.dtype), lm.device.type, saes]
        computed = [library_versions(), numerics(lm.device)]
        prompts = fingerprint([PromptSet("", tuple(self.prompts))])
        neutral = [[text.set, text.ids] for text in self.neutral]
        replies = [settings.max_new_tokens, settings.thinking]
        return key_of("arm 2", model, computed, arm.key_parts, prompts, neutral, replies)


def neutral_texts(lm: LM, prompts: Sequence[Prompt], target: Sequence[str]) -> list[NeutralText]:
    """The neutral texts of at least two tokens, without those of target sets."""
    neutral = [NeutralText(p.set, prompt_ids(lm, p)) for p in prompts if p.set not in target]
    return [text for text in neutral if len(text.ids) > 1]


@final
class ReplyCounter:
    """Counts replies up to a total, which grows if more arms are run than were planned."""

    def __init__(self, progress: Progress | None, planned: int) -> None:
        self._progress = progress
        self._total = planned
        self._started = self._done = 0
        self.add(0)

    def start(self, n: int) -> None:
        """Note that this many more replies will be written."""
        self._started += n
        self._total = max(self._total, self._started)

    def add(self, n: int) -> None:
        """Note that this many more replies are written."""
        self._done += n
        if self._progress:
            self._progress(self._done, self._total)
