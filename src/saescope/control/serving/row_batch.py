"""Rows of one batch that are generated together, each for its own request."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saescope.control.active_edits import activate
from saescope.control.serving.row_edits import RowEditing, RowEdits, rows_of
from saescope.control.serving.work import End, NewToken, Ticket
from saescope.engine.generate import end_tokens, last_position, left_padded, reads_padding
from saescope.engine.growing_cache import GrowingLayer, growing_cache, text_config
from saescope.engine.lm import LM
from saescope.engine.residual import replace_outputs
from saescope.engine.sae import Sae
from saescope.engine.sampling import Sampler, log_probabilities


@dataclass(eq=False)
class _Row:
    """One reply that is being generated."""

    ticket: Ticket
    sampler: Sampler
    edits: RowEdits | None
    n_tokens: int = 0

    def end(self, reason: Any) -> None:
        receipt = None if self.edits is None else self.edits.receipt.to_dict()
        self.ticket.tell(End(reason, receipt))


@final
class RowBatch:
    """A batch in generation. Rows leave when they end or are cancelled; batches can be joined."""

    def __init__(self, lm: LM, editing: RowEditing, rows: list[_Row]) -> None:
        self._lm = lm
        self._editing = editing
        self._rows = rows
        self._end_tokens = end_tokens(lm)
        self._ids, self._mask = left_padded([row.ticket.work.ids for row in rows], lm.device)
        self._positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._cache = growing_cache(text_config(lm.whole))

    @staticmethod
    def groups(lm: LM, tickets: Sequence[Ticket]) -> Iterator[Sequence[Ticket]]:
        """Yield which replies can start as one batch: all, unless the model reads padding."""
        if not tickets:
            return
        if reads_padding(lm, [ticket.work.ids for ticket in tickets]):
            yield from ([ticket] for ticket in tickets)
        else:
            yield tickets

    @classmethod
    def start(
        cls, lm: LM, saes: Sequence[Sae], editing: RowEditing, tickets: Sequence[Ticket]
    ) -> "RowBatch":
        """Return the batch of these replies, before their prompts are read.

        Raises EditError if edits do not fit the model.
        """
        return cls(lm, editing, [_row(lm, saes, ticket) for ticket in tickets])

    @property
    def tickets(self) -> list[Ticket]:
        """The requests whose replies are not finished."""
        return [row.ticket for row in self._rows]

    @property
    def begun(self) -> bool:
        """Whether the prompts were read."""
        return int(self._cache.get_seq_length()) > 0

    def step(self) -> None:
        """Generate one token of every reply; the first step reads the prompts."""
        self._drop([row.ticket.cancelled for row in self._rows], "cancelled")
        if not self._rows:
            return
        logits = self._forward()
        chosen = [row.sampler.choose(one) for row, one in zip(self._rows, logits, strict=True)]
        reasons = [
            self._take(row, token, one)
            for row, token, one in zip(self._rows, chosen, logits, strict=True)
        ]
        self._extend(chosen)
        for reason in ("stop", "length"):
            ended = [one == reason for one in reasons]
            reasons = [one for one in reasons if one != reason]
            self._drop(ended, reason)

    def drop_all(self) -> None:
        """Forget all rows: their requests have been told why."""
        self._rows = []

    def can_join(self, other: "RowBatch") -> bool:
        """Whether both caches keep all keys and values, so that rows can be put side by side."""
        layers = [*self._layers, *other._layers]
        return self.begun and other.begun and all(type(layer) is GrowingLayer for layer in layers)

    @property
    def _layers(self) -> list[Any]:
        return list(self._cache.layers)

    def join(self, other: "RowBatch") -> None:
        """Take the rows of another batch, which has none left then."""
        width = max(self._mask.shape[1], other._mask.shape[1])
        self._widen(width)
        other._widen(width)
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])
        self._mask = torch.cat([self._mask, other._mask])
        self._ids = torch.cat([self._ids, other._ids])
        self._positions = torch.cat([self._positions, other._positions])
        self._rows += other._rows
        other.drop_all()

    def _widen(self, width: int) -> None:
        """Put padding before every row, in the mask and in the cache."""
        missing = width - self._mask.shape[1]
        if not missing:
            return
        self._mask = torch.nn.functional.pad(self._mask, (missing, 0))
        for layer in self._layers:
            layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, missing, 0))
            layer.values = torch.nn.functional.pad(layer.values, (0, 0, missing, 0))

    @torch.inference_mode()
    def _forward(self) -> Float[Tensor, "rows vocab"]:
        whole: Any = self._lm.whole
        head = whole.get_output_embeddings()
        edits = rows_of([row.edits for row in self._rows])
        # The logits of a whole prompt could fill the memory.
        with self._editing.of_rows(edits), replace_outputs((), inputs=[(head, last_position)]):
            output = whole(
                input_ids=self._ids,
                attention_mask=self._mask,
                position_ids=self._positions,
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _take(self, row: _Row, token: int, logits: Float[Tensor, "vocab"]) -> str | None:
        """Tell a request its new token; return why the reply ends with it, or None."""
        if token in self._end_tokens:
            return "stop"
        work = row.ticket.work
        logprobs = None
        if work.n_logprobs is not None:
            logprobs = log_probabilities(logits, token, work.n_logprobs)
        row.ticket.tell(NewToken(token, logprobs))
        row.n_tokens += 1
        return "length" if row.n_tokens >= work.max_new_tokens else None

    @torch.inference_mode()
    def _extend(self, chosen: Sequence[int]) -> None:
        self._ids = torch.tensor(chosen, device=self._mask.device)[:, None]
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self._positions = self._positions[:, -1:] + 1

    @torch.inference_mode()
    def _drop(self, leaving: Sequence[bool], reason: str) -> None:
        """End these rows, and take them out of the batch."""
        if not any(leaving):
            return
        kept = [n for n, leaves in enumerate(leaving) if not leaves]
        for row, leaves in zip(self._rows, leaving, strict=True):
            if leaves:
                row.end(reason)
        self._rows = [self._rows[n] for n in kept]
        index: Int[Tensor, kept] = torch.tensor(kept, dtype=torch.int64, device=self._mask.device)
        self._ids, self._mask = self._ids[index], self._mask[index]
        self._positions = self._positions[index]
        if kept and self.begun:
            self._cache.reorder_cache(index)  # type: ignore[arg-type]


def _row(lm: LM, saes: Sequence[Sae], ticket: Ticket) -> _Row:
    work = ticket.work
    sampler = Sampler(work.temperature, top_p=work.top_p, seed=work.seed)
    if not work.edits:
        return _Row(ticket, sampler, None)
    active = activate(lm, saes, work.edits, None)
    return _Row(ticket, sampler, RowEdits(active) if active.key is not None else None)
