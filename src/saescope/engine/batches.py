"""Prompts to batches with little padding; equal prompts and shared prefixes are computed once."""

from collections.abc import Iterator, Mapping, Sequence
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

# Larger batches are not faster: every layer would allocate its activations anew.
BATCH_TOKENS = 2048
# A prefix is shared only if it is this long and saves this many tokens.
MIN_PREFIX_LENGTH = 16
MIN_SAVED_TOKENS = 64
_MAX_GROUP_DEPTH = 50
# Rows at least this wide hold several short prompts; in wider ones attention would dominate.
_PACKED_ROW_WIDTH = 64

Row = list[int]  # the prompts that follow one another in one row of a batch


def plan_batches(
    lm: LM, prompts: Sequence[Prompt], batch_tokens: int = BATCH_TOKENS
) -> "BatchPlan":
    """Tokenise prompts and divide them into batches of at most `batch_tokens` computed tokens."""
    if batch_tokens < 1:
        raise PromptError(f"batch_tokens must be at least 1, got {batch_tokens}")
    token_ids = tokenize(lm, prompts)
    if is_edited(lm):
        # Edits tell first positions, last ones and sinks by rows: each prompt is its own pass.
        return plan_token_batches(token_ids, 1, packed=False, shares=False)
    return plan_token_batches(
        token_ids, batch_tokens, packed=lm.packs_prompts, shares=lm.shares_prefixes
    )


@dataclass(frozen=True)
class Batch:
    """The prompts of one forward pass, row by row, and the length of the prefix they all share.

    The prefix is computed once, before the rows, which then hold only the rest of each prompt.
    """

    rows: list[Row]
    prefix_length: int = 0

    @property
    def prompts(self) -> list[int]:
        """The prompts in the order of the batch."""
        return [prompt for row in self.rows for prompt in row]


@dataclass(frozen=True)
class BatchPlan:
    """Token ids of every prompt, the batches that compute them, and which prompts are copies.

    `copies` maps a computed prompt to the prompts with the same tokens, which are not computed.
    """

    token_ids: list[list[int]]
    batches: list[Batch]
    copies: dict[int, list[int]]

    def prompt_order(self, number: int) -> list[int]:
        """The prompts of one batch in the order of its tokens, each followed by its copies."""
        order = []
        for prompt in self.batches[number].prompts:
            order += [prompt, *self.copies.get(prompt, ())]
        return order

    @property
    def prompt_orders(self) -> list[list[int]]:
        """The prompt order of every batch."""
        return [self.prompt_order(number) for number in range(len(self.batches))]

    def prompt_lengths(self, number: int) -> list[int]:
        """How many tokens each of those prompts has."""
        return [len(self.token_ids[prompt]) for prompt in self.prompt_order(number)]

    def prefix_ids(self, number: int) -> list[int]:
        """Token ids of the prefix that a batch shares."""
        batch = self.batches[number]
        return self.token_ids[batch.prompts[0]][: batch.prefix_length]

    def suffix_ids(self, number: int) -> dict[int, list[int]]:
        """Token ids of each prompt of a batch after the shared prefix."""
        batch = self.batches[number]
        return {prompt: self.token_ids[prompt][batch.prefix_length :] for prompt in batch.prompts}

    def residual_rows(self, number: int) -> Int[Tensor, "tokens"] | None:
        """For each token of a batch's prompts and copies, its row among the computed residuals.

        The prefix comes first there, then the suffixes. None if every token has its own row.
        """
        batch = self.batches[number]
        has_copies = any(prompt in self.copies for prompt in batch.prompts)
        if not batch.prefix_length and not has_copies:
            return None
        prefix = torch.arange(batch.prefix_length)
        parts = []
        start = batch.prefix_length
        for prompt in batch.prompts:
            end = start + len(self.token_ids[prompt]) - batch.prefix_length
            rows = torch.cat([prefix, torch.arange(start, end)])
            n_copies = len(self.copies.get(prompt, ()))
            parts += [rows] * (1 + n_copies)
            start = end
        return torch.cat(parts)

    @property
    def n_computed_tokens(self) -> int:
        """Tokens of all prompts that are not copies."""
        return sum(len(self.token_ids[p]) for batch in self.batches for p in batch.prompts)


