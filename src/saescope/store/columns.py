"""Columns of numbers and strings to Arrow and back, sharing their memory.

`pyarrow.array` and `to_numpy` do the same, but import pandas if it is installed, which costs
a quarter of a second and 60 MB in every command.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from saescope.errors import RunError

_MAX_STRING_BYTES = 2**31 - 1  # Arrow counts the bytes of a string column in 32 bits


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """Return a column that shares the memory of these numbers, (n,), of whole-byte type."""
    contiguous = np.ascontiguousarray(values)
    dtype = pa.from_numpy_dtype(contiguous.dtype)
    return pa.Array.from_buffers(dtype, len(contiguous), [None, pa.py_buffer(contiguous)])


def strings(values: Iterable[str | None]) -> pa.Array:
    """Return a column of strings, with a null for None.

    Raises RunError if the strings are longer than a column can be.
    """
    texts = [None if value is None else value.encode() for value in values]
    present = np.array([text is not None for text in texts], bool)
    encoded = [text or b"" for text in texts]
    ends = np.cumsum([0, *map(len, encoded)])
    if ends[-1] > _MAX_STRING_BYTES:
        raise RunError(
            f"the prompts' texts have {ends[-1]:,} bytes, but a run holds at most 2 GiB: "
            "divide them into several runs"
        )
    buffers = (
        np.packbits(present, bitorder="little"),
        ends.astype(np.int32),
        b"".join(encoded),
    )
    return pa.Array.from_buffers(pa.string(), len(texts), [pa.py_buffer(b) for b in buffers])


def values(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """Return the numbers of a column without nulls, (n,).

    A column of one chunk is not copied, so its values must not be written to.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if len(chunks) == 1:
        return np.from_dlpack(chunks[0])
    empty = np.empty(0, column.type.to_pandas_dtype())
    return np.concatenate([empty, *map(np.from_dlpack, chunks)])
