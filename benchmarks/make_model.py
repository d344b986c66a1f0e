"""Random weights of a true architecture, and a Qwen-Scope-shaped SAE, on disk: `python -m benchmarks.make_model`.

Tensors are drawn and written one after the other, in pieces, so that a model of any size is made in little memory.
Decoders can be left as holes: extraction never reads them, and all layers of a large SAE then fit a disk.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import torch

from benchmarks.processes import Failed
from benchmarks.shapes import SHAPES, Shape, Tensor
from benchmarks.sparse import sparse_file
from benchmarks.words import save_tokenizer

MAX_LENGTH = 32_768
MADE = "made.json"
_SHARD_BYTES = 2 * 10**9
_PIECE_VALUES = 2**24


@dataclass(frozen=True)
class Made:
    """What a bench computes with, on disk: a model's folder and an SAE's."""

    model: Path
    sae: Path


def make(
    shape: Shape, folder: Path, layers: Sequence[int], *, decoders: bool = True, seed: int = 0
) -> Made:
    """Make what is missing of the model and of these layers' SAEs, `decoders` or holes of their size."""
    made = where(shape, folder, decoders=decoders)
    files = [made.sae / f"layer{layer}.sae.pt" for layer in layers]
    missing = [file for file in files if not file.is_file()]
    recipe = {"shape": shape.name, "layers": shape.layers, "seed": seed}
    have_model = (made.model / MADE).is_file() and json.loads(
        (made.model / MADE).read_text()
    ) == recipe
    made.sae.mkdir(parents=True, exist_ok=True)
    sae_bytes = shape.sae_bytes if decoders else shape.sae_bytes - 4 * shape.d_sae * shape.d_model
    check_room(folder, (0 if have_model else shape.model_bytes) + len(missing) * sae_bytes)
    if not have_model:
        shutil.rmtree(made.model, ignore_errors=True)
        made.model.mkdir()
        _save_config(shape, made.model)
        save_tokenizer(made.model, shape.vocab, MAX_LENGTH)
        _save_weights(shape, made.model, seed)
        (made.model / MADE).write_text(json.dumps(recipe))
    for file in missing:
        _save_sae(shape, file, seed, decoder=decoders)
    return made


def where(shape: Shape, folder: Path, *, decoders: bool = True) -> Made:
    """Where model and SAE of a shape are, or will be."""
    return Made(folder / "model", folder / ("" if decoders else "encoders") / shape.sae_folder)


def check_room(folder: Path, needed: int) -> None:
    """Raises Failed unless the disk has room for this many bytes and a twentieth more."""
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise Failed(
            f"{folder} has {free / 1e9:.1f} GB free, {1.05 * needed / 1e9:.1f} GB are needed"
        )


def _save_config(shape: Shape, folder: Path) -> None:
    from transformers import Qwen3Config

    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        dtype="bfloat16",
        hidden_size=shape.d_model,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=shape.tied,
    )
    config.save_pretrained(folder)


def _save_weights(shape: Shape, folder: Path, seed: int) -> None:
    """Shards as transformers writes them, with their index."""
    shards = list(_shards(list(shape.tensors())))
    index: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            _write_shard(file, tensors, seed)
        index |= dict.fromkeys((tensor.name for tensor in tensors), name)
    total = {"metadata": {"total_size": shape.model_bytes}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(total, indent=1))


def _shards(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    for tensor in tensors:
        if shard and 2 * (tensor.n_values + sum(t.n_values for t in shard)) > _SHARD_BYTES:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def _write_shard(file: BinaryIO, tensors: Sequence[Tensor], seed: int) -> None:
    """The safetensors format: the header's length, a JSON header padded to 8 bytes, then the values."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + 2 * tensor.n_values
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        for piece in _values(tensor, seed):
            piece.view(torch.int16).numpy().tofile(file)


def _values(tensor: Tensor, seed: int) -> Iterator[torch.Tensor]:
    """The tensor's values in order, piece by piece, in bfloat16."""
    generator = _generator(tensor.name, seed)
    for start in range(0, tensor.n_values, _PIECE_VALUES):
        piece = torch.ones(min(_PIECE_VALUES, tensor.n_values - start))
        if tensor.std is not None:
            piece.normal_(std=tensor.std, generator=generator)
        yield piece.bfloat16()


def _save_sae(shape: Shape, file: Path, seed: int, *, decoder: bool) -> None:
    """Four fp32 tensors in Qwen-Scope's names and orientation, drawn for this layer."""
    generator = _generator(file.name, seed)
    tensors = {
        "W_enc": torch.randn(shape.d_sae, shape.d_model, generator=generator).mul_(
            shape.d_model**-0.5
        ),
        "b_enc": torch.randn(shape.d_sae, generator=generator).mul_(0.1),
        "W_dec": torch.zeros(shape.d_model, shape.d_sae),
        "b_dec": torch.randn(shape.d_model, generator=generator).mul_(0.1),
    }
    if decoder:
        columns = torch.randn(shape.d_model, shape.d_sae, generator=generator)
        tensors["W_dec"] = torch.nn.functional.normalize(columns, dim=0)
    with sparse_file(file) as out:
        torch.save(tensors, cast(BinaryIO, out))


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_model", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-1.7b")
    parser.add_argument("--out", type=Path, required=True, help="folder for model/ and SAE-Res-…/")
    parser.add_argument(
        "--layers", help="layers of the SAE, as 0,17 or all; the one below the middle when left out"
    )
    parser.add_argument(
        "--no-decoders", action="store_true", help="leave W_dec a hole of zeros that takes no disk"
    )
    parser.add_argument(
        "--only-layers", type=int, metavar="N", help="a model of only its first N layers"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    if args.only_layers is not None:
        shape = shape.cut(args.only_layers)
    try:
        made = make(
            shape,
            args.out,
            _layers(args.layers, shape),
            decoders=not args.no_decoders,
            seed=args.seed,
        )
    except Failed as error:
        raise SystemExit(str(error)) from error
    print(made.model, made.sae, sep="\n")


def _layers(text: str | None, shape: Shape) -> Sequence[int]:
    if text == "all":
        return range(shape.layers)
    layers = [shape.middle] if text is None else [int(part) for part in text.split(",")]
    if not all(0 <= layer < shape.layers for layer in layers):
        raise SystemExit(f"--layers {text}: the model has layers 0-{shape.layers - 1}")
    return layers


if __name__ == "__main__":
    main()
