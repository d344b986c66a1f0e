"""Schema and version of every stored table; docs/run.md is the normative text."""

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
from saescope.store.arrays import Bools, Float32s, Indices

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
Ids = npt.NDArray[np.unsignedinteger[Any]]


def features_name(layer: int) -> str:
    """File of one layer's features, one row per token."""
    return f"layer{layer}.parquet"


def resid_name(layer: int) -> str:
    """File of one layer's residuals, one row per prompt."""
    return f"resid{layer}.parquet"


def id_type(d_sae: int) -> npt.DTypeLike:
    """The smallest unsigned type that holds every feature id."""
    return np.uint16 if d_sae <= 2**16 else np.uint32


@dataclass(frozen=True)
class LayerFeatures:
    """One layer's features of all tokens: what fires, token after token, strongest first.

    `norms` (tokens,) are residual norms. `counts` (tokens,) says how many entries of `acts` and
    `ids` (fired,) belong to each token; every activation is above 0. `next_pre_act` (tokens,) is
    the strongest pre-activation that does not fire, NaN if there is none. `error` (tokens,) is the
    norm of the reconstruction error, None if it was not asked for.
    """

    norms: Float32s
    counts: npt.NDArray[np.int32]
    acts: Float32s
    ids: Ids
    next_pre_act: Float32s
    error: Float32s | None = None

    @classmethod
    def of_rows(
        cls,
        norms: Float32s,
        acts: Float32s,
        ids: Ids,
        next_pre_act: Float32s,
        error: Float32s | None = None,
    ) -> "LayerFeatures":
        """From rows of equal length, (tokens, k), in which an activation of 0 does not fire."""
        fires = acts > 0
        counts = fires.sum(1, dtype=np.int32)
        return cls(norms, counts, acts[fires], ids[fires], next_pre_act, error)

    @cached_property
    def token(self) -> Indices:
        """The token that each entry of `acts` and `ids` belongs to, (fired,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def starts(self) -> Indices:
        """Where each token's entries begin, and where the last ones end, (tokens + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.intp)])

    def row(self, token: int) -> slice:
        """The entries of one token."""
        return slice(int(self.starts[token]), int(self.starts[token + 1]))

    def fires(self, feature: int) -> Bools:
        """The tokens on which a feature fires, (tokens,)."""
        return np.asarray(self.acts_of(feature) > 0)

    def acts_of(self, feature: int) -> Float32s:
        """A feature's activation on every token, 0 where it does not fire, (tokens,)."""
        entries = np.flatnonzero(self.ids == feature)
        tokens = np.searchsorted(self.starts, entries, side="right") - 1
        acts = np.zeros(len(self.counts), np.float32)
        acts[tokens] = self.acts[entries]
        return acts

    def strongest(self, n: int) -> npt.NDArray[np.int64]:
        """The n strongest features of every token, (tokens, n); -1 where fewer fire."""
        rank = np.arange(len(self.ids)) - self.starts[self.token]
        top = rank < n
        ids = np.full((len(self.counts), n), -1, np.int64)
        ids[self.token[top], rank[top]] = self.ids[top]
        return ids

    def take(self, tokens: Indices) -> "LayerFeatures":
        """These tokens in this order; one may be taken more than once."""
        counts = self.counts[tokens]
        new_starts = np.cumsum(counts, dtype=np.intp) - counts
        shift = np.repeat(self.starts[tokens] - new_starts, counts)
        entries = shift + np.arange(counts.sum())
        return LayerFeatures(
            norms=self.norms[tokens],
            counts=counts,
            acts=self.acts[entries],
            ids=self.ids[entries],
            next_pre_act=self.next_pre_act[tokens],
            error=None if self.error is None else self.error[tokens],
        )

    @classmethod
    def joined(cls, parts: Sequence["LayerFeatures"]) -> "LayerFeatures":
        """The tokens of several, one after another."""
        arrays = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            if values[0] is not None:
                arrays[field.name] = np.concatenate(values)
        return cls(**arrays)


@dataclass(frozen=True)
class PromptResids:
    """One layer's residuals per prompt.

    `mean` (prompts, d_model) is the mean over `positions` (prompts,) positions of each prompt, and
    `last` (prompts, d_model) the residual of its last position. The mean leaves out position 0 and
    norms above 10 times the prompt's own lower median.
    """

    positions: npt.NDArray[np.int32]
    mean: Float32s
    last: Float32s


