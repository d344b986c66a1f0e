"""Replies under many arms: rows of the same batches, each with the edits of its arm."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import final

from saescope.control.conditions import steered_rows
from saescope.control.evaluation.arms import Arm
from saescope.control.receipts import Receipt
from saescope.engine.batch_rows import rows_at_once
from saescope.engine.generate import Generation, generate_batch, reads_padding
from saescope.engine.lm import LM
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.sources.prompts import Prompt


@dataclass(frozen=True)
class ReplyOptions:
    """How replies are written."""

    max_new_tokens: int
    thinking: bool | None


@dataclass
class ArmReplies:
    """Replies under one arm, and what its edits did."""

    by_prompt: dict[int, Generation] = field(default_factory=dict)
    applied: bool = False
    _positions: int = 0
    _ratio_sum: float = 0.0
    _spread_ratio_sum: float | None = 0.0

    @property
    def generations(self) -> list[Generation]:
        """The replies in the order of the prompts."""
        return [self.by_prompt[prompt] for prompt in sorted(self.by_prompt)]

    @property
    def delta_norm_ratio(self) -> float:
        """Mean of |change| / |residual| over the positions that the edits target."""
        return self._ratio_sum / max(self._positions, 1)

    @property
    def spread_ratio(self) -> float | None:
        """The same beside the spread of the residuals about their mean; None if it is not known."""
        if self._spread_ratio_sum is None:
            return None
        return self._spread_ratio_sum / max(self._positions, 1)

    def add(
        self, prompts: Sequence[int], replies: Sequence[Generation], receipt: Receipt | None
    ) -> None:
        """Add the replies of one batch."""
        self.by_prompt.update(zip(prompts, replies, strict=True))
        if receipt is not None:
            self.applied |= receipt.applied
            self._positions += receipt.positions
            self._ratio_sum += receipt.delta_norm_ratio * receipt.positions
            ratio = receipt.spread_ratio
            if ratio is None or self._spread_ratio_sum is None:
                self._spread_ratio_sum = None
            else:
                self._spread_ratio_sum += ratio * receipt.positions


@final
class ReplyBatches:
    """Generates the replies to the same prompts under many arms.

    `advance` is called with the number of replies that are new.
    """

    def __init__(
        self,
        lm: LM,
        saes: Sequence[Sae],
        prompts: Sequence[Prompt],
        options: ReplyOptions,
        advance: Callable[[int], None],
    ) -> None:
        self._lm = lm
        self._saes = saes
        self._prompts = prompts
        self._options = options
        self._advance = advance

    def under(self, arms: Sequence[Arm]) -> Iterator[tuple[Arm, ArmReplies]]:
        """Yield each arm with its replies, as soon as all of them are written.

        A batch holds as many whole arms as memory allows. Arms with an instruction have prompts of
        their own, and batches of their own.
        """
        by_instruction = sorted(arms, key=lambda arm: arm.instruction or "")
        for _, group in groupby(by_instruction, key=lambda arm: arm.instruction):
            same_prompts = list(group)
            prompts = same_prompts[0].prompts(self._lm, self._prompts)
            thinking = self._options.thinking
            rows = [prompt_ids(self._lm, prompt, thinking=thinking) for prompt in prompts]
            if not rows:
                yield from ((arm, ArmReplies()) for arm in same_prompts)
                continue
            limit = rows_at_once(self._lm, max(map(len, rows)), self._options.max_new_tokens)
            n_arms = max(1, limit // len(rows))
            for start in range(0, len(same_prompts), n_arms):
                together = same_prompts[start : start + n_arms]
                batches = _batches(self._lm, rows, max(1, limit // len(together)))
                yield from self._run(together, prompts, batches)

    def _run(
        self, arms: Sequence[Arm], prompts: Sequence[Prompt], batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[Arm, ArmReplies]]:
        results = [ArmReplies() for _ in arms]
        conditions = [arm.condition for arm in arms]
        for batch in batches:
            rows = [prompts[index] for _ in arms for index in batch]
            with steered_rows(self._lm, self._saes, conditions, len(batch)) as receipts:
                replies = self._generate(rows)
            for n, (result, receipt) in enumerate(zip(results, receipts, strict=True)):
                of_arm = replies[n * len(batch) : (n + 1) * len(batch)]
                result.add(batch, of_arm, receipt)
        yield from zip(arms, results, strict=True)

    def _generate(self, rows: Sequence[Prompt]) -> list[Generation]:
        """Generate the replies of one batch, and report them in step with the tokens written."""
        n_tokens = reported = 0

        def count(_row: int, _token: int) -> None:
            nonlocal n_tokens, reported
            n_tokens += 1
            if n_tokens % self._options.max_new_tokens == 0:
                reported += 1
                self._advance(1)

        replies = generate_batch(
            self._lm,
            rows,
            max_new_tokens=self._options.max_new_tokens,
            thinking=self._options.thinking,
            on_token=count,
        )
        self._advance(len(rows) - reported)
        return replies


def _batches(lm: LM, rows: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Divide prompts into batches; a model that would read padding gets prompts of one length."""
    order = list(range(len(rows)))
    lengths = [0] * len(rows)
    if reads_padding(lm, rows):
        lengths = [len(row) for row in rows]
        order.sort(key=lambda index: lengths[index])
    batches = []
    for _, group in groupby(order, key=lambda index: lengths[index]):
        same = list(group)
        batches += [same[start : start + limit] for start in range(0, len(same), limit)]
    return batches
