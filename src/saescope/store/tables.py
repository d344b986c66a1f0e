"""Schema and version of every stored table; docs/run.md is the normative text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from saescope.sources.chats import parse_messages
from saescope.sources.prompts import Prompt
from saescope.sources.regular_files import parse_json
from saescope.store import columns
from saescope.store.arrays import Bools, Float32s, Indices
from saescope.store.masking import Magnitudes

SCHEMA_VERSION = 3
READABLE_SCHEMAS = (2, 3)
PROMPTS_NAME, TOKENS_NAME = "prompts.parquet", "tokens.parquet"

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
# "border" holds `next_pre_act`; the name is kept for schema 2 and 3.
FEATURE_COLUMNS: tuple[str, ...] = ("norm", "ids", "acts", "border", "error", "peak")
EARLIER_FEATURE_COLUMNS = FEATURE_COLUMNS[:-1]
RESID_COLUMNS = ("positions", "mean", "last")
Ids = npt.NDArray[np.unsignedinteger[Any]]


def features_name(layer: int) -> str:
    """Return the file name of one layer's features, one row per token."""
    return f"layer{layer}.parquet"


def resid_name(layer: int) -> str:
    """Return the file name of one layer's residuals, one row per prompt."""
    return f"resid{layer}.parquet"


def id_type(d_sae: int) -> npt.DTypeLike:
    """Return the smallest unsigned type that holds every feature id."""
    return np.uint16 if d_sae <= 2**16 else np.uint32


@dataclass(frozen=True)
class LayerFeatures:
    """One layer's active features of all tokens, token by token, strongest first.

    `norms` (tokens,) are residual norms. `counts` (tokens,) says how many entries of `acts` and
    `ids` (fired,) belong to each token; every activation is above 0. `next_pre_act` (tokens,) is
    the largest inactive pre-activation, or for TopK the (k+1)-th largest; NaN if there is none.
    `error` (tokens,) is the norm of the reconstruction error, None if not requested. `peaks`
    (tokens,) is the share of the squared norm in the residual's largest coordinate, None in runs of
    earlier versions.
    """

    norms: Float32s
    counts: npt.NDArray[np.int32]
    acts: Float32s
    ids: Ids
    next_pre_act: Float32s
    error: Float32s | None = None
    peaks: Float32s | None = None

    @classmethod
    def of_rows(
        cls,
        norms: Float32s,
        acts: Float32s,
        ids: Ids,
        next_pre_act: Float32s,
        error: Float32s | None = None,
        peaks: Float32s | None = None,
    ) -> "LayerFeatures":
        """Build from matrices (tokens, k), in which an activation of 0 is inactive."""
        fires = acts > 0
        counts = fires.sum(1, dtype=np.int32)
        return cls(norms, counts, acts[fires], ids[fires], next_pre_act, error, peaks)

    @property
    def magnitudes(self) -> Magnitudes:
        """How large each token's residual is: what sinks are found by."""
        return Magnitudes(self.norms, self.peaks)

    @cached_property
    def token(self) -> Indices:
        """Index of the token that each entry of `acts` and `ids` belongs to, (fired,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @cached_property
    def starts(self) -> Indices:
        """Where each token's entries begin, and where the last ones end, (tokens + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.intp)])

    def row(self, token: int) -> slice:
        """Return the slice of one token's entries."""
        return slice(int(self.starts[token]), int(self.starts[token + 1]))

    def fires(self, feature: int) -> Bools:
        """Return whether a feature fires on each token, (tokens,)."""
        return np.asarray(self.acts_of(feature) > 0)

    def acts_of(self, feature: int) -> Float32s:
        """Return a feature's activation on every token, 0 where it does not fire, (tokens,)."""
        entries = np.flatnonzero(self.ids == feature)
        tokens = np.searchsorted(self.starts, entries, side="right") - 1
        acts = np.zeros(len(self.counts), np.float32)
        acts[tokens] = self.acts[entries]
        return acts

    def strongest(self, n: int) -> npt.NDArray[np.int64]:
        """Return the n strongest features of every token, (tokens, n), padded with -1."""
        rank = np.arange(len(self.ids)) - self.starts[self.token]
        top = rank < n
        ids = np.full((len(self.counts), n), -1, np.int64)
        ids[self.token[top], rank[top]] = self.ids[top]
        return ids

    def take(self, tokens: Indices) -> "LayerFeatures":
        """Return these tokens in this order; a token may occur more than once."""
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
            peaks=None if self.peaks is None else self.peaks[tokens],
        )

    @classmethod
    def joined(cls, batches: Sequence["LayerFeatures"]) -> "LayerFeatures":
        """Concatenate; what one batch did not measure, the result lacks."""
        arrays = {}
        for field in fields(cls):
            values = [getattr(batch, field.name) for batch in batches]
            if all(value is not None for value in values):
                arrays[field.name] = np.concatenate(values)
        return cls(**arrays)


