"""Qwen-Scope: one `layer{n}.sae.pt` a layer, a dict of four fp32 tensors.

W_enc (d_sae, d_model)   b_enc (d_sae,)   W_dec (d_model, d_sae)   b_dec (d_model,)
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saescope.errors import SourceError


class SaeTensors(NamedTuple):
    """An SAE's weights as this project holds them: rows of W_enc and columns of W_dec are features."""

    W_enc: Float[Tensor, "d_sae d_model"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_model d_sae"]
    b_dec: Float[Tensor, "d_model"]


def read(path: Path) -> SaeTensors:
    """The four tensors, memory-mapped: a tensor that is not used is never read from disk.

    Raises SourceError for a file that is damaged, holds anything but tensors, or has other names or shapes.
    """
    state = _load(path)
    if not isinstance(state, dict):
        raise SourceError(f"{path} holds a {type(state).__name__}, not a dict of tensors")
    missing = [name for name in SaeTensors._fields if not isinstance(state.get(name), Tensor)]
    if missing:
        keys = ", ".join(sorted(map(str, state))[:8])
        raise SourceError(f"{path} has no tensor {', '.join(missing)} (it has: {keys}); is it a Qwen-Scope file?")
    for name in SaeTensors._fields:
        if not _is_plain(state[name]):
            kind = f"{state[name].dtype} ({state[name].layout}, {state[name].device})"
            raise SourceError(f"{path}: {name} is {kind}, not a plain floating-point tensor")
    tensors = [state[name].detach().to(torch.float32) for name in SaeTensors._fields]
    _check_shapes(path, tensors)
    return SaeTensors(*tensors)


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and not tensor.is_meta


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about unusual pickles, which are then refused or read
            # Only zip archives can be mapped; the older format is read whole.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} is refused: it is damaged, or contains more than plain tensors (code in it was not run)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} is damaged or truncated ({path.stat().st_size:,} bytes): fetch it again") from error


def _check_shapes(path: Path, tensors: list[Tensor]) -> None:
    w_enc, b_enc, w_dec, b_dec = tensors
    if w_enc.ndim == 2:
        d_sae, d_model = w_enc.shape
        if b_enc.shape == (d_sae,) and w_dec.shape == (d_model, d_sae) and b_dec.shape == (d_model,):
            return
    got = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(SaeTensors._fields, tensors, strict=True))
    raise SourceError(
        f"{path}: shapes do not fit together: {got}; "
        "expected W_enc (d_sae, d_model), b_enc (d_sae), W_dec (d_model, d_sae), b_dec (d_model)"
    )
