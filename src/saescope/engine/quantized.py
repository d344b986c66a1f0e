"""Quantised checkpoints, dequantised by transformers' own rules while their tensors are read.

A quantised weight alone is a wrong model: its scales lie in other tensors. transformers describes
how both make a parameter, as conversions like those of other checkpoints.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from saescope.engine.config import ModelConfig
from saescope.errors import SourceError, first_line
from saescope.sources.files import Files

_ADVICE = "use the model it was quantised from"


@dataclass(frozen=True)
class Dequantizer:
    """How transformers makes full weights of a quantised checkpoint.

    Attributes:
        method: `gguf`, `fp8`, `mxfp4` or `compressed-tensors`.
        stored: A GGUF file's tensors by name, none of them read yet; None for safetensors.
    """

    method: str
    quantizer: Any
    stored: Mapping[str, Any] | None = None


def find_dequantizer(
    files: Files, config: ModelConfig, model: Any, dtype: torch.dtype
) -> Dequantizer | None:
    """Return how to dequantise a checkpoint, or None if it is not quantised.

    Raises SourceError for a method that transformers cannot dequantise while it loads.
    """
    if config.gguf is not None:
        return _gguf(files, config.gguf, model, dtype)
    settings = _settings(config)
    if not settings:
        return None
    method = str(settings.get("quant_method", "unknown"))
    loading = _loading_options().get(method)
    if loading is None:
        raise SourceError(
            f"{files.name} is quantised ({method}), which is not supported: {_ADVICE}"
        )
    return Dequantizer(method, _quantizer(files, method, settings, loading))


def _settings(config: ModelConfig) -> dict[str, Any]:
    for part in (config.outer, config.text):
        settings = getattr(part, "quantization_config", None)
        if settings:
            return dict(settings if isinstance(settings, dict) else settings.to_dict())
    return {}


def _loading_options() -> Mapping[str, Any]:
    """Return transformers' options that dequantise while loading, by method."""
    from transformers.utils.quantization_config import (
        CompressedTensorsConfig,
        FineGrainedFP8Config,
        Mxfp4Config,
    )

    return {
        "fp8": FineGrainedFP8Config,
        "mxfp4": Mxfp4Config,
        "compressed-tensors": CompressedTensorsConfig,
    }


def _quantizer(files: Files, method: str, settings: dict[str, Any], loading: Any) -> Any:
    from transformers.quantizers.auto import AutoHfQuantizer

    quantizers: Any = AutoHfQuantizer  # its methods have no types
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that options of the checkpoint are set again
            merged = quantizers.merge_quantization_configs(settings, loading(dequantize=True))
        quantizer = quantizers.from_config(merged, pre_quantized=True)
        quantizer.validate_environment(device_map=None)
    except ImportError as error:
        raise _missing_extra(files, method) from error
    except Exception as error:  # quantisation configs fail in their own ways
        raise SourceError(
            f"{files.name} is quantised ({method}), but its settings cannot be read: "
            f"{first_line(error)}"
        ) from error
    if not quantizer.quantization_config.dequantize:
        raise SourceError(
            f"{files.name} is quantised ({method}), and this transformers cannot dequantise it: "
            f"{_ADVICE}"
        )
    return quantizer


def _missing_extra(files: Files, method: str) -> SourceError:
    return SourceError(
        f"{files.name} is quantised ({method}): reading it needs pip install 'saescope[quantized]'"
    )


def _gguf(files: Files, name: str, model: Any, dtype: torch.dtype) -> Dequantizer:
    from transformers import GgufConfig
    from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

    path = str(files.path(name))
    quantizer: Any = GgufHfQuantizer(GgufConfig(gguf_file=path, dequantize=True))
    try:
        quantizer.read_header(path)
        quantizer.update_dtype(dtype)
        quantizer.preprocess_model(model=model, dtype=dtype)
        stored = quantizer.get_state_dict(path, model)
    except ImportError as error:
        raise _missing_extra(files, "GGUF") from error
    except Exception as error:  # the reader of GGUF raises its own and NumPy's exceptions
        raise SourceError(f"{path} cannot be read: {first_line(error)}") from error
    return Dequantizer("gguf", quantizer, stored)


@final
class GgufReader:
    """Tensors of a GGUF file by name, as blocks: read when they are asked for."""

    def __init__(self, files: Files, name: str, stored: Mapping[str, Any]) -> None:
        self.files = files
        self.shard_of = dict.fromkeys(stored, name)
        self._stored = stored

    def read(self, name: str) -> Tensor:
        """Return a copy of a stored tensor."""
        return torch.as_tensor(self._stored[name][...])

    def close(self) -> None:
        """Do nothing: the file is mapped only while a tensor is read."""
