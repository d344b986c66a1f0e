"""Runs arms on the same prompts and neutral texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, final

from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.damage import Damage, DamageMeter
from saescope.control.evaluation.reply_batches import ReplyBatches, ReplyOptions
from saescope.control.evaluation.settings import EvaluateSettings, SelectSettings
from saescope.engine.generate import Generation
from saescope.engine.lm import LM
from saescope.engine.numerics import library_versions, numerics
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.resume_cache import ResumeCache, key_of

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
    spread_ratio: float | None
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
        return cls(**{**plain, "replies": replies, "damage": damage})


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
        missing = {key: arm for arm, key in zip(arms, keys, strict=True) if key not in self.cache}
        self.counter.start(len(arms) * len(self.prompts))
        self.counter.add((len(arms) - len(missing)) * len(self.prompts))
        damages = dict(zip(missing, self.damages(list(missing.values())), strict=True))
        key_of_arm = {id(arm): key for key, arm in missing.items()}
        for arm, replies in self._replies.under(list(missing.values())):
            key = key_of_arm[id(arm)]
            output = ArmOutput(
                replies.generations,
                replies.applied,
                replies.delta_norm_ratio,
                replies.spread_ratio,
                damages[key],
            )
            self.cache.put(key, output.to_plain())
        return [ArmOutput.from_plain(self.cache[key]) for key in keys]

    @property
    def _replies(self) -> ReplyBatches:
        options = ReplyOptions(self.settings.max_new_tokens, self.settings.thinking)
        return ReplyBatches(self.lm, self.saes, self.prompts, options, self.counter.add)

    def damages(self, arms: Sequence[Arm]) -> list[Damage | None]:
        """Damage under each arm, measured once per arm and without generating.

        None if there is no neutral text, and for an instruction, which neutral text does not get.
        """
        keys = [self._damage_key(arm) for arm in arms]
        missing = {
            key: arm
            for arm, key in zip(arms, keys, strict=True)
            if arm.instruction is None and key not in self.cache
        }
        if self.neutral and missing:
            blocks = [
                partial(arm.steered_everywhere, self.lm, self.saes) for arm in missing.values()
            ]
            for key, one in zip(missing, self._damage_meter.measure(blocks), strict=True):
                self.cache.put(key, vars(one))
        return [Damage(**self.cache[key]) if key in self.cache else None for key in keys]

    @cached_property
    def _damage_meter(self) -> DamageMeter:
        rows = [text.ids for text in self.neutral]
        return DamageMeter(self.lm, rows, [text.set for text in self.neutral])

    def _key(self, arm: Arm) -> str:
        prompts = fingerprint([PromptSet("", tuple(self.prompts))])
        replies = [self.settings.max_new_tokens, self.settings.thinking]
        return key_of("arm 4", *self._computed_on, arm.key_parts, prompts, self._texts, replies)

    def _damage_key(self, arm: Arm) -> str:
        return key_of("damage", *self._computed_on, arm.key_parts, self._texts)

    @property
    def _computed_on(self) -> list[Any]:
        """The model, SAEs and numerics, for cache keys."""
        lm = self.lm
        saes = [(sae.spec.layer, sae.spec.fingerprint) for sae in self.saes]
        model = [lm.spec.repo, lm.whole_fingerprint, str(lm.dtype), lm.device.type, saes]
        return [model, [library_versions(), numerics(lm.device)]]

    @property
    def _texts(self) -> list[Any]:
        return [[text.set, text.ids] for text in self.neutral]


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
