"""What checking a stored run costs, beside the statistics: `python -m benchmarks.run_checks`.

Writes runs of one layer with random features, and times the contrast of each with the checks of a
first read (SHA-256 and content) and without them, as in later reads of a process. Prints the table
that stands in README.md.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store import table_files
from saescope.store.runs import Job, Run
from saescope.store.tables import LayerFeatures, PromptResids
from saescope.store.writer import RunWriter

D_SAE, K, D_MODEL = 65_536, 50, 2048
SETS, TOKENS = 4, 80
_ROUNDS = 5
_STRATUM = D_SAE // K


def main() -> None:
    """Measure runs of two sizes and print a row of each."""
    print("| stored features | open and read, s | of it checks, s | contrast, s | checks |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for n_prompts in (500, 1250):
            run = write(Path(folder) / f"run{n_prompts}", n_prompts)
            print(_row(run.path))


def write(out: Path, n_prompts: int) -> Run:
    """Write a run of one layer whose tokens have 40 or 50 random features each."""
    rng = np.random.default_rng(0)
    per_set = n_prompts // SETS
    sets = [_prompt_set(f"set{number}", per_set) for number in range(SETS)]
    model = ModelSpec("random", None, 36, D_MODEL, "")
    sae = SaeSpec("random", None, 0, D_MODEL, D_SAE, K, "topk", None, "")
    job = Job(model, (sae,), fingerprint(sets), "bfloat16", "cpu", 1, False, {})
    n_prompts = SETS * per_set
    resids = rng.normal(size=(2, n_prompts, D_MODEL)).astype(np.float32)
    writer = RunWriter(out, job)
    with writer.collecting():
        positions = np.full(n_prompts, TOKENS - 1, np.int32)
        writer.put(0, 0, _features(rng, n_prompts * TOKENS), PromptResids(positions, *resids))
        tokens = [[(position, f"t{position}") for position in range(TOKENS)]] * n_prompts
        record = {
            "command": {"verb": "extract", "request": {}},
            "inputs": {"model": "random", "saes": {}},
        }
        return writer.publish(sets, tokens, [list(range(n_prompts))], record)


def _prompt_set(name: str, n: int) -> PromptSet:
    return PromptSet(name, tuple(Prompt(f"{name}:{i}", name, f"{name} {i}") for i in range(n)))


def _features(rng: np.random.Generator, n_tokens: int) -> LayerFeatures:
    # One feature of each of k strata, so that no token has a feature twice.
    offsets = rng.zipf(1.3, (n_tokens, K)) % _STRATUM
    ids = (np.arange(K) * _STRATUM + offsets).astype(np.uint16)
    rng.permuted(ids, axis=1, out=ids)
    acts = -np.sort(-rng.lognormal(1.0, 0.8, (n_tokens, K)).astype(np.float32), axis=1)
    acts[rng.random(n_tokens) < 0.3, 40:] = 0
    norms = rng.lognormal(4, 0.2, n_tokens).astype(np.float32)
    norms[::TOKENS] *= 100  # position 0 has extreme norms
    return LayerFeatures.of_rows(norms, acts, ids, acts[:, -1] * 0.9)


def _row(path: Path) -> str:
    def read() -> None:
        run = Run.open(path)
        assert len(run.prompts)
        run.features(0)

    n_features = len(Run.open(path).features(0).ids)
    first, later = _seconds(read, forget=True), _seconds(read, forget=False)
    settings = ContrastSettings()
    asked = _seconds(lambda: contrast(Run.open(path), settings), forget=False)
    checks = max(0.0, first - later)
    return (
        f"| {n_features:,} | {first:.2f} | {checks:.2f} | {asked + checks:.2f} "
        f"| {100 * checks / (asked + checks):.1f} % |"
    )


def _seconds(function: Callable[[], object], forget: bool) -> float:
    """The median time, in which every check is made again (`forget`) or none."""
    times = []
    for _ in range(_ROUNDS):
        if forget:
            table_files.forget()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
