"""The same jobs with Qwen3-8B and Qwen-Scope: what `saescope plan` says they take."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.shapes import LARGE, SHAPES, Shape, Tensor
from proof.commands import saescope, typed
from proof.experiments.languages import SETS
from proof.folder import DataFolder
from proof.wording import command_block, join, number, paragraph, table

MODEL, SAE = "Qwen/Qwen3-8B-Base", "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50"
_STAND_IN = "models/qwen3-8b-sizes"
_DTYPE_BYTES, _SHARD_BYTES = 2, 4 * 10**9  # bfloat16, in shards as large as the real ones
_MODES = ("whole", "cut", "streamed")
_JOBS = {
    "one layer": ("--layers", "17"),
    "six layers": ("--layers", "5,11,17,23,29,35"),
    "all 36 layers": ("--layers", "all"),
}


def run(folder: DataFolder) -> None:
    """Write what each job would download, hold in memory and compute on this machine."""
    _write_stand_in(SHAPES[LARGE], folder.root / _STAND_IN)
    jobs = {}
    for name, options in _JOBS.items():
        words = ("plan", SETS, "--sae", SAE, *options, "--measure")
        plan = saescope(folder, *words, "--model", _STAND_IN, "--offline", exit_codes=(0, 1))
        jobs[name] = {"command": typed(*words, "--model", MODEL), "plan": plan}
    shutil.rmtree(folder.root / _STAND_IN)
    folder.write_result("large", {"jobs": jobs, "cores": os.cpu_count()})


def _write_stand_in(shape: Shape, folder: Path) -> None:
    """Write a checkpoint's config and headers; its values are a hole that takes no disk."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "hidden_size": shape.d_model,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 32_768,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shards: list[list[Tensor]] = [[]]
    for tensor in shape.tensors():
        if sum(map(_size, shards[-1])) + _size(tensor) > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for name, tensors in zip(names, shards, strict=True):
        _write_shard(folder / name, tensors)
    weight_map = {
        tensor.name: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors
    }
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def _size(tensor: Tensor) -> int:
    return _DTYPE_BYTES * tensor.n_values


def _write_shard(path: Path, tensors: Sequence[Tensor]) -> None:
    header: dict[str, Any] = {}
    end = 0
    for tensor in tensors:
        start, end = end, end + _size(tensor)
        place = {"shape": tensor.sizes, "data_offsets": [start, end]}
        header[tensor.name] = {"dtype": "BF16", **place}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about the article's own model."""
    jobs = results["jobs"]
    tokens = jobs["one layer"]["plan"]["tokens"]
    options = f"--model {MODEL} \\\n    --sae {SAE}"
    return join(
        "## With Qwen3-8B and Qwen-Scope",
        paragraph(
            "The article's own model and its SAEs are too large for this run. Every experiment "
            "takes them in place of Gemma: the same commands with other names, here on the same "
            "prompt sets. First let `plan` say what they take on your machine."
        ),
        command_block(
            [
                jobs["one layer"]["command"],
                f"saescope fetch {options} --layers 17",
                f"saescope layers {SETS} {options} \\\n    --layers 5,11,17,23,29,35 --out runs/q",
                "saescope contrast runs/q",
                "saescope select runs/q --target ja --behaviour language:ja --cut 0.5",
            ],
            "needs Qwen3-8B and its SAEs",
        ),
        _table(jobs),
        paragraph(
            f"Sizes and memory are those of `plan` for the {tokens:,} tokens of the sets; a "
            "checkpoint with the true sizes and no values stood in for the weights. Times to fetch "
            "are at 100 Mbit/s. The computing time is that of scanning, from the rate of matrix "
            f"products on this machine ({number(results['cores'])} cores): an accelerator takes a "
            "small part of it. `select`, `evaluate` and `steer` write text and need the whole "
            "model. `plan` does not estimate their time."
        ),
    )


def _table(jobs: dict[str, Any]) -> str:
    rows = []
    for name, job in jobs.items():
        plan = job["plan"]
        fetch = plan["disk_bytes"] / plan["bandwidth_bytes_per_s"]
        memory = [_gigabytes(plan["memory"][mode]["bytes"]) for mode in _MODES]
        compute = plan["compute_seconds"]
        rows.append([name, _gigabytes(plan["disk_bytes"]), _hours(fetch), *memory, _hours(compute)])
    memory = [f"memory, {mode}" for mode in _MODES]
    return table(("layers", "to fetch", "takes", *memory, "computing"), rows)


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
