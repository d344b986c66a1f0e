"""What can be measured, each as one function from where the files are to figures: ways, probes, and commands."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import environments
from benchmarks.limits import hard_limit
from benchmarks.make_model import Made
from benchmarks.processes import Figures, evict, prepare, printed, saescope, watched
from benchmarks.shapes import Shape
from benchmarks.workloads import Workload

REFERENCE = "transformers"
LIMIT_BYTES = 6 * 10**9


@dataclass(frozen=True)
class Place:
    """Where a bench happens: a shape's files, a layer, a device, folders for environments and for what is compared."""

    shape: Shape
    layer: int
    device: str
    made: Made
    environments: Path
    scratch: Path
    times: int


@dataclass(frozen=True)
class Task:
    """One row of a table: what is measured once a turn, about how many seconds that takes on two cores, and where."""

    name: str
    title: str
    seconds: float
    run: Callable[[Place], Figures]
    environment: str = ""


@dataclass(frozen=True)
class Way:
    """A way to compute features: its module, the environment it runs in (saescope's own when empty), its options."""

    name: str
    title: str
    module: str
    environment: str = ""
    options: tuple[str, ...] = ()

    def task(self, workload: Workload, seconds: float, *, cold: bool = False) -> Task:
        """This way on these prompts, with the files in the page cache or not."""
        return Task(
            self.name, self.title, seconds, partial(_way, self, workload, cold), self.environment
        )


FLOAT32 = ("--dtype", "float32")
ARTICLE = Way("article", "the article's loop", "article_loop")
CUT = Way(REFERENCE, "transformers, one line", "transformers_cut")
CUT_FLOAT32 = Way(REFERENCE, "transformers, one line", "transformers_cut", options=FLOAT32)
SAE_LENS = Way("sae_lens", "transformers, then SAELens", "sae_lens_encode", "sae_lens")
TRANSFORMER_LENS = Way(
    "transformer_lens", "TransformerLens, `stop_at_layer`", "transformer_lens_stop", "lens"
)
NNSIGHT = Way("nnsight", "nnsight, `tracer.stop()`", "nnsight_stop", "lens")
SAESCOPE = Way("saescope", "**saescope**", "saescope_run")
STREAMED = Way("streamed", "**saescope, streamed**", "saescope_run", options=("--streamed",))
SAESCOPE_FLOAT32 = Way("saescope", "**saescope**", "saescope_run", options=FLOAT32)


def _way(way: Way, workload: Workload, cold: bool, place: Place) -> Figures:
    """One process of one way, and the share of every token's features that it has in common with the reference."""
    interpreter = (
        environments.python(way.environment, place.environments)
        if way.environment
        else sys.executable
    )
    place.scratch.mkdir(parents=True, exist_ok=True)
    kind = "-".join((place.shape.name, place.device, workload.name, *way.options[1:]))
    prompts, out = place.scratch / f"{kind}.json", place.scratch / f"{kind}-{way.name}.npy"
    prompts.write_text(json.dumps(workload.texts(place.shape.vocab)))
    prepare((place.made.model, place.made.sae), cold=cold)
    command = [
        interpreter,
        "-m",
        f"benchmarks.ways.{way.module}",
        "--layer",
        str(place.layer),
        *way.options,
    ]
    command += [
        "--model",
        str(place.made.model),
        "--sae",
        str(place.made.sae),
        "--device",
        place.device,
    ]
    figures = printed([*command, "--prompts", str(prompts), "--out", str(out)])
    figures["tokens_per_s"] = figures["tokens"] / figures["compute_s"]
    return {**figures, **_shared(out, place.scratch / f"{kind}-{REFERENCE}.npy")}


def _shared(ids: Path, reference: Path) -> Figures:
    if not reference.is_file():
        return {}
    ours, theirs = np.load(ids), np.load(reference)
    if ours.shape != theirs.shape:
        return {"shared": 0.0}
    return {
        "shared": float(np.mean([np.isin(a, b).mean() for a, b in zip(ours, theirs, strict=True)]))
    }


def probe(module: str, place: Place, *arguments: str) -> Figures:
    """A process of benchmarks/probes, which repeats what it measures as often as asked."""
    command = [sys.executable, "-m", f"benchmarks.probes.{module}", "--device", place.device]
    return printed([*command, *arguments])


