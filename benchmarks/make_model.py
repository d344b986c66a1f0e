"""Write random weights and SAEs of a real architecture: `python -m benchmarks.make_model`.

Tensors are drawn and written piece by piece, so a model of any size needs little memory. SAEs have
the format of Qwen-Scope. Decoders can be left as holes in their files: extraction never reads them,
and all layers of a large SAE then fit on a disk.
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

from benchmarks.processes import ProcessFailed
from benchmarks.shapes import MAIN, SHAPES, Shape, Tensor
from benchmarks.sparse import sparse_file
from benchmarks.words import save_tokenizer

MAX_LENGTH = 32_768
RECIPE_FILE = "made.json"
_SHARD_BYTES = 2 * 10**9
_PIECE_VALUES = 2**24


@dataclass(frozen=True)
class ModelFiles:
    """Folders of a model and of its SAEs."""

    model: Path
    sae: Path


def make(
    shape: Shape, folder: Path, layers: Sequence[int], *, decoders: bool = True, seed: int = 0
) -> ModelFiles:
    """Write the model and the SAEs of `layers`, unless they exist.

    Without `decoders`, each decoder is a hole of its size. Raises ProcessFailed if the disk
    is too small.
    """
    files = locate(shape, folder, decoders=decoders)
    sae_files = [files.sae / f"layer{layer}.sae.pt" for layer in layers]
    missing = [file for file in sae_files if not file.is_file()]
    recipe = {"shape": shape.name, "layers": shape.layers, "seed": seed}
    has_model = _is_made_from(recipe, files.model)
    files.sae.mkdir(parents=True, exist_ok=True)

    needed = 0 if has_model else shape.model_bytes
    needed += len(missing) * _sae_bytes_on_disk(shape, decoders=decoders)
    check_free_space(folder, needed)
    if not has_model:
        shutil.rmtree(files.model, ignore_errors=True)
        files.model.mkdir()
        _save_config(shape, files.model)
        save_tokenizer(files.model, shape.vocab, MAX_LENGTH)
        _save_weights(shape, files.model, seed)
        (files.model / RECIPE_FILE).write_text(json.dumps(recipe))
    for file in missing:
        save_sae(shape.d_model, shape.d_sae, file, seed, decoder=decoders)
    return files


def locate(shape: Shape, folder: Path, *, decoders: bool = True) -> ModelFiles:
    """Where the model and the SAEs of a shape are, or will be."""
    sae_parent = folder if decoders else folder / "encoders"
    return ModelFiles(folder / "model", sae_parent / shape.sae_folder)


def _is_made_from(recipe: dict[str, object], model: Path) -> bool:
    stored = model / RECIPE_FILE
    return stored.is_file() and json.loads(stored.read_text()) == recipe


def _sae_bytes_on_disk(shape: Shape, *, decoders: bool) -> int:
    if decoders:
        return shape.sae_bytes
    return shape.sae_bytes - 4 * shape.d_sae * shape.d_model


def check_free_space(folder: Path, needed: int) -> None:
    """Raise ProcessFailed unless the disk has 5 % more than `needed` bytes free."""
    free, required = shutil.disk_usage(folder).free, 1.05 * needed
    if free < required:
        sizes = f"{free / 1e9:.1f} GB free, but {required / 1e9:.1f} GB are needed"
        raise ProcessFailed(f"{folder} has {sizes}")


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
    """Write shards and their index, as transformers does."""
    shards = list(_shards(list(shape.tensors())))
    index: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            _write_shard(file, tensors, seed)
        for tensor in tensors:
            index[tensor.name] = name
    contents = {"metadata": {"total_size": shape.model_bytes}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(contents, indent=1))


def _shards(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    shard_bytes = 0
    for tensor in tensors:
        tensor_bytes = 2 * tensor.n_values
        if shard and shard_bytes + tensor_bytes > _SHARD_BYTES:
            yield shard
            shard, shard_bytes = [], 0
        shard.append(tensor)
        shard_bytes += tensor_bytes
    yield shard


def _write_shard(file: BinaryIO, tensors: Sequence[Tensor], seed: int) -> None:
    """Write a safetensors file: header length, JSON header padded to 8 bytes, then the values."""
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
    """Values of a tensor in order, piece by piece, in bfloat16."""
    generator = _generator(tensor.name, seed)
    for start in range(0, tensor.n_values, _PIECE_VALUES):
        piece = torch.ones(min(_PIECE_VALUES, tensor.n_values - start))
        if tensor.std is not None:
            piece.normal_(std=tensor.std, generator=generator)
        yield piece.bfloat16()


def save_sae(d_model: int, d_sae: int, file: Path, seed: int = 0, *, decoder: bool) -> None:
    """Write one layer's SAE: four float32 tensors in Qwen-Scope's names and orientation."""
    generator = _generator(file.name, seed)
    encoder = torch.randn(d_sae, d_model, generator=generator)
    tensors = {
        "W_enc": encoder.mul_(d_model**-0.5),
        "b_enc": torch.randn(d_sae, generator=generator).mul_(0.1),
        "W_dec": torch.zeros(d_model, d_sae),
        "b_dec": torch.randn(d_model, generator=generator).mul_(0.1),
    }
    if decoder:
        columns = torch.randn(d_model, d_sae, generator=generator)
        tensors["W_dec"] = torch.nn.functional.normalize(columns, dim=0)
    with sparse_file(file) as out:
        torch.save(tensors, cast(BinaryIO, out))


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def main() -> None:
    """The command line."""
    args = _parser().parse_args()
    shape = SHAPES[args.shape]
    if args.only_layers is not None:
        shape = shape.cut(args.only_layers)
    layers = _parse_layers(args.layers, shape)
    try:
        files = make(shape, args.out, layers, decoders=not args.no_decoders, seed=args.seed)
    except ProcessFailed as error:
        raise SystemExit(str(error)) from error
    print(files.model, files.sae, sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.make_model", description=__doc__)
    add = parser.add_argument
    add("--shape", choices=SHAPES, default=MAIN)
    add("--out", type=Path, required=True, help="folder for model/ and SAE-Res-…/")
    add("--layers", help="SAE layers, for example 0,17 or all; default: the one below the middle")
    add("--no-decoders", action="store_true", help="leave W_dec as a hole of zeros")
    add("--only-layers", type=int, metavar="N", help="write only the model's first N layers")
    add("--seed", type=int, default=0)
    return parser


def _parse_layers(text: str | None, shape: Shape) -> Sequence[int]:
    if text is None:
        return [shape.middle]
    if text == "all":
        return range(shape.layers)
    layers = [int(layer) for layer in text.split(",")]
    if not all(0 <= layer < shape.layers for layer in layers):
        last = shape.layers - 1
        raise SystemExit(f"--layers must lie between 0 and {last}, got {text}")
    return layers


if __name__ == "__main__":
    main()
