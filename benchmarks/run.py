"""Run every way on every workload in turn, compare what they computed, and write the table: `scripts/bench`."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.make_model import make, middle
from benchmarks.quiet import undisturbed
from benchmarks.report import Result, report, write_readme
from benchmarks.shapes import SHAPES, Shape
from benchmarks.workloads import WORKLOADS, Workload

ROOT = Path(__file__).parent.parent
WAYS = ("article_loop", "transformers_cut", "saescope_run")
FURTHER = ("saescope_streamed", "transformers_float32", "saescope_float32")
REFERENCE = "transformers_cut"
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


@dataclass(frozen=True)
class Bench:
    """What is measured: a shape's files at a layer, and where processes leave their outputs."""

    shape: Shape
    layer: int
    model: Path
    sae: Path
    scratch: Path
    cold: bool

    def run(self, way: str, workload: Workload) -> Result:
        """One process of one way; exits with what it printed if it fails."""
        prompts, out = self.scratch / f"{workload.name}.json", self.scratch / f"{workload.name}-{way}.npy"
        prompts.write_text(json.dumps(workload.texts(self.shape.vocab)))
        command = [sys.executable, "-m", f"benchmarks.ways.{way}", "--model", str(self.model), "--sae", str(self.sae)]
        command += ["--layer", str(self.layer), "--prompts", str(prompts), "--out", str(out)]
        for file in (*self.model.iterdir(), *self.sae.iterdir()):
            evict(file) if self.cold else warm(file)
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **_QUIET})
        wall = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{way} failed:\n{done.stderr}")
        return Result(wall_s=wall, **json.loads(done.stdout.splitlines()[-1]))

    def ids(self, way: str, workload: Workload) -> npt.NDArray[np.int32]:
        """What the way's last process computed: (tokens, k) feature ids."""
        ids: npt.NDArray[np.int32] = np.load(self.scratch / f"{workload.name}-{way}.npy")
        return ids


def warm(file: Path) -> None:
    """Read a file, so that it is in the page cache."""
    with file.open("rb") as opened:
        while opened.read(2**24):
            pass


def evict(file: Path) -> None:
    """Drop a file from the page cache."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(bench: Bench, ways: Sequence[str], workload: Workload, times: int) -> dict[str, list[Result]]:
    """Every way `times` times, in turn, so that a slow minute of the machine meets all of them."""
    results: dict[str, list[Result]] = {way: [] for way in ways}
    for turn in range(times):
        for way in ways:
            result = undisturbed(partial(bench.run, way, workload))
            results[way].append(result)
            print(f"{workload.name} {turn + 1}/{times} {way}: {result}", file=sys.stderr, flush=True)
    return results


def agreement(bench: Bench, ways: Sequence[str], workload: Workload) -> dict[str, float]:
    """The share of each token's features that a way has in common with the reference; exits where rows differ."""
    chosen = next((way for way in ways if way.startswith("transformers")), REFERENCE)
    reference = np.sort(bench.ids(chosen, workload), axis=1)
    shares = {}
    for way in ways:
        ids = bench.ids(way, workload)
        if ids.shape != reference.shape:
            raise SystemExit(f"{way} computed {ids.shape}, {chosen} {reference.shape}")
        shares[way] = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(ids, reference, strict=True)]))
    return {way: shared / reference.shape[1] for way, shared in shares.items()}


def tables(bench: Bench, ways: Sequence[str], names: Sequence[str], times: int) -> Iterator[str]:
    """One table a workload, as Markdown."""
    for name in names:
        workload = WORKLOADS[name]
        results = measure(bench, ways, workload, times)
        yield report(workload, results, agreement(bench, ways, workload))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-1.7b")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where models are made and kept")
    parser.add_argument("--layer", type=int, help="the layer; the one below the middle when left out")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--ways", nargs="+", choices=WAYS + FURTHER, default=list(WAYS))
    parser.add_argument("--cold", action="store_true", help="drop the files from the page cache before every process")
    parser.add_argument("--place", help="the README's markers are the shape and this word")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    layer = middle(shape) if args.layer is None else args.layer
    ways = list(dict.fromkeys(args.ways))
    if not any(way.startswith("transformers") for way in ways):
        ways.append(REFERENCE)
    model, sae = make(shape, args.folder / args.shape, layer)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(shape, layer, model, sae, Path(scratch), args.cold)
        text = "\n\n".join(tables(bench, ways, args.workloads, args.times))
    key, files = (f"{args.shape} cold", "not cached") if args.cold else (args.shape, "in the page cache")
    key = f"{args.shape} {args.place}" if args.place else key
    write_readme(key, f"{shape.name}, layer {layer}, files {files}", args.times, text)


if __name__ == "__main__":
    main()