def rates(rows: Sequence[int]) -> Task:
    """The rate of matrix products at so many rows."""

    def run(place: Place) -> Figures:
        shape = next(name for name, one in _shapes().items() if one.name == place.shape.name)
        return probe("rates", place, "--shape", shape, "--rows", *map(str, rows))

    return Task("rates", "matrix products", 2 + sum(rows) / 100, run)


def _shapes() -> dict[str, Shape]:
    from benchmarks.shapes import SHAPES

    return SHAPES


def in_process(module: str, title: str, seconds: float, *, of_model: bool, turns: int = 1) -> Task:
    """A probe that times its ways in turn within one process, `turns` times as often as the bench."""

    def run(place: Place) -> Figures:
        prepare((place.made.model, place.made.sae), cold=False)
        files = [
            "--model",
            str(place.made.model),
            "--sae",
            str(place.made.sae),
            "--layer",
            str(place.layer),
        ]
        figures = probe(
            module, place, *(files if of_model else []), "--times", str(turns * place.times)
        )
        return {**figures, "repeated": turns * place.times}

    return Task(module, title, seconds, run)


def saescope_command(
    name: str, title: str, seconds: float, arguments: Callable[[Place, Path], Sequence[str]]
) -> Task:
    """A command of saescope as a whole process, its run written into a folder that is deleted afterwards."""

    def run(place: Place) -> Figures:
        with tempfile.TemporaryDirectory() as folder:
            return watched([*saescope(), *arguments(place, Path(folder))])

    return Task(name, title, seconds, run)


def contrast(name: str, title: str, seconds: float, layers: str, *, limited: bool) -> Task:
    """`contrast` of 60 prompts in four sets, from files that are not cached; under the hard limit if `limited`."""

    def run(place: Place) -> Figures:
        with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
            sets = _article_sets(place, Path(folder) / "prompts")
            arguments = [
                "contrast",
                str(sets),
                "--model",
                str(place.made.model),
                "--sae",
                str(place.made.sae),
            ]
            arguments += [
                "--layers",
                layers or str(place.layer),
                "--memory",
                "4GiB",
                "--device",
                place.device,
            ]
            arguments += ["--out", str(Path(folder) / "run")]
            prepare((place.made.model, place.made.sae), cold=True)
            if not limited:
                return watched([*saescope(), *arguments])
            with hard_limit(LIMIT_BYTES) as limit:
                figures = watched([*limit.prefix, *saescope(), *arguments])
                return {**figures, "limit": limit.name, "peak_limited": limit.peak()}

    return Task(name, title, seconds, run)


def _article_sets(place: Place, folder: Path) -> Path:
    from benchmarks.workloads import WORKLOADS

    texts = WORKLOADS["short"].texts(place.shape.vocab)
    folder.mkdir(parents=True)
    for number in range(4):
        lines = (text.strip() + "\n" for text in texts[15 * number : 15 * (number + 1)])
        (folder / f"set{number}.txt").write_text("".join(lines))
    return folder


def copy(place: Place) -> Figures:
    """How long this disk takes to write the model's bytes again, until they are on it."""
    prepare((place.made.model, place.made.sae), cold=False)
    with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
        start = time.perf_counter()
        for file in place.made.model.iterdir():
            copied = Path(shutil.copyfile(file, Path(folder) / file.name))
            evict(copied)  # which waits until it is on the disk
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {"wall_s": seconds, "bytes": size}


def bake(method: str, place: Place, *, measured: bool) -> Figures:
    """`saescope bake` of one projected feature, until it is on the disk; `measured` against its hook or not."""
    prepare((place.made.model, place.made.sae), cold=False)
    with tempfile.TemporaryDirectory(dir=place.scratch) as folder:
        edits, out = Path(folder) / "edits.toml", Path(folder) / "baked"
        named = f"model = {json.dumps(str(place.made.model))}\nsae = {json.dumps(str(place.made.sae))}\n"
        edits.write_text(f'{named}[[edit]]\nfeature = "{place.layer}/0"\nop = "project"\n')
        text = (
            ["--neutral", str(_article_sets(place, Path(folder) / "text"))]
            if measured
            else ["--no-measure"]
        )
        options = ["--out", str(out), "--method", method, *text]
        figures = watched([*saescope(), "bake", "--edits", str(edits), *options])
        start = time.perf_counter()
        for file in out.iterdir():
            evict(file)
        figures["wall_s"] += time.perf_counter() - start
        return {**figures, "bytes": sum(file.stat().st_size for file in out.iterdir())}
