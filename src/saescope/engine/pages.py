"""Weights mapped from a file are given back once used: the kernel keeps them cached, the process does not hold them."""

import ctypes
import mmap
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

_DONTNEED = 4  # Linux's number for "forget these pages; read them again from the file when they are touched"
_PAGE = mmap.PAGESIZE


class Pages(NamedTuple):
    """A range of addresses, whole pages."""

    start: int
    length: int


def mapped_pages(tensors: Iterable[Tensor]) -> list[Pages]:
    """The whole pages of those tensors that lie in a file mapped into memory; none where the system cannot tell.

    Only these may be given back: anonymous memory would come back as zeros.
    """
    if sys.platform != "linux":
        return []
    found = []
    files = _file_mappings()
    for tensor in tensors:
        start, end = _whole_pages(tensor)
        if (
            tensor.device.type == "cpu"
            and end > start
            and any(a <= start and end <= b for a, b in files)
        ):
            found.append(Pages(start, end - start))
    return found


def pages_of_file(tensor: Tensor) -> list[Pages]:
    """The pages of a tensor that is a file mapped and written through: what was written stays in the file."""
    start, end = _whole_pages(tensor)
    return [Pages(start, end - start)] if sys.platform == "linux" and end > start else []


def within(pages: Sequence[Pages], tensor: Tensor) -> list[Pages]:
    """The part of these pages that lies wholly in one tensor, as a slice of a larger one."""
    if not pages:
        return []
    first, last = _whole_pages(tensor)
    spans = [(max(start, first), min(start + length, last)) for start, length in pages]
    return [Pages(start, end - start) for start, end in spans if end > start]


def release_pages(pages: Sequence[Pages]) -> None:
    """Drop pages from this process; a system that will not is left alone."""
    for start, length in pages:
        _madvise(start, length, _DONTNEED)


def _whole_pages(tensor: Tensor) -> tuple[int, int]:
    return -(-tensor.data_ptr() // _PAGE) * _PAGE, (
        tensor.data_ptr() + tensor.nbytes
    ) // _PAGE * _PAGE


def _file_mappings() -> list[tuple[int, int]]:
    """Address ranges of ordinary files mapped privately and not for writing through."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/") and fields[1].endswith("p"):
            start, end = fields[0].split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


if sys.platform == "linux":
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
