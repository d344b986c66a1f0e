"""A causal LM from transformers, cut after the last layer needed.

The layers above, the final norm and the lm_head are never built, fetched or read; tensors stay memory-mapped where the
wanted dtype is the stored one. This file knows checkpoints and modules; it does not know SAEs, prompts or hooks.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from saescope.engine.pages import Pages, mapped_pages
from saescope.errors import SourceError
from saescope.sources.catalog import ModelSpec
from saescope.sources.checkpoint import INDEX, PREFIXES, TOKENIZER_FILES
from saescope.sources.files import Files, fingerprint, open_files

DType = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]

# Architectures that keep attention within each of several prompts in one row (a test compares them with single ones).
_PACKING = ("llama", "mistral", "qwen2", "qwen3")


@final
@dataclass(frozen=True)
class LM:
    """A decoder cut after its last needed layer, its tokenizer, and what it is.

    `mapped` are the pages of each block's weights that lie in files. They are given back after use, so weights must not
    be changed in place: changes would be lost with the pages. `packs` says that several prompts may share a row.
    `source` is what opens the same checkpoint again.
    """

    spec: ModelSpec
    model: nn.Module
    tokenizer: Any
    blocks: nn.ModuleList
    mapped: tuple[list[Pages], ...]
    packs: bool
    max_length: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device
    source: str


def load_lm(
    ref: str | Path,
    layers: Sequence[int],
    *,
    dtype: DType = "auto",
    device: Device = "auto",
    offline: bool = False,
) -> LM:
    """Load the part of a model that computes the outputs of `layers`.

    `ref` is a folder or a hub id (`owner/name@revision`). Raises SourceError for anything missing, damaged or unknown.
    """
    files = open_files(str(ref), offline=offline)
    config = _read_config(files)
    n_layers = int(config.num_hidden_layers)
    if not layers or not all(0 <= layer < n_layers for layer in layers):
        raise SourceError(f"{files.name} has layers 0-{n_layers - 1}, not {', '.join(map(str, layers))}")
    on, kind = choose_device(device), _choose_dtype(dtype, config)
    model = _skeleton(config, last=max(layers), dtype=kind)
    used = _fill(model, files, kind, on)
    tokenizer, tokenizer_files = _read_tokenizer(files)
    return LM(
        spec=ModelSpec(
            repo=files.name,
            revision=files.revision,
            n_layers=n_layers,
            d_model=int(config.hidden_size),
            fingerprint=_digest([files.path(name) for name in ("config.json", *tokenizer_files, *used)]),
        ),
        model=model,
        tokenizer=tokenizer,
        blocks=_blocks(model),
        mapped=tuple(mapped_pages(block.parameters()) for block in _blocks(model)),
        packs=config.model_type in _PACKING,
        max_length=int(getattr(config, "max_position_embeddings", 2**31)),
        vocab_size=int(config.vocab_size),
        dtype=kind,
        device=on,
        source=files.source,
    )


def choose_device(device: Device) -> torch.device:
    """The device asked for, or the best one here; raises SourceError if it is not available."""
    have = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return torch.device("cuda" if have["cuda"] else "mps" if have["mps"] else "cpu")
    if not have[device]:
        raise SourceError(f"device {device} is not available here: use --device cpu or auto")
    return torch.device(device)


def _read_config(files: Files) -> Any:
    from transformers import AutoConfig

    path = files.path("config.json")
    try:
        config = AutoConfig.from_pretrained(path.parent).get_text_config()
    except Exception as error:  # configs check their fields by exceptions of their own
        raise SourceError(f"{path} is no model config this transformers knows: {_first_line(error)}") from error
    if not all(isinstance(getattr(config, name, None), int) for name in ("num_hidden_layers", "hidden_size")):
        raise SourceError(f"{path} does not describe a decoder: it has no num_hidden_layers and hidden_size")
    return config


def _choose_dtype(dtype: DType, config: Any) -> torch.dtype:
    if dtype != "auto":
        return torch.float32 if dtype == "float32" else torch.bfloat16
    stored = getattr(config, "dtype", None)
    # float16 ends at 65,504, below the norms of attention sinks, so such checkpoints are computed in float32.
    return torch.bfloat16 if stored == torch.bfloat16 else torch.float32


def _skeleton(config: Any, *, last: int, dtype: torch.dtype) -> nn.Module:
    """The decoder up to layer `last` without memory, its final norm taken out."""
    from transformers import AutoModel

    build: Callable[..., nn.Module] = AutoModel.from_config
    config.num_hidden_layers = last + 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: last + 1]
    try:
        with torch.device("meta"):
            model = build(config, dtype=dtype)
    except (ValueError, KeyError) as error:
        raise SourceError(f"architecture {config.model_type!r} is not supported: {_first_line(error)}") from error
    if not isinstance(getattr(model, "norm", None), nn.Module) or len(_blocks(model)) != last + 1:
        raise SourceError(f"architecture {config.model_type!r} is not supported: no `layers` and `norm` where expected")
    model.norm = nn.Identity()
    return model.eval().requires_grad_(False)


def _blocks(model: nn.Module) -> nn.ModuleList:
    blocks = getattr(model, "layers", None)
    return blocks if isinstance(blocks, nn.ModuleList) else nn.ModuleList()


def _fill(model: nn.Module, files: Files, dtype: torch.dtype, device: torch.device) -> list[str]:
    """Give every parameter its tensor from the checkpoint; returns the shards that were opened."""
    shard_of = _shards(files)
    wanted = {name: parameter.shape for name, parameter in model.state_dict().items()}
    prefix = next((p for p in PREFIXES if any(p + name in shard_of for name in wanted)), "model.")
    missing = [prefix + name for name in wanted if prefix + name not in shard_of]
    if missing:
        raise SourceError(
            f"{files.name} has no tensor {missing[0]} ({len(missing)} missing): not the weights of its config"
        )
    _fill_buffers(model)
    state: dict[str, Tensor] = {}
    by_shard: dict[str, list[str]] = {}
    for name in wanted:
        by_shard.setdefault(shard_of[prefix + name], []).append(name)
    for shard, names in sorted(by_shard.items()):
        with _open_shard(files.path(shard)) as tensors:
            for name in names:
                tensor = _read_tensor(tensors, prefix + name, shard)
                if tensor.shape != wanted[name]:
                    raise SourceError(
                        f"{files.name}: {prefix + name} has shape {tuple(tensor.shape)}, "
                        f"its config says {tuple(wanted[name])}"
                    )
                state[name] = tensor.to(device=device, dtype=dtype)
    model.load_state_dict(state, assign=True)
    model.to(device)
    return sorted(by_shard)


def _fill_buffers(model: nn.Module) -> None:
    """Compute what checkpoints do not hold, such as rotary frequencies, by the architecture's own rule."""
    for module in model.modules():
        if module._non_persistent_buffers_set:
            module.to_empty(device="cpu", recurse=False)
            model._init_weights(module)  # type: ignore[operator]


