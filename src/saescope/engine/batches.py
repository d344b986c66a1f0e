"""Divide prompts into batches with little padding. Duplicates and shared prefixes run once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from saescope.arguments import COUNT
from saescope.engine.lm import LM
from saescope.engine.residual import is_edited
from saescope.engine.tokens import tokenize
from saescope.sources.prompts import Prompt
from saescope.store.arrays import Indices

# Measured (benchmarks/README.md): larger batches are not faster, because every layer then allocates
# its activations again instead of reusing memory.
BATCH_TOKENS = 2048
# A prefix is shared only if it is this long and saves this many tokens.
MIN_PREFIX_LENGTH = 16
MIN_SAVED_TOKENS = 64
# Bounds the recursion for prompts that share ever longer prefixes.
_MAX_GROUP_DEPTH = 50
# Every row keeps the keys and values of the shared prefix, so a long prefix makes batches smaller:
# `batch_tokens` is divided by 1 + prefix length // this.
_PREFIX_TOKENS_PER_DIVISION = 512
# Minimum width of a packed row; only a longer prompt makes it wider. A wider row would hold more
# prompts, and attention over the whole row would dominate.
_PACKED_ROW_WIDTH = 64
# Without packing, a batch ends before a prompt that fills less of its row than this.
_MIN_ROW_FILL = 0.75
# A budget of 1 token: no two prompts fit, so each gets its own batch.
_ONE_PROMPT_PER_BATCH = 1

Row = list[int]  # indices of the prompts packed into one row


def plan_batches(
    lm: LM, prompts: Sequence[Prompt], batch_tokens: int = BATCH_TOKENS
) -> "BatchPlan":
    """Divide prompts into batches of at most `batch_tokens` tokens, including padding.

    A prompt that is longer gets its own batch. Prompts of an edited model get one batch each.
    """
    COUNT.check("batch_tokens", batch_tokens)
    token_ids = tokenize(lm, prompts)
    if is_edited(lm):
        # Edits find the first position, the last one and sinks per row, and these passes have no
        # padding mask. A row must therefore hold one prompt and no padding.
        return plan_token_batches(token_ids, _ONE_PROMPT_PER_BATCH, packed=False, shares=False)
    return plan_token_batches(
        token_ids, batch_tokens, packed=lm.packs_prompts, shares=lm.shares_prefixes
    )


@dataclass(frozen=True)
class Batch:
    """The prompts of one forward pass, row by row, and the length of their shared prefix.

    The prefix is computed once. The rows then hold only what follows it in each prompt.
    """

    rows: list[Row]
    prefix_length: int = 0

    @property
    def prompts(self) -> list[int]:
        """Indices of the prompts, in the order of the rows."""
        return [prompt for row in self.rows for prompt in row]


@dataclass(frozen=True)
class BatchPlan:
    """Token ids of every prompt, the batches that compute them, and which prompts are duplicates.

    Prompts are named by their index in `token_ids`. `duplicates` maps a computed prompt to the
    prompts with the same tokens, which are not computed.
    """

    token_ids: list[list[int]]
    batches: list[Batch]
    duplicates: dict[int, list[int]]

    def prompt_order(self, batch_index: int) -> list[int]:
        """Return a batch's prompts in the order of its tokens, each followed by its duplicates."""
        order = []
        for prompt in self.batches[batch_index].prompts:
            order += [prompt, *self.duplicates.get(prompt, ())]
        return order

    @property
    def prompt_orders(self) -> list[list[int]]:
        """The prompt order of every batch."""
        return [self.prompt_order(index) for index in range(len(self.batches))]

    def prompt_lengths(self, batch_index: int) -> list[int]:
        """Token counts, in `prompt_order`."""
        return [len(self.token_ids[prompt]) for prompt in self.prompt_order(batch_index)]

    @property
    def lengths(self) -> list[int]:
        """Token counts of all prompts."""
        return [len(ids) for ids in self.token_ids]

    def token_indices(self, batch_index: int) -> Indices:
        """Return each token's index among the tokens of all prompts, in `prompt_order`."""
        starts = self._token_starts
        prompts = self.prompt_order(batch_index)
        return np.concatenate([np.arange(starts[prompt], starts[prompt + 1]) for prompt in prompts])

    @cached_property
    def _token_starts(self) -> Indices:
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def prefix_ids(self, batch_index: int) -> list[int]:
        """Return the token ids of a batch's shared prefix."""
        batch = self.batches[batch_index]
        return self.token_ids[batch.prompts[0]][: batch.prefix_length]

    def suffix_ids(self, batch_index: int) -> dict[int, list[int]]:
        """Return the token ids of a batch's prompts after the shared prefix."""
        batch = self.batches[batch_index]
        return {prompt: self.token_ids[prompt][batch.prefix_length :] for prompt in batch.prompts}

    def residual_indices(self, batch_index: int) -> Int[Tensor, "tokens"] | None:
        """Return each token's index into the batch's computed residuals; None for the identity.

        Prefix residuals come first, then those of suffixes. Duplicates share their indices.
        """
        batch = self.batches[batch_index]
        has_duplicates = any(prompt in self.duplicates for prompt in batch.prompts)
        if not batch.prefix_length and not has_duplicates:
            return None
        prefix = torch.arange(batch.prefix_length)
        indices_by_prompt = []
        start = batch.prefix_length
        for prompt in batch.prompts:
            end = start + len(self.token_ids[prompt]) - batch.prefix_length
            indices = torch.cat([prefix, torch.arange(start, end)])
            n_duplicates = len(self.duplicates.get(prompt, ()))
            indices_by_prompt += [indices] * (1 + n_duplicates)
            start = end
        return torch.cat(indices_by_prompt)

    @property
    def n_distinct_tokens(self) -> int:
        """Tokens of all distinct prompts; a shared prefix counts once per prompt."""
        return sum(len(self.token_ids[p]) for batch in self.batches for p in batch.prompts)


