"""Schema and version of every stored table; docs/store.md is the normative text."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 1

PROMPTS = pa.schema(
    [
        ("id", pa.string()),
        ("set", pa.string()),
        ("pair", pa.string()),
        ("split", pa.string()),
        ("text", pa.string()),
        ("n_tokens", pa.int32()),
    ]
)
TOKENS = pa.schema([("prompt", pa.int32()), ("pos", pa.int32()), ("token_id", pa.int32()), ("token", pa.string())])


def layer_name(layer: int) -> str:
    """File of one layer's features."""
    return f"layer{layer}.parquet"


def id_type(d_sae: int) -> npt.DTypeLike:
    """The smallest unsigned type that holds every feature id."""
    return np.uint16 if d_sae <= 2**16 else np.uint32


def layer_table(
    norms: npt.NDArray[np.float32],
    acts: npt.NDArray[np.float32],
    ids: npt.NDArray[np.integer[Any]],
    d_sae: int,
) -> pa.Table:
    """A row a token: its norm, and k features, strongest first (acts 0 where fewer than k fire)."""
    k = acts.shape[1]
    flat_ids = pa.array(np.ascontiguousarray(ids, dtype=id_type(d_sae)).reshape(-1))
    flat_acts = pa.array(np.ascontiguousarray(acts, dtype=np.float32).reshape(-1))
    return pa.table(
        {
            "norm": pa.array(norms),
            "ids": pa.FixedSizeListArray.from_arrays(flat_ids, k),
            "acts": pa.FixedSizeListArray.from_arrays(flat_acts, k),
        }
    )


def matrix(column: pa.ChunkedArray, k: int) -> npt.NDArray[Any]:
    """A fixed-size list column as an array of shape (rows, k)."""
    flat = column.combine_chunks()
    values = flat.flatten() if isinstance(flat, pa.Array) else pa.concat_arrays([c.flatten() for c in flat.chunks])
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(-1, k)
