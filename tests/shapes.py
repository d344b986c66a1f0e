"""Real models' files without weights: true configs, indexes and headers over sparse files."""

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shapes import Shape, Tensor

SHARD_BYTES = 4 * 10**9


def save(shape: Shape, model: Path, sae: Path, layers: Sequence[int]) -> None:
    """A folder with the model's shards, and one with these layers of its SAE; no disk is taken."""
    model.mkdir(parents=True)
    sae.mkdir(parents=True)
    config = {
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_size": shape.d_model,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "head_dim": shape.head_dim,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }
    (model / "config.json").write_text(json.dumps(config))
    (model / "tokenizer.json").write_text("{}")
    index: dict[str, str] = {}
    shards = _shards(list(shape.tensors()))
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(model / name, tensors)
        index |= dict.fromkeys((tensor.name for tensor in tensors), name)
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": shape.model_bytes}, "weight_map": index})
    )
    for layer in layers:
        sparse(sae / f"layer{layer}.sae.pt", b"", shape.sae_bytes)


def sparse(path: Path, head: bytes, size: int) -> None:
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)


def _shards(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and 2 * (tensor.n_values + sum(t.n_values for t in shards[-1])) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _write(path: Path, tensors: Sequence[Tensor]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + 2 * tensor.n_values
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.sizes, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    sparse(path, len(text).to_bytes(8, "little") + text, 8 + len(text) + end)