def plan_token_batches(
    token_ids: Sequence[list[int]], batch_tokens: int, *, packed: bool, shares: bool
) -> BatchPlan:
    """Like `plan_batches`, but for tokenized prompts.

    If `packed`, a row may hold several prompts, unless they share a prefix. If `shares`, a common
    prefix is computed once.
    """
    originals, duplicates = _find_duplicates(token_ids)
    groups: list[_PrefixGroup] = []
    if shares:
        groups = list(_prefix_groups(token_ids, originals))
    grouped = {prompt for group in groups for prompt in group.prompts}
    single = [prompt for prompt in originals if prompt not in grouped]
    batches = list(_group_batches(token_ids, _PrefixGroup(single, 0), batch_tokens, packed))
    for group in groups:
        divisor = 1 + group.prefix_length // _PREFIX_TOKENS_PER_DIVISION
        budget = max(1, batch_tokens // divisor)
        batches += _group_batches(token_ids, group, budget, packed=False)
    return BatchPlan(list(token_ids), batches, duplicates)


def _find_duplicates(token_ids: Sequence[list[int]]) -> tuple[list[int], dict[int, list[int]]]:
    """Return the first prompt of every token sequence, and the duplicates of each."""
    first: dict[tuple[int, ...], int] = {}
    duplicates: dict[int, list[int]] = {}
    for prompt, ids in enumerate(token_ids):
        original = first.setdefault(tuple(ids), prompt)
        if original != prompt:
            duplicates.setdefault(original, []).append(prompt)
    return sorted(first.values()), duplicates


@dataclass(frozen=True)
class _PrefixGroup:
    prompts: list[int]
    prefix_length: int


def _group_batches(
    token_ids: Sequence[list[int]], group: _PrefixGroup, batch_tokens: int, packed: bool
) -> Iterator[Batch]:
    lengths = [len(token_ids[prompt]) - group.prefix_length for prompt in group.prompts]
    for rows in divide_into_batches(lengths, batch_tokens, packed=packed):
        prompts = [[group.prompts[index] for index in row] for row in rows]
        yield Batch(prompts, group.prefix_length)


def divide_into_batches(
    lengths: Sequence[int], batch_tokens: int, *, packed: bool
) -> list[list[Row]]:
    """Divide prompts of these lengths into batches of at most `batch_tokens`, including padding.

    The longest come first. Without packing, the width is the longest prompt. With packing, it is at
    least 64 (or `batch_tokens`, if that is less), and a prompt goes into the first row that has
    enough free tokens. A prompt longer than `batch_tokens` gets its own batch.
    """
    batches: list[list[Row]] = []
    free_tokens: list[int] = []  # per row of the last batch
    width = 0
    for prompt in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[prompt]
        row = _first_fitting(free_tokens, length) if packed else None
        if row is not None:
            batches[-1][row].append(prompt)
            free_tokens[row] -= length
            continue
        is_full = (len(free_tokens) + 1) * width > batch_tokens
        wastes_padding = not packed and length < _MIN_ROW_FILL * width
        if not batches or is_full or wastes_padding:
            batches.append([])
            free_tokens = []
            width = max(length, min(_PACKED_ROW_WIDTH, batch_tokens)) if packed else length
        batches[-1].append([prompt])
        free_tokens.append(width - length)
    return batches


def _first_fitting(free_tokens: Sequence[int], length: int) -> int | None:
    return next((row for row, free in enumerate(free_tokens) if length <= free), None)


def _prefix_groups(
    token_ids: Sequence[list[int]], prompts: Sequence[int]
) -> Iterator[_PrefixGroup]:
    """Yield groups of prompts whose common prefix saves enough tokens to be computed once."""
    ordered = sorted(prompts, key=lambda prompt: token_ids[prompt])
    common = [_common_length(token_ids[a], token_ids[b]) for a, b in pairwise(ordered)]
    for span in _best_spans(common, 0, len(ordered), 0):
        if span.saved >= MIN_SAVED_TOKENS and span.prefix_length >= MIN_PREFIX_LENGTH:
            yield _PrefixGroup(sorted(ordered[span.start : span.end]), span.prefix_length)


@dataclass(frozen=True)
class _Span:
    """Prompts start to end (exclusive) in sorted order, which share `prefix_length` tokens."""

    start: int
    end: int
    prefix_length: int

    @property
    def saved(self) -> int:
        """Number of tokens saved by computing the prefix once."""
        return (self.end - self.start - 1) * self.prefix_length


def _best_spans(common: Sequence[int], start: int, end: int, depth: int) -> list[_Span]:
    """Partition sorted prompts `start` to `end` (exclusive) into prefix groups.

    Recursively split where neighbours share the fewest tokens, and keep the split if it saves more
    tokens than a single group would. `common[i]` is the length of the prefix that prompts i and
    i + 1 share.
    """
    if end - start < 2:
        return []
    least = min(common[start : end - 1])
    whole = _Span(start, end, least)
    if depth == _MAX_GROUP_DEPTH:
        return [whole]
    cuts = [index + 1 for index in range(start, end - 1) if common[index] == least]
    divided: list[_Span] = []
    for first, last in pairwise([start, *cuts, end]):
        divided += _best_spans(common, first, last, depth + 1)
    if sum(span.saved for span in divided) > whole.saved:
        return divided
    return [whole]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix.

    It leaves at least one token per prompt, since each must be run.
    """
    limit = min(len(a), len(b)) - 1
    for index in range(limit):
        if a[index] != b[index]:
            return index
    return limit


@dataclass(frozen=True)
class TokenBatch:
    """One batch as tensors: each row holds one or several prompts, padded with 0 on the right.

    Attention is causal, so right padding does not affect real positions. `positions` is None if
    every row holds one prompt. Otherwise it restarts at each prompt, and transformers keeps
    attention within each prompt.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"] | None


def lay_out(
    rows: Sequence[Row],
    token_ids: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    device: torch.device,
) -> TokenBatch:
    """Return the tensors of one batch, from the token ids of its prompts."""
    width = max(sum(len(token_ids[prompt]) for prompt in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    positions = torch.zeros(len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row_index, row in enumerate(rows):
        start = 0
        for prompt in row:
            end = start + len(token_ids[prompt])
            ids[row_index, start:end] = torch.tensor(token_ids[prompt])
            positions[row_index, start:end] = torch.arange(end - start)
            mask[row_index, start:end] = True
            start = end
    if all(len(row) == 1 for row in rows):
        return TokenBatch(ids.to(device), mask.to(device), None)
    return TokenBatch(ids.to(device), mask.to(device), positions.to(device))