def plan_token_batches(
    token_ids: Sequence[list[int]], batch_tokens: int, *, packed: bool, shares: bool
) -> BatchPlan:
    """As `plan_batches`, from the token ids of every prompt.

    If `packed`, a row may hold several prompts. If `shares`, a common prefix is computed once.
    """
    originals, copies = _find_copies(token_ids)
    groups: list[_PrefixGroup] = []
    if shares:
        groups = list(_prefix_groups(token_ids, originals))
    grouped = {prompt for group in groups for prompt in group.prompts}
    single = [prompt for prompt in originals if prompt not in grouped]
    batches = list(_group_batches(token_ids, _PrefixGroup(single, 0), batch_tokens, packed))
    for group in groups:
        # Every row attends to the prefix, and needs memory for it.
        budget = max(1, batch_tokens // (1 + group.prefix_length // 512))
        batches += _group_batches(token_ids, group, budget, packed=False)
    return BatchPlan(list(token_ids), batches, copies)


def _find_copies(token_ids: Sequence[list[int]]) -> tuple[list[int], dict[int, list[int]]]:
    """The first prompt of every token sequence, and the later ones with the same tokens."""
    first: dict[tuple[int, ...], int] = {}
    copies: dict[int, list[int]] = {}
    for prompt, ids in enumerate(token_ids):
        original = first.setdefault(tuple(ids), prompt)
        if original != prompt:
            copies.setdefault(original, []).append(prompt)
    return sorted(first.values()), copies


@dataclass(frozen=True)
class _PrefixGroup:
    prompts: list[int]
    prefix_length: int


def _group_batches(
    token_ids: Sequence[list[int]], group: _PrefixGroup, batch_tokens: int, packed: bool
) -> Iterator[Batch]:
    lengths = [len(token_ids[prompt]) - group.prefix_length for prompt in group.prompts]
    for rows in divide_into_batches(lengths, batch_tokens, packed=packed):
        prompts = [[group.prompts[place] for place in row] for row in rows]
        yield Batch(prompts, group.prefix_length)


def divide_into_batches(
    lengths: Sequence[int], batch_tokens: int, *, packed: bool
) -> list[list[Row]]:
    """Divide prompts of these lengths into batches of at most `batch_tokens` with padding.

    The longest come first. A batch is as wide as its longest prompt, or 64. If `packed`, a prompt
    goes into the first row with room for it, else into its own. A prompt that is longer than
    `batch_tokens` has a batch of its own.
    """
    batches: list[list[Row]] = []
    room: list[int] = []  # what is left of each row of the last batch
    width = 0
    for prompt in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[prompt]
        row = _first_fitting(room, length) if packed else None
        if row is not None:
            batches[-1][row].append(prompt)
            room[row] -= length
            continue
        is_full = (len(room) + 1) * width > batch_tokens
        wastes_padding = not packed and 4 * length < 3 * width
        if not batches or is_full or wastes_padding:
            batches.append([])
            room = []
            width = max(length, min(_PACKED_ROW_WIDTH, batch_tokens)) if packed else length
        batches[-1].append([prompt])
        room.append(width - length)
    return batches


def _first_fitting(room: Sequence[int], length: int) -> int | None:
    return next((row for row, free in enumerate(room) if length <= free), None)


def _prefix_groups(
    token_ids: Sequence[list[int]], prompts: Sequence[int]
) -> Iterator[_PrefixGroup]:
    """Groups of prompts whose common prefix saves enough to be computed once."""
    ordered = sorted(prompts, key=lambda prompt: token_ids[prompt])
    common = [_common_length(token_ids[a], token_ids[b]) for a, b in pairwise(ordered)]
    for span in _best_spans(common, 0, len(ordered), 0):
        if span.saved >= MIN_SAVED_TOKENS and span.prefix_length >= MIN_PREFIX_LENGTH:
            yield _PrefixGroup(sorted(ordered[span.start : span.end]), span.prefix_length)


@dataclass(frozen=True)
class _Span:
    """Sorted prompts start..end, which all begin with the same `prefix_length` tokens."""

    start: int
    end: int
    prefix_length: int

    @property
    def saved(self) -> int:
        """Tokens that need no computing if the prefix is computed once."""
        return (self.end - self.start - 1) * self.prefix_length


def _best_spans(common: Sequence[int], start: int, end: int, depth: int) -> list[_Span]:
    """The division of sorted prompts that saves most: one span, or cut where least is shared.

    `common` holds how many first tokens each prompt shares with the next.
    """
    if end - start < 2:
        return []
    least = min(common[start : end - 1])
    whole = _Span(start, end, least)
    if depth == _MAX_GROUP_DEPTH:
        return [whole]
    cuts = [at + 1 for at in range(start, end - 1) if common[at] == least]
    divided: list[_Span] = []
    for first, last in pairwise([start, *cuts, end]):
        divided += _best_spans(common, first, last, depth + 1)
    if sum(span.saved for span in divided) > whole.saved:
        return divided
    return [whole]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first tokens are equal; at least one token of each prompt is left over."""
    most = min(len(a), len(b)) - 1
    return next((n for n in range(most) if a[n] != b[n]), most)


@dataclass(frozen=True)
class TokenBatch:
    """One batch as tensors: each row holds one or several prompts, padded with 0 on the right.

    Causal attention never looks to the right, so padding changes no real position. If a row holds
    several prompts, `positions` restarts at each of them, and transformers keeps attention within
    them; if none does, it is None.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"] | None


def lay_out(
    rows: Sequence[Row],
    token_ids: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
    device: torch.device,
) -> TokenBatch:
    """The tensors of one batch, from the token ids of its prompts."""
    width = max(sum(len(token_ids[prompt]) for prompt in row) for row in rows)
    ids, positions = torch.zeros(2, len(rows), width, dtype=torch.int64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for n, row in enumerate(rows):
        start = 0
        for prompt in row:
            end = start + len(token_ids[prompt])
            ids[n, start:end] = torch.tensor(token_ids[prompt])
            positions[n, start:end] = torch.arange(end - start)
            mask[n, start:end] = True
            start = end
    if all(len(row) == 1 for row in rows):
        return TokenBatch(ids.to(device), mask.to(device), None)
    return TokenBatch(ids.to(device), mask.to(device), positions.to(device))