def _shards(files: Files) -> dict[str, str]:
    """Which safetensors file holds each tensor."""
    names = files.names()
    if INDEX in names:
        path = files.path(INDEX)
        try:
            weights = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            return {str(name): str(shard) for name, shard in weights.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{path} is not a safetensors index: {_first_line(error)}") from error
    if "model.safetensors" in names:
        with _open_shard(files.path("model.safetensors")) as tensors:
            return dict.fromkeys(tensors.keys(), "model.safetensors")
    raise SourceError(f"{files.name} has no model.safetensors and no {INDEX}: only safetensors weights are read")


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged or truncated: {_first_line(error)}") from error


def _read_tensor(tensors: Any, name: str, shard: str) -> Tensor:
    try:
        tensor: Tensor = tensors.get_tensor(name)
    except SafetensorError as error:
        raise SourceError(f"{shard} does not give tensor {name}: {_first_line(error)}") from error
    return tensor


def _read_tokenizer(files: Files) -> tuple[Any, list[str]]:
    from transformers import AutoTokenizer

    present = [name for name in TOKENIZER_FILES if name in files.names()]
    if not present:
        raise SourceError(f"{files.name} has no tokenizer files (tokenizer.json, …)")
    paths = [files.path(name) for name in present]
    try:
        return AutoTokenizer.from_pretrained(paths[0].parent), present
    except Exception as error:  # tokenizers raises bare Exception for damaged files
        raise SourceError(f"the tokenizer in {paths[0].parent} cannot be read: {_first_line(error)}") from error


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.name):
        digest.update(f"{path.name}={fingerprint(path)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
