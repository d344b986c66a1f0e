"""The files that tensors lie in: nothing in them is run, and what can be is mapped instead of read."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saescope.errors import SourceError, first_line

_LOCAL_HEADER = struct.Struct(
    "<4s22xHH"
)  # of a zip member: its mark, and the lengths of name and extra field
_MOST_PACKED = 100  # weights hardly shrink; an archive that grows more than this is no SAE


def read_torch(path: Path) -> Mapping[str, Any]:
    """A dict saved by torch, mapped; raises SourceError for a file that is damaged or holds anything but plain data."""
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # about unusual pickles, which are then refused or read
            # Only zip archives can be mapped; the older format is read whole.
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} is refused: it is damaged, or contains more than plain tensors (code in it was not run)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise _damaged(path) from error
    if not isinstance(state, dict):
        raise SourceError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
    return state


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """Every tensor of a safetensors file, mapped; raises SourceError for a file that is damaged."""
    try:
        with safe_open(path, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{path} is damaged or truncated: {first_line(error)}") from error


def read_npz(path: Path) -> Mapping[str, Tensor]:
    """Every array of floats in a numpy archive, mapped where it is not packed; raises SourceError where it is damaged.

    Arrays of anything else are left out: none is ever unpickled.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                info.filename.removesuffix(".npy"): _array(path, archive, info)
                for info in archive.infolist()
            }
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        EOFError,
        struct.error,
        NotImplementedError,
    ) as error:
        raise _damaged(path) from error
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def _array(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> npt.NDArray[Any] | None:
    with archive.open(info) as member:
        shape, in_columns, dtype = _header(member)
        begins = member.tell()
        if dtype.kind != "f" or dtype.itemsize > 8:
            return None
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size != info.file_size - begins or info.file_size > _MOST_PACKED * max(
            1, info.compress_size
        ):
            raise ValueError("an array's size is not that of its data")
        order: Any = "F" if in_columns else "C"
        native = dtype.newbyteorder("=")
        if info.compress_type == zipfile.ZIP_STORED and dtype == native and size:
            start = _data_offset(path, info) + begins
            # Private pages: nothing is written to the file, and torch may take them for memory of its own.
            return np.memmap(path, dtype, mode="c", offset=start, shape=shape, order=order)
        values = np.frombuffer(member.read(), dtype).astype(native)
        return values.reshape(shape, order=order)


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's data begin: its own header may be longer than what the directory says of it."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        mark, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if mark != b"PK\x03\x04":
        raise ValueError("no header where a member begins")
    return int(info.header_offset + _LOCAL_HEADER.size + name + extra)


def _damaged(path: Path) -> SourceError:
    return SourceError(
        f"{path} is damaged or truncated ({path.stat().st_size:,} bytes): fetch it again"
    )
