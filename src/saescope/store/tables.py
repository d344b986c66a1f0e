"""Schema and version of every stored table; docs/store.md is the normative text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from saescope.sources.prompts import Prompt
from saescope.store import columns

SCHEMA_VERSION = 3
READABLE = (2, 3)

PROMPTS = pa.schema(
    [
        ("id", pa.string()),
        ("set", pa.string()),
        ("pair", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("messages", pa.string()),
        ("n_tokens", pa.int32()),
    ]
)
TOKENS = pa.schema(
    [("prompt", pa.int32()), ("pos", pa.int32()), ("token_id", pa.int32()), ("token", pa.string())]
)
FEATURE_COLUMNS = ("norm", "ids", "acts", "border", "error")
RESID_COLUMNS = ("positions", "mean", "last")


def features_name(layer: int) -> str:
    """File of one layer's features, a row a token."""
    return f"layer{layer}.parquet"


def resid_name(layer: int) -> str:
    """File of one layer's residuals, a row a prompt."""
    return f"resid{layer}.parquet"


def id_type(d_sae: int) -> npt.DTypeLike:
    """The smallest unsigned type that holds every feature id."""
    return np.uint16 if d_sae <= 2**16 else np.uint32


@dataclass(frozen=True)
class LayerFeatures:
    """One layer's features of all tokens: norms (tokens,), and what fires, token after token, strongest first.

    `counts` (tokens,) says how many of `acts` and `ids` (fired,) are each token's; every activation is above 0.
    `next_pre_act` (tokens,) is the strongest pre-activation that the SAE's activation leaves out, NaN where none is; `error`
    (tokens,) the norm of what the decoder does not give back, where it was asked for.
    """

    norms: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int32]
    acts: npt.NDArray[np.float32]
    ids: npt.NDArray[np.unsignedinteger[Any]]
    next_pre_act: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32] | None = None

    @classmethod
    def of_rows(
        cls,
        norms: npt.NDArray[np.float32],
        acts: npt.NDArray[np.float32],
        ids: npt.NDArray[np.unsignedinteger[Any]],
        next_pre_act: npt.NDArray[np.float32],
        error: npt.NDArray[np.float32] | None = None,
    ) -> "LayerFeatures":
        """From rows of equal length, (tokens, k), in which an activation of 0 does not fire."""
        fires = acts > 0
        return cls(
            norms, fires.sum(1, dtype=np.int32), acts[fires], ids[fires], next_pre_act, error
        )

    @cached_property
    def token(self) -> npt.NDArray[np.intp]:
        """Which token each entry of `acts` and `ids` is of, (fired,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def starts(self) -> npt.NDArray[np.intp]:
        """Where each token's entries begin, and where the last ones end, (tokens + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.intp)])

    def row(self, token: int) -> slice:
        """The entries of one token."""
        return slice(int(self.starts[token]), int(self.starts[token + 1]))

    def fires(self, feature: int) -> npt.NDArray[np.bool_]:
        """Which tokens a feature fires on, (tokens,)."""
        return self.acts_of(feature) > 0

    def acts_of(self, feature: int) -> npt.NDArray[np.float32]:
        """A feature's activation on every token, 0 where it does not fire, (tokens,)."""
        own = np.flatnonzero(self.ids == feature)
        acts = np.zeros(len(self.counts), np.float32)
        acts[np.searchsorted(self.starts, own, side="right") - 1] = self.acts[own]
        return acts

    def strongest(self, n: int) -> npt.NDArray[np.int64]:
        """The n strongest features of every token, (tokens, n); -1 where fewer fire."""
        place = np.arange(len(self.ids)) - self.starts[self.token]
        among = place < n
        ids = np.full((len(self.counts), n), -1, np.int64)
        ids[self.token[among], place[among]] = self.ids[among]
        return ids

    def take(self, rows: npt.NDArray[np.intp]) -> "LayerFeatures":
        """These tokens in this order; one may be taken more than once."""
        counts = self.counts[rows]
        first = np.cumsum(counts, dtype=np.intp) - counts
        entries = np.repeat(self.starts[rows] - first, counts) + np.arange(counts.sum())
        error = None if self.error is None else self.error[rows]
        return LayerFeatures(
            self.norms[rows],
            counts,
            self.acts[entries],
            self.ids[entries],
            self.next_pre_act[rows],
            error,
        )

    @classmethod
    def joined(cls, parts: Sequence["LayerFeatures"]) -> "LayerFeatures":
        """The tokens of several, one after another."""
        names = [f.name for f in fields(cls) if getattr(parts[0], f.name) is not None]
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        )