def prompts_table(prompts: Sequence[Prompt], n_tokens: Sequence[int]) -> pa.Table:
    """One row per prompt, as it was read."""
    arrays = {
        name: columns.strings(getattr(prompt, name) for prompt in prompts)
        for name in ("id", "set", "pair", "split")
    }
    arrays["text"] = columns.strings(prompt.display_text for prompt in prompts)
    arrays["messages"] = columns.strings(map(_messages_json, prompts))
    arrays["n_tokens"] = columns.numbers(np.array(n_tokens, np.int32))
    return pa.table(arrays, schema=PROMPTS)


def _messages_json(prompt: Prompt) -> str | None:
    if not prompt.messages:
        return None
    return json.dumps([vars(message) for message in prompt.messages], ensure_ascii=False)


def tokens_table(tokens: Sequence[Sequence[tuple[int, str]]]) -> pa.Table:
    """One row per token, from the (id, text) of every token of every prompt."""
    lengths = [len(row) for row in tokens]
    numbers = {
        "prompt": np.repeat(np.arange(len(tokens)), lengths),
        "pos": np.concatenate([np.arange(length) for length in lengths]),
        "token_id": np.array([token_id for row in tokens for token_id, _ in row]),
    }
    arrays = {name: columns.numbers(values.astype(np.int32)) for name, values in numbers.items()}
    arrays["token"] = columns.strings(text for row in tokens for _, text in row)
    return pa.table(arrays, schema=TOKENS)


def features_table(features: LayerFeatures, d_sae: int) -> pa.Table:
    """One row per token: its norm, and what fires, strongest first."""
    starts = columns.numbers(features.starts)
    ids = columns.numbers(features.ids.astype(id_type(d_sae)))
    error = pa.nulls(len(features.norms), pa.float32())
    if features.error is not None:
        error = columns.numbers(features.error)
    return pa.table(
        {
            "norm": columns.numbers(features.norms),
            "ids": pa.LargeListArray.from_arrays(starts, ids),
            "acts": pa.LargeListArray.from_arrays(starts, columns.numbers(features.acts)),
            "border": columns.numbers(features.next_pre_act),
            "error": error,
        }
    )


def features_of(table: pa.Table) -> LayerFeatures:
    """The inverse of `features_table`.

    Reads schema 2 too, where every token has k entries and those of 0 do not fire.
    """
    norms = columns.values(table["norm"])
    next_pre_act = columns.values(table["border"])
    error = None
    if table["error"].null_count == 0:
        error = columns.values(table["error"])
    if pa.types.is_fixed_size_list(table["ids"].type):
        k = table["ids"].type.list_size
        acts, ids = _matrix(table["acts"], k), _matrix(table["ids"], k)
        return LayerFeatures.of_rows(norms, acts, ids, next_pre_act, error)
    counts = columns.values(pc.list_value_length(table["ids"])).astype(np.int32)
    acts = columns.values(pc.list_flatten(table["acts"]))
    ids = columns.values(pc.list_flatten(table["ids"]))
    return LayerFeatures(norms, counts, acts, ids, next_pre_act, error)


def resid_table(resid: PromptResids) -> pa.Table:
    """One row per prompt: the number of positions, their mean residual, the last residual."""
    return pa.table(
        {
            "positions": columns.numbers(resid.positions),
            "mean": _lists(resid.mean),
            "last": _lists(resid.last),
        }
    )


def resid_of(table: pa.Table, d_model: int) -> PromptResids:
    """The inverse of `resid_table`."""
    return PromptResids(
        positions=columns.values(table["positions"]),
        mean=_matrix(table["mean"], d_model),
        last=_matrix(table["last"], d_model),
    )


def _lists(matrix: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """An array of shape (rows, width) as a fixed-size list column."""
    return pa.FixedSizeListArray.from_arrays(columns.numbers(matrix.reshape(-1)), matrix.shape[1])


def _matrix(column: pa.ChunkedArray, width: int) -> npt.NDArray[Any]:
    """The inverse of `_lists`."""
    return columns.values(pc.list_flatten(column)).reshape(-1, width)
