"""What is computed together, and what need not be computed twice: equal prompts and shared prefixes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saescope.engine.lm import LM
from saescope.engine.residual import is_edited
from saescope.engine.tokens import tokenize
from saescope.errors import PromptError
from saescope.sources.prompts import Prompt

# Longer batches are not faster: their activations are asked from the system anew for every layer.
BATCH_TOKENS = 2048
LEAST_PREFIX, LEAST_GAIN = 16, 64
_DEPTH = 50
# Rows at least this wide are filled with several short prompts; wider ones would spend their time on attention.
_ROW_WIDTH = 64

Row = list[int]


@dataclass(frozen=True)
class Batch:
    """Prompts in rows, and how many first tokens they all share: those are computed once, before them."""

    lines: list[Row]
    prefix: int = 0

    @property
    def prompts(self) -> list[int]:
        """The prompts in the order they are laid out."""
        return [prompt for line in self.lines for prompt in line]


@dataclass(frozen=True)
class BatchPlan:
    """Token ids of every prompt, the batches they are computed in, and the copies of each that need no computing."""

    rows: list[list[int]]
    batches: list[Batch]
    copies: dict[int, list[int]]

    def order(self, number: int) -> list[int]:
        """The prompts of one batch in the order of its tokens, each followed by its copies."""
        return [
            p
            for prompt in self.batches[number].prompts
            for p in (prompt, *self.copies.get(prompt, ()))
        ]

    def lengths(self, number: int) -> list[int]:
        """Tokens of those prompts."""
        return [len(self.rows[prompt]) for prompt in self.order(number)]

    def suffixes(self, number: int) -> list[list[int]]:
        """Token ids of every prompt without what the batch shares (prompts of other batches as they are)."""
        shared = self.batches[number].prefix
        return [row[shared:] for row in self.rows]

    def source(self, number: int) -> Int[Tensor, "n"] | None:
        """Which computed row each token's residual is: the shared prefix first, then the prompts; None for its own."""
        batch = self.batches[number]
        if not batch.prefix and not any(prompt in self.copies for prompt in batch.prompts):
            return None
        parts, start = [], batch.prefix
        for prompt in batch.prompts:
            own = torch.arange(start, start + len(self.rows[prompt]) - batch.prefix)
            start += len(own)
            whole = torch.cat([torch.arange(batch.prefix), own])
            parts += [whole] * (1 + len(self.copies.get(prompt, ())))
        return torch.cat(parts)


def plan_batches(lm: LM, prompts: Sequence[Prompt], batch_tokens: int = BATCH_TOKENS) -> BatchPlan:
    """Tokenise, and divide into batches of at most `batch_tokens` tokens that are computed."""
    if batch_tokens < 1:
        raise PromptError(f"--batch-tokens is {batch_tokens}: it must be at least 1")
    rows = tokenize(lm, prompts)
    if is_edited(
        lm
    ):  # edits tell first positions, last ones and sinks by rows: a prompt is a pass of its own
        return plan_token_batches(rows, 1, packed=False, shares=False)
    return plan_token_batches(
        rows, batch_tokens, packed=lm.packs_prompts, shares=lm.shares_prefixes
    )


