"""Pages of weights mapped from a file are released after use; the system may keep them cached."""

import ctypes
import mmap
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

_DONTNEED = 4  # madvise on Linux: drop these pages, read them from the file when touched again
_PAGE = mmap.PAGESIZE
_WORTH_RELEASING = 1 << 16  # bytes; to ask which files are mapped takes longer than less is worth


class Pages(NamedTuple):
    """A range of addresses, whole pages."""

    start: int
    length: int


def mapped_pages(tensors: Iterable[Tensor]) -> list[Pages]:
    """Return the whole pages of large memory-mapped tensors; none if the system cannot tell.

    Only these may be released: anonymous memory would come back as zeros.
    """
    if sys.platform != "linux":
        return []
    large = [t for t in tensors if t.device.type == "cpu" and t.nbytes >= _WORTH_RELEASING]
    if not large:
        return []
    pages = []
    mappings = _file_mappings()
    for tensor in large:
        start, end = _whole_pages(tensor)
        if any(first <= start and end <= last for first, last in mappings):
            pages.append(Pages(start, end - start))
    return pages


def pages_of_file(tensor: Tensor) -> list[Pages]:
    """Return the pages of a tensor that is mapped to a file, with writes going into the file."""
    start, end = _whole_pages(tensor)
    if sys.platform != "linux" or end <= start:
        return []
    return [Pages(start, end - start)]


def within(pages: Sequence[Pages], tensor: Tensor) -> list[Pages]:
    """The part of these pages that lies wholly within a tensor, such as a slice of a larger one."""
    if not pages:
        return []
    first, last = _whole_pages(tensor)
    spans = [(max(start, first), min(start + length, last)) for start, length in pages]
    return [Pages(start, end - start) for start, end in spans if end > start]


def release_pages(pages: Sequence[Pages]) -> None:
    """Drop pages from this process, if the system allows it."""
    for start, length in pages:
        _madvise(start, length, _DONTNEED)


def release_heap() -> None:
    """Return free memory of the heap to the system, if it allows that.

    A batch's temporaries leave holes between its results. Without this the holes add up.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def _whole_pages(tensor: Tensor) -> tuple[int, int]:
    """Return the start of the first whole page and the end of the last one."""
    start = tensor.data_ptr()
    end = start + tensor.nbytes
    return -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE


def _file_mappings() -> list[tuple[int, int]]:
    """Address ranges of ordinary files mapped privately and not for writing through."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/") and fields[1].endswith("p"):
            start, end = fields[0].split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return ranges


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

if sys.platform == "linux":
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