@dataclass(frozen=True)
class PromptResids:
    """One layer's residuals by prompt: the mean (prompts, d_model) over `positions` (prompts,), and the last one.

    The mean leaves out position 0 and what lies over 10 times the prompt's own lower median norm.
    """

    positions: npt.NDArray[np.int32]
    mean: npt.NDArray[np.float32]
    last: npt.NDArray[np.float32]


def prompts_table(prompts: Sequence[Prompt], n_tokens: Sequence[int]) -> pa.Table:
    """A row a prompt, as it was read."""
    messages = [
        p.messages and json.dumps([vars(m) for m in p.messages], ensure_ascii=False)
        for p in prompts
    ]
    texts = {name: [getattr(p, name) for p in prompts] for name in ("id", "set", "pair", "split")}
    texts |= {"text": [p.display_text for p in prompts], "messages": messages}
    made = {name: columns.strings(values) for name, values in texts.items()}
    return pa.table(
        {**made, "n_tokens": columns.numbers(np.array(n_tokens, np.int32))}, schema=PROMPTS
    )


def tokens_table(tokens: Sequence[Sequence[tuple[int, str]]]) -> pa.Table:
    """A row a token, from the (id, text) of every token of every prompt."""
    lengths = [len(row) for row in tokens]
    numbers = {
        "prompt": np.repeat(np.arange(len(tokens)), lengths),
        "pos": np.concatenate([np.arange(length) for length in lengths]),
        "token_id": np.array([token for row in tokens for token, _ in row]),
    }
    made = {name: columns.numbers(values.astype(np.int32)) for name, values in numbers.items()}
    return pa.table(
        {**made, "token": columns.strings(text for row in tokens for _, text in row)}, schema=TOKENS
    )


def features_table(features: LayerFeatures, d_sae: int) -> pa.Table:
    """A row a token: its norm, and what fires, strongest first."""
    error = features.error
    ends = columns.numbers(features.starts)
    return pa.table(
        {
            "norm": columns.numbers(features.norms),
            "ids": pa.LargeListArray.from_arrays(
                ends, columns.numbers(features.ids.astype(id_type(d_sae)))
            ),
            "acts": pa.LargeListArray.from_arrays(ends, columns.numbers(features.acts)),
            "border": columns.numbers(features.next_pre_act),
            "error": pa.nulls(len(features.norms), pa.float32())
            if error is None
            else columns.numbers(error),
        }
    )


def features_of(table: pa.Table) -> LayerFeatures:
    """The inverse of `features_table`; also of schema 2, where every token has k entries and zeros do not fire."""
    error = table["error"]
    norms, next_pre_act = (columns.values(table[name]) for name in ("norm", "border"))
    errors = columns.values(error) if error.null_count == 0 else None
    if pa.types.is_fixed_size_list(table["ids"].type):
        width = table["ids"].type.list_size
        acts, ids = (_matrix(table[name], width) for name in ("acts", "ids"))
        return LayerFeatures.of_rows(norms, acts, ids, next_pre_act, errors)
    counts = columns.values(pc.list_value_length(table["ids"])).astype(np.int32)
    acts, ids = (columns.values(pc.list_flatten(table[name])) for name in ("acts", "ids"))
    return LayerFeatures(norms, counts, acts, ids, next_pre_act, errors)


def resid_table(resid: PromptResids) -> pa.Table:
    """A row a prompt: over how many positions, their mean residual, and the last position's."""
    positions = columns.numbers(resid.positions)
    return pa.table(
        {"positions": positions, "mean": _lists(resid.mean), "last": _lists(resid.last)}
    )


def resid_of(table: pa.Table, d_model: int) -> PromptResids:
    """The inverse of `resid_table`."""
    return PromptResids(
        positions=columns.values(table["positions"]),
        mean=_matrix(table["mean"], d_model),
        last=_matrix(table["last"], d_model),
    )


def _lists(values: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(columns.numbers(values.reshape(-1)), values.shape[1])


def _matrix(column: pa.ChunkedArray, width: int) -> npt.NDArray[Any]:
    """A fixed-size list column as an array of shape (rows, width)."""
    return columns.values(pc.list_flatten(column)).reshape(-1, width)
