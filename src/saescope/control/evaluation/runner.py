"""Runs arms on the same prompts and texts: replies, damage, labels, figures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from saescope.control.evaluation.arm_results import (
    ArmOutput,
    ArmResult,
    EvalSet,
    JudgedOutput,
    arm_result,
    pooled,
)
from saescope.control.evaluation.arms import Arm
from saescope.control.evaluation.damage import Damage, damage
from saescope.control.evaluation.judge import Judge, Label, Reply, label_replies
from saescope.engine.generate import Generation, generate_batch
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.resume_cache import ResumeCache, key_of

_BATCH_PROMPTS = 32
Progress = Callable[[int, int], None]
"Called with the number of arms that are done, and of all arms."


@dataclass(frozen=True)
class NeutralText:
    """Token ids of a neutral text, and its set."""

    set: str
    ids: list[int]


@dataclass(frozen=True)
class ArmRunner:
    """Runs the model under arms. Outputs that the cache has are not computed again."""

    lm: LM
    saes: Sequence[Sae]
    prompts: Sequence[Prompt]
    neutral: Sequence[NeutralText]
    max_new_tokens: int
    thinking: bool | None
    cache: ResumeCache
    advance: Callable[[], None]
    "Called after every arm."

    def run(self, arms: Sequence[Arm]) -> list[ArmOutput]:
        """Replies and damage under each arm."""
        keys = [self._key(arm) for arm in arms]
        missing = [arm for arm, key in zip(arms, keys, strict=True) if key not in self.cache]
        damages = self._damages(missing)
        for arm, key in zip(arms, keys, strict=True):
            if key not in self.cache:
                output = self._run(arm, damages[arm.title])
                self.cache.put(key, output.to_plain())
            self.advance()
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
                self.lm, batch, max_new_tokens=self.max_new_tokens, thinking=self.thinking
            )
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
        lm, saes = self.lm, [(sae.spec.layer, sae.spec.fingerprint) for sae in self.saes]
        model = [lm.spec.repo, lm.spec.fingerprint, str(lm.dtype), lm.device.type, saes]
        prompts = fingerprint([PromptSet("", tuple(self.prompts))])
        neutral = [[text.set, text.ids] for text in self.neutral]
        return key_of(
            "arm", model, arm.key_parts, prompts, neutral, self.max_new_tokens, self.thinking
        )


@dataclass
class Measurements:
    """Results of the arms measured so far, with their replies and labels. The first is unedited."""

    runner: ArmRunner
    eval_set: EvalSet
    judge: Judge
    replies: dict[str, list[str]] = field(default_factory=dict)
    "Texts by the arm's title."
    labels: dict[str, list[Label]] = field(default_factory=dict)
    "Labels by the arm's title."
    baseline: JudgedOutput | None = None

    def add(self, arms: Sequence[Arm]) -> list[ArmResult]:
        """One result per arm, the draws of a control pooled to one."""
        each = self.add_each(arms)
        groups: dict[str, list[int]] = {}
        for n, arm in enumerate(arms):
            groups.setdefault(arm.name if arm.draw else arm.title, []).append(n)
        results = []
        for group in groups.values():
            first = group[0]
            if arms[first].draw:
                draws = [arms[n].draw for n in group]
                results.append(pooled([each[n] for n in group], draws))
            else:
                results.append(each[first])
        return results

    def add_each(self, arms: Sequence[Arm]) -> list[ArmResult]:
        """One result per arm."""
        outputs = self.runner.run(arms)
        return [self._result(arm, output) for arm, output in zip(arms, outputs, strict=True)]

    def _result(self, arm: Arm, output: ArmOutput) -> ArmResult:
        prompts = arm.prompts(self.runner.lm, self.runner.prompts)
        replies = [
            Reply(prompt, reply.ids, reply.text)
            for prompt, reply in zip(prompts, output.replies, strict=True)
        ]
        judged = JudgedOutput(output, label_replies(self.judge, replies))
        result = arm_result(arm, self.eval_set, judged, self.baseline)
        if self.baseline is None:
            self.baseline = judged
        self.replies[arm.title] = judged.texts
        self.labels[arm.title] = judged.labels
        return result


def neutral_texts(lm: LM, prompts: Sequence[Prompt], target: Sequence[str]) -> list[NeutralText]:
    """The neutral texts of at least two tokens, without those of target sets."""
    neutral = [NeutralText(p.set, prompt_ids(lm, p)) for p in prompts if p.set not in target]
    return [text for text in neutral if len(text.ids) > 1]


def counter(progress: Progress | None, total: int) -> Callable[[], None]:
    """A function that calls `progress` with one more each time; `total` grows if it is too small."""
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, max(done, total))

    return advance