def plan_token_batches(
    rows: Sequence[list[int]], budget: int, *, packed: bool, shares: bool
) -> BatchPlan:
    """Divide prompts into batches of at most `budget` computed tokens; prompts with the same tokens are computed once.

    If `shares`, a prefix that several prompts begin with is computed once for them.
    """
    first: dict[tuple[int, ...], int] = {}
    copies: dict[int, list[int]] = {}
    for prompt, row in enumerate(rows):
        known = first.setdefault(tuple(row), prompt)
        if known != prompt:
            copies.setdefault(known, []).append(prompt)
    single = sorted(first.values())
    groups = list(_groups(rows, single)) if shares else []
    alone = sorted(set(single) - {prompt for members, _ in groups for prompt in members})
    batches = _batches(rows, alone, 0, budget, packed)
    for members, prefix in groups:
        # What attends to a long prefix needs memory for it in every row.
        batches += _batches(rows, members, prefix, max(1, budget // (1 + prefix // 512)), False)
    return BatchPlan(list(rows), batches, copies)


def _batches(
    rows: Sequence[list[int]], members: Sequence[int], prefix: int, budget: int, packed: bool
) -> list[Batch]:
    lengths = [len(rows[prompt]) - prefix for prompt in members]
    planned = divide(lengths, budget, packed=packed)
    return [Batch([[members[at] for at in line] for line in lines], prefix) for lines in planned]


def _groups(rows: Sequence[list[int]], prompts: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Groups of prompts with the prefix each shares, where sharing saves enough."""
    ordered = sorted(prompts, key=lambda prompt: rows[prompt])
    common = [_common(rows[a], rows[b]) for a, b in pairwise(ordered)]
    for gain, start, end, prefix in _divide(common, 0, len(ordered), 0)[1]:
        if gain >= LEAST_GAIN and prefix >= LEAST_PREFIX:
            yield sorted(ordered[start:end]), prefix


Group = tuple[int, int, int, int]  # tokens saved, start, end, tokens shared


def _divide(common: Sequence[int], start: int, end: int, depth: int) -> tuple[int, list[Group]]:
    """The division of sorted prompts start..end that saves most: as one group, or cut where least is shared."""
    if end - start < 2:
        return 0, []
    least = min(common[start : end - 1])
    whole = (end - start - 1) * least
    if depth == _DEPTH:
        return whole, [(whole, start, end, least)]
    cuts = [start, *(at + 1 for at in range(start, end - 1) if common[at] == least), end]
    parts = [_divide(common, a, b, depth + 1) for a, b in pairwise(cuts)]
    saved = sum(gain for gain, _ in parts)
    if saved > whole:
        return saved, [group for _, groups in parts for group in groups]
    return whole, [(whole, start, end, least)]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are the same, less one where that would be all of one of them."""
    most = min(len(a), len(b)) - 1
    return next((n for n in range(most) if a[n] != b[n]), most)


@dataclass(frozen=True)
class TokenBatch:
    """One batch: rows of one or several prompts after one another, filled with 0 on the right.

    Causal attention never looks to the right, so filling changes no real position. Where a row holds several prompts,
    `positions` begins anew with each, and transformers keeps attention within them; it is None where no row does.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"] | None


def divide(lengths: Sequence[int], budget: int, *, packed: bool) -> list[list[Row]]:
    """Divide prompts into batches of rows, at most `budget` tokens each with what is filled up; longest first.

    Every batch is as wide as its longest prompt, or 64. If `packed`, a prompt goes into the first row with room for
    it; else it has a row of its own. A prompt over the budget goes alone.
    """
    batches: list[list[Row]] = []
    room: list[int] = []
    width = 0
    for prompt in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[prompt]
        fitting = (
            next((row for row, free in enumerate(room) if length <= free), None) if packed else None
        )
        if fitting is not None:
            batches[-1][fitting].append(prompt)
            room[fitting] -= length
            continue
        if (
            not batches
            or (len(room) + 1) * width > budget
            or (not packed and 4 * length < 3 * width)
        ):
            batches.append([])
            room = []
            width = max(length, min(_ROW_WIDTH, budget)) if packed else length
        batches[-1].append([prompt])
        room.append(width - length)
    return batches


def lay_out(
    batch: Sequence[Row], rows: Sequence[Sequence[int]], device: torch.device
) -> TokenBatch:
    """One batch of the prompts' token ids as tensors."""
    width = max(sum(len(rows[p]) for p in row) for row in batch)
    ids, positions = torch.zeros(2, len(batch), width, dtype=torch.int64)
    mask = torch.zeros(len(batch), width, dtype=torch.bool)
    for line, row in enumerate(batch):
        at = 0
        for prompt in row:
            end = at + len(rows[prompt])
            ids[line, at:end] = torch.tensor(rows[prompt])
            positions[line, at:end] = torch.arange(end - at)
            mask[line, at:end] = True
            at = end
    several = any(len(row) > 1 for row in batch)
    return TokenBatch(ids.to(device), mask.to(device), positions.to(device) if several else None)
