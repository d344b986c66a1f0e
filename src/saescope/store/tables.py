"""Schema and version of every stored table; docs/store.md is the normative text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 2

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
TOKENS = pa.schema([("prompt", pa.int32()), ("pos", pa.int32()), ("token_id", pa.int32()), ("token", pa.string())])
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
    """One layer's features of all tokens: norms (tokens,), acts and ids (tokens, k), strongest first.

    `border` (tokens,) is the pre-activation of the strongest feature left out of the k, NaN where none is; `error`
    (tokens,) the norm of what the decoder does not give back, where it was asked for.
    """

    norms: npt.NDArray[np.float32]
    acts: npt.NDArray[np.float32]
    ids: npt.NDArray[np.unsignedinteger[Any]]
    border: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class PromptResids:
    """One layer's residuals by prompt: the mean (prompts, d_model) over `positions` (prompts,), and the last one.

    The mean leaves out position 0 and what lies over 10 times the prompt's own lower median norm.
    """

    positions: npt.NDArray[np.int32]
    mean: npt.NDArray[np.float32]
    last: npt.NDArray[np.float32]


def features_table(features: LayerFeatures, d_sae: int) -> pa.Table:
    """A row a token: its norm, and k features, strongest first (acts 0 where fewer than k fire)."""
    error = features.error
    return pa.table(
        {
            "norm": pa.array(features.norms),
            "ids": _lists(features.ids.astype(id_type(d_sae))),
            "acts": _lists(features.acts),
            "border": pa.array(features.border),
            "error": pa.nulls(len(features.norms), pa.float32()) if error is None else pa.array(error),
        }
    )


def features_of(table: pa.Table, k: int) -> LayerFeatures:
    """The inverse of `features_table`."""
    error = table["error"]
    return LayerFeatures(
        norms=np.asarray(table["norm"].to_numpy()),
        acts=_matrix(table["acts"], k),
        ids=_matrix(table["ids"], k),
        border=np.asarray(table["border"].to_numpy()),
        error=np.asarray(error.to_numpy()) if error.null_count == 0 else None,
    )


def resid_table(resid: PromptResids) -> pa.Table:
    """A row a prompt: over how many positions, their mean residual, and the last position's."""
    return pa.table({"positions": pa.array(resid.positions), "mean": _lists(resid.mean), "last": _lists(resid.last)})


def resid_of(table: pa.Table, d_model: int) -> PromptResids:
    """The inverse of `resid_table`."""
    return PromptResids(
        positions=np.asarray(table["positions"].to_numpy()),
        mean=_matrix(table["mean"], d_model),
        last=_matrix(table["last"], d_model),
    )


def _lists(values: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _matrix(column: pa.ChunkedArray, width: int) -> npt.NDArray[Any]:
    """A fixed-size list column as an array of shape (rows, width)."""
    flat = column.combine_chunks()
    values = flat.flatten() if isinstance(flat, pa.Array) else pa.concat_arrays([c.flatten() for c in flat.chunks])
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, width)
