"""Files that hold tensors: .pt, .safetensors, .npz. Mapped if possible; no code in them is run."""

import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from saescope.errors import SourceError, first_line
from saescope.sources.archives import check_archive
from saescope.sources.machine import show_bytes
from saescope.sources.regular_files import UnreadableFileError, check_regular

# Of a zip member's own header: its signature, and the lengths of name and extra field.
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\x03\x04"
# Where a training checkpoint keeps its tensors, and what wrapping modules put before their names.
_NESTED = ("state_dict", "model_state_dict", "model", "sae", "sae_state_dict", "autoencoder", "ae")
_WRAPPER_PREFIXES = ("_orig_mod.", "module.", "model.", "sae.", "autoencoder.", "ae.")
_MAX_NESTING = 3


def read_torch(path: Path) -> Mapping[str, Any]:
    """A dict saved by torch, mapped; raises SourceError if damaged or not plain data."""
    try:
        check_regular(path)
        is_zip = zipfile.is_zipfile(path)  # only zip archives can be mapped, not the older format
        if is_zip:
            check_archive(path, stored=True)
        # torch warns of unusual pickles, which are then refused or read.
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} is refused: it is damaged, or contains more than plain tensors "
            "(code in it was not run)"
        ) from error
    except UnreadableFileError as error:
        raise SourceError(f"{path} is refused: {error}") from error
    except Exception as error:  # torch's unpickler trusts the structure of a file
        raise _damaged(path) from error
    if not isinstance(state, dict):
        raise SourceError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
    state = _state_dict(state)
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            check_held(path, name, value)
    return state


def check_held(path: Path, name: object, tensor: Tensor) -> None:
    """Raise SourceError for a tensor that says it has more values than its file holds.

    Strides of 0 spread one number over any shape: every copy of it would be as large as it says.
    """
    if tensor.layout is not torch.strided or tensor.is_meta:
        return  # refused by whoever reads it
    said = tensor.numel() * tensor.element_size()
    held = min(tensor.untyped_storage().nbytes(), path.stat().st_size)
    if said > held:
        raise SourceError(
            f"{path} is refused: {name!s:.80} says it has {show_bytes(said)}, "
            f"the file holds {show_bytes(held)} of it"
        )


def _state_dict(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tensors of a training checkpoint: nested, and with the prefix of a wrapping module."""
    for _ in range(_MAX_NESTING):
        inner = [content[key] for key in _NESTED if isinstance(content.get(key), dict)]
        if any(isinstance(value, torch.Tensor) for value in content.values()) or len(inner) != 1:
            break
        content = inner[0]
    tensors = [name for name, value in content.items() if isinstance(value, torch.Tensor)]
    for prefix in _WRAPPER_PREFIXES:
        if tensors and all(str(name).startswith(prefix) for name in tensors):
            content = {str(name).removeprefix(prefix): value for name, value in content.items()}
            tensors = [name.removeprefix(prefix) for name in tensors]
    return content


def read_safetensors(path: Path) -> Mapping[str, Tensor]:
    """All tensors of a safetensors file, mapped; raises SourceError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{path} is damaged or truncated: {first_line(error)}") from error


def read_npz(path: Path) -> Mapping[str, Tensor]:
    """All floating-point arrays of a numpy archive, mapped unless compressed.

    Other arrays are left out, and none is unpickled. Raises SourceError if the file is damaged.
    """
    tensors = {}
    try:
        check_archive(path)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                array = _read_array(path, archive, info)
                if array is not None:
                    tensors[info.filename.removesuffix(".npy")] = torch.from_numpy(array)
    except UnreadableFileError as error:
        raise SourceError(f"{path} is refused: {error}") from error
    except Exception as error:  # zipfile and NumPy raise whatever a damaged file leads to
        raise _damaged(path) from error
    return tensors


def _read_array(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> npt.NDArray[Any] | None:
    with archive.open(info) as member:
        header = _read_array_header(member)
        shape, dtype, order = header.shape, header.dtype, header.order
        if dtype.kind != "f" or dtype.itemsize > 8:
            return None
        header_size = member.tell()
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size != info.file_size - header_size:
            raise ValueError("the size of an array is not that of its data")
        native = dtype.newbyteorder("=")
        if info.compress_type == zipfile.ZIP_STORED and dtype == native and size:
            offset = _data_offset(path, info) + header_size
            # Private pages: torch may treat them as its own memory, the file never changes.
            return np.memmap(path, dtype, mode="c", offset=offset, shape=shape, order=order)
        values = np.frombuffer(member.read(), dtype).astype(native)
        return values.reshape(shape, order=order)


@dataclass(frozen=True)
class _ArrayHeader:
    """The header of an .npy file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]


def _read_array_header(member: Any) -> _ArrayHeader:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    else:
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(member)
    return _ArrayHeader(shape, dtype, "F" if is_fortran else "C")


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """The position of a member's data; its own header may be longer than in the directory."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        signature, name_size, extra_size = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != _SIGNATURE:
        raise ValueError("a member has no header")
    return int(info.header_offset + _LOCAL_HEADER.size + name_size + extra_size)


def _damaged(path: Path) -> SourceError:
    size = path.stat().st_size
    return SourceError(f"{path} is damaged or truncated ({size:,} bytes): fetch it again")
