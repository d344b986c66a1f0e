"""Columns of numbers and strings to Arrow and back, over their memory.

`pyarrow.array` and `to_numpy` do the same, but import pandas where it is installed: a quarter of a second and 60 MB in
every command, for nothing.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from saescope.errors import RunError

_MOST_BYTES = 2**31 - 1  # Arrow counts the bytes of strings in 32 bits


def numbers(values: npt.NDArray[Any]) -> pa.Array:
    """A column of these numbers, which keeps their memory; (n,) of a type whose values are whole bytes."""
    flat = np.ascontiguousarray(values)
    return pa.Array.from_buffers(
        pa.from_numpy_dtype(flat.dtype), len(flat), [None, pa.py_buffer(flat)]
    )


def strings(values: Iterable[str | None]) -> pa.Array:
    """A column of these strings, None a null; raises RunError where they are longer than a column can be."""
    texts = [None if value is None else value.encode() for value in values]
    ends = np.cumsum([0, *(len(text or b"") for text in texts)])
    if ends[-1] > _MOST_BYTES:
        raise RunError(
            f"the prompts' texts come to {ends[-1]:,} bytes, a run holds 2 GiB: divide them into more runs"
        )
    there = np.packbits(np.array([text is not None for text in texts], bool), bitorder="little")
    buffers = (there, ends.astype(np.int32), b"".join(text or b"" for text in texts))
    return pa.Array.from_buffers(
        pa.string(), len(texts), [pa.py_buffer(buffer) for buffer in buffers]
    )


def values(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[Any]:
    """The numbers of a column without nulls, (n,); of one chunk without a copy, which then must not be written to."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if len(chunks) == 1:
        return np.from_dlpack(chunks[0])
    empty = np.empty(0, column.type.to_pandas_dtype())
    return np.concatenate([empty, *(np.from_dlpack(chunk) for chunk in chunks)])