@dataclass(frozen=True)
class PromptResids:
    """One layer's residuals per prompt.

    `mean` (prompts, d_model) is the mean over `positions` (prompts,) positions of each prompt, and
    `last` (prompts, d_model) the residual of its last position. The mean leaves out position 0 and
    what is a sink at this layer beside the prompt's own lower median norm; statistics of features
    use the layer's lower median over the whole run, and the sinks of all its layers.
    """

    positions: npt.NDArray[np.int32]
    mean: Float32s
    last: Float32s


def prompts_table(prompts: Sequence[Prompt], n_tokens: Sequence[int]) -> pa.Table:
    """Return the prompts as a table, one row per prompt."""
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
    return json.dumps([message.to_dict() for message in prompt.messages], ensure_ascii=False)


def prompts_of(table: pa.Table) -> tuple[Prompt, ...]:
    """Invert `prompts_table`; raises ValueError for messages that are no chat."""
    return tuple(map(_prompt, table.to_pylist()))


def _prompt(row: Mapping[str, Any]) -> Prompt:
    values = {name: row[name] for name in ("id", "set", "pair", "split")}
    if row["messages"] is None:
        return Prompt(text=row["text"], **values)
    messages = parse_json(row["messages"].encode("utf-8", "surrogatepass"))
    if not isinstance(messages, list):
        raise ValueError("the messages of a chat are a list")
    return Prompt(messages=parse_messages(messages), **values)


def tokens_table(tokens: Sequence[Sequence[tuple[int, str]]]) -> pa.Table:
    """Return the tokens, (id, text) per prompt, as a table with one row per token."""
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
    """Return a table with one row per token: its norm and active features, strongest first."""
    starts = columns.numbers(features.starts)
    ids = columns.numbers(features.ids.astype(id_type(d_sae)))
    error = pa.nulls(len(features.norms), pa.float32())
    if features.error is not None:
        error = columns.numbers(features.error)
    table = pa.table(
        {
            "norm": columns.numbers(features.norms),
            "ids": pa.LargeListArray.from_arrays(starts, ids),
            "acts": pa.LargeListArray.from_arrays(starts, columns.numbers(features.acts)),
            "border": columns.numbers(features.next_pre_act),
            "error": error,
        }
    )
    if features.peaks is None:
        return table
    return table.append_column("peak", columns.numbers(features.peaks))


def features_of(table: pa.Table) -> LayerFeatures:
    """Invert `features_table`.

    Reads schema 2 too, in which every token has k entries and entries of 0 are inactive.
    """
    norms = columns.values(table["norm"])
    next_pre_act = columns.values(table["border"])
    error = _values_or_none(table, "error")
    peaks = _values_or_none(table, "peak")
    if pa.types.is_fixed_size_list(table["ids"].type):
        k = table["ids"].type.list_size
        acts, ids = _matrix(table["acts"], k), _matrix(table["ids"], k)
        return LayerFeatures.of_rows(norms, acts, ids, next_pre_act, error, peaks)
    counts = columns.values(pc.list_value_length(table["ids"])).astype(np.int32)
    acts = columns.values(pc.list_flatten(table["acts"]))
    ids = columns.values(pc.list_flatten(table["ids"]))
    return LayerFeatures(norms, counts, acts, ids, next_pre_act, error, peaks)


def magnitudes_of(table: pa.Table) -> Magnitudes:
    """Return how large the residuals are whose features a table holds."""
    return Magnitudes(columns.values(table["norm"]), _values_or_none(table, "peak"))


def _values_or_none(table: pa.Table, name: str) -> Float32s | None:
    """Return a column; None if it is not there, or holds nothing."""
    if name not in table.column_names or table[name].null_count:
        return None
    return columns.values(table[name])


def resid_table(resid: PromptResids) -> pa.Table:
    """Return a table with one row per prompt: positions, mean residual, last residual."""
    return pa.table(
        {
            "positions": columns.numbers(resid.positions),
            "mean": _lists(resid.mean),
            "last": _lists(resid.last),
        }
    )


def resid_of(table: pa.Table, d_model: int) -> PromptResids:
    """Invert `resid_table`."""
    return PromptResids(
        positions=columns.values(table["positions"]),
        mean=_matrix(table["mean"], d_model),
        last=_matrix(table["last"], d_model),
    )


def _lists(matrix: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """Return a matrix (rows, width) as a fixed-size list column."""
    return pa.FixedSizeListArray.from_arrays(columns.numbers(matrix.reshape(-1)), matrix.shape[1])


def _matrix(column: pa.ChunkedArray, width: int) -> npt.NDArray[Any]:
    """Invert `_lists`."""
    return columns.values(pc.list_flatten(column)).reshape(-1, width)
