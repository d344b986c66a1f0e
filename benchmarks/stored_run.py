"""Stored runs to query: one of the embedded pair, and one of real size with random features.

`python -m benchmarks.stored_run FOLDER` writes the latter: 65,536 features, k 50, 36 layers, four
sets of 15 short prompts, ids distributed by Zipf's law. Then: `saescope contrast FOLDER`.
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.processes import run_watched, saescope_executable
from benchmarks.results import current_setting
from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.runs import Job
from saescope.store.tables import LayerFeatures, PromptResids
from saescope.store.writer import RunWriter

D_SAE, K, LAYERS, D_MODEL = 65_536, 50, 36, 4096
SETS, PROMPTS, TOKENS = 4, 15, 8  # prompts per set, tokens per prompt
N_PROMPTS = SETS * PROMPTS
N_TOKENS = N_PROMPTS * TOKENS
SET_FEATURES, SET_RATE = 10, 0.8  # features that distinguish a set, and how often they fire


def get_or_make(kind: str, folder: Path) -> Path:
    """The run `pair`, `one` (layer) or `all` (layers) of this saescope version in `folder`."""
    out = folder / f"run-{kind}-{current_setting()}"
    if out.is_dir():
        return out
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "pair":
        run_watched([*saescope_executable(), "contrast", "--out", str(out)])
    else:
        write(out, layers=1 if kind == "one" else LAYERS)
    return out


def write(out: Path, layers: int = LAYERS, seed: int = 0) -> None:
    """Write a run with random features; ten features in every layer distinguish each set."""
    rng = np.random.default_rng(seed)
    sets = [_prompt_set(f"set{number}") for number in range(SETS)]
    writer = RunWriter(out, _job(sets, layers))
    with writer.collecting():
        for layer in range(layers):
            writer.put(0, layer, _features(rng), _resids(rng))
        tokens = [[(position, f"t{position}") for position in range(TOKENS)]] * N_PROMPTS
        manifest = {
            "command": {"verb": "extract", "options": {}},
            "inputs": {"model": "random", "saes": {}},
        }
        writer.publish(sets, tokens, [list(range(N_PROMPTS))], manifest)


def _prompt_set(name: str) -> PromptSet:
    prompts = [
        Prompt(f"{name}:{number}", name, f"{name} {number}", pair=str(number))
        for number in range(PROMPTS)
    ]
    return PromptSet(name, tuple(prompts))


def _job(sets: list[PromptSet], layers: int) -> Job:
    model = ModelSpec("random", None, LAYERS, D_MODEL, "")
    saes = [
        SaeSpec("random", None, layer, D_MODEL, D_SAE, K, "topk", None, "")
        for layer in range(layers)
    ]
    return Job(model, tuple(saes), fingerprint(sets), "bfloat16", "cpu", 1, False, {})


def _features(rng: np.random.Generator) -> LayerFeatures:
    weights = 1 / np.arange(1, D_SAE + 1) ** 0.8
    keys = rng.exponential(size=(N_TOKENS, D_SAE)) / weights[rng.permutation(D_SAE)]
    keys[:, : SETS * SET_FEATURES] = np.inf  # drawn below: no token has a feature twice
    ids = np.argpartition(keys, K, axis=1)[:, :K].astype(np.uint16)

    set_of_token = np.repeat(np.arange(SETS), PROMPTS * TOKENS)
    set_ids = set_of_token[:, None] * SET_FEATURES + np.arange(SET_FEATURES)
    fires = rng.random((N_TOKENS, SET_FEATURES)) < SET_RATE
    ids[:, :SET_FEATURES] = np.where(fires, set_ids, ids[:, :SET_FEATURES])

    descending = -np.sort(-rng.lognormal(1.0, 0.8, (N_TOKENS, K)).astype(np.float32), axis=1)
    norms = rng.lognormal(4, 0.2, N_TOKENS).astype(np.float32)
    norms[::TOKENS] *= 100  # position 0 has extreme norms
    return LayerFeatures.of_rows(norms, descending, ids, descending[:, -1] * 0.99)


def _resids(rng: np.random.Generator) -> PromptResids:
    mean, last = rng.normal(size=(2, N_PROMPTS, D_MODEL)).astype(np.float32)
    counts = np.full(N_PROMPTS, TOKENS - 1, np.int32)
    return PromptResids(counts, mean, last)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
