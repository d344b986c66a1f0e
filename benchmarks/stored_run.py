"""Stored runs to ask questions of: of the embedded pair, and of real size with random features.

`python -m benchmarks.stored_run FOLDER` writes one: 65,536 features, k 50, 36 layers, four sets of 15 short prompts,
ids by Zipf's law. Then: `saescope contrast FOLDER`.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.processes import saescope, watched
from benchmarks.results import setting
from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.runs import Job
from saescope.store.tables import LayerFeatures, PromptResids
from saescope.store.writer import RunWriter

D_SAE, K, LAYERS, D_MODEL, SETS, PROMPTS, TOKENS = 65_536, 50, 36, 4096, 4, 15, 8


def kept(kind: str, folder: Path) -> Path:
    """The run `pair`, `one` (layer) or `all` (layers) in a folder, made by the present saescope if it is not there."""
    out = folder / f"run-{kind}-{setting()}"
    if not out.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "pair":
            watched([*saescope(), "contrast", "--out", str(out)])
        else:
            write(out, 1 if kind == "one" else LAYERS)
    return out


def write(out: Path, layers: int = LAYERS, seed: int = 0) -> None:
    """Write the run; every set has ten features of its own in every layer."""
    rng = np.random.default_rng(seed)
    names = [f"set{n}" for n in range(SETS)]
    sets = [
        PromptSet(s, tuple(Prompt(f"{s}:{i}", s, f"{s} {i}", pair=str(i)) for i in range(PROMPTS)))
        for s in names
    ]
    total = SETS * PROMPTS * TOKENS
    saes = [SaeSpec("random", None, n, D_MODEL, D_SAE, K, "topk", None, "") for n in range(layers)]
    job = Job(
        ModelSpec("random", None, LAYERS, D_MODEL, ""),
        tuple(saes),
        fingerprint(sets),
        "bfloat16",
        "cpu",
        1,
        False,
        {},
    )
    writer = RunWriter(out, job)
    with writer.collecting():
        for layer in range(layers):
            writer.put(0, layer, _features(rng, total), _resids(rng))
        tokens = [[(i, f"t{i}") for i in range(TOKENS)]] * (SETS * PROMPTS)
        record = {
            "command": {"verb": "extract", "options": {}},
            "inputs": {"model": "random", "saes": {}},
        }
        writer.publish(sets, tokens, [list(range(len(tokens)))], record)


def _features(rng: np.random.Generator, total: int) -> LayerFeatures:
    weights = 1 / np.arange(1, D_SAE + 1) ** 0.8
    keys = rng.exponential(size=(total, D_SAE)) / weights[rng.permutation(D_SAE)]
    ids = np.argpartition(keys, K, axis=1)[:, :K].astype(np.uint16)
    own = np.repeat(np.arange(SETS), PROMPTS * TOKENS)
    ids[:, :10] = np.where(
        rng.random((total, 10)) < 0.8, own[:, None] * 10 + np.arange(10), ids[:, :10]
    )
    acts = -np.sort(-rng.lognormal(1.0, 0.8, (total, K)).astype(np.float32), axis=1)
    norms = rng.lognormal(4, 0.2, total).astype(np.float32)
    norms[::TOKENS] *= 100
    return LayerFeatures.of_rows(norms, acts, ids, acts[:, -1] * 0.99)


def _resids(rng: np.random.Generator) -> PromptResids:
    mean, last = rng.normal(size=(2, SETS * PROMPTS, D_MODEL)).astype(np.float32)
    return PromptResids(np.full(SETS * PROMPTS, TOKENS - 1, np.int32), mean, last)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
