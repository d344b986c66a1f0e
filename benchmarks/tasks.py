"""Build the tasks: implementations on a workload, probes within one process, and commands."""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import environments
from benchmarks.limits import hard_limit
from benchmarks.processes import (
    Figures,
    evict,
    prepare,
    run_reporting,
    run_watched,
    saescope_executable,
)
from benchmarks.shapes import SHAPES, Shape
from benchmarks.subject import Setup, Task
from benchmarks.workloads import WORKLOADS, Workload

REFERENCE = "transformers"
LIMIT_BYTES = 6 * 10**9


@dataclass(frozen=True)
class Implementation:
    """A module of benchmarks/implementations, with its options and the environment it runs in.

    An empty environment is saescope's own.
    """

    name: str
    title: str
    module: str
    environment: str = ""
    options: tuple[str, ...] = ()

    def task(self, workload: Workload, seconds: float, *, cold: bool = False) -> Task:
        """This implementation on a workload; `cold` evicts the files from the page cache first."""

        def run(setup: Setup) -> Figures:
            return _run_implementation(self, workload, setup, cold=cold)

        return Task(self.name, self.title, seconds, run, self.environment)


FLOAT32 = ("--dtype", "float32")
ARTICLE = Implementation("article", "the article's loop", "article_loop")
CUT = Implementation(REFERENCE, "transformers, cut", "transformers_cut")
CUT_FLOAT32 = Implementation(REFERENCE, "transformers, cut", "transformers_cut", options=FLOAT32)
SAE_LENS = Implementation("sae_lens", "transformers, then SAELens", "sae_lens_encode", "sae_lens")
TRANSFORMER_LENS = Implementation(
    "transformer_lens", "TransformerLens, `stop_at_layer`", "transformer_lens_stop", "lens"
)
NNSIGHT = Implementation("nnsight", "nnsight, `tracer.stop()`", "nnsight_stop", "lens")
SAESCOPE = Implementation("saescope", "**saescope**", "saescope_run")
STREAMED = Implementation(
    "streamed", "**saescope, streamed**", "saescope_run", options=("--streamed",)
)
SAESCOPE_FLOAT32 = Implementation("saescope", "**saescope**", "saescope_run", options=FLOAT32)


def _run_implementation(
    implementation: Implementation, workload: Workload, setup: Setup, *, cold: bool
) -> Figures:
    """Run one process, and compare its features with the reference's."""
    interpreter = sys.executable
    if implementation.environment:
        interpreter = environments.python(implementation.environment, setup.environments)

    setup.scratch.mkdir(parents=True, exist_ok=True)
    options = implementation.options
    case = "-".join((setup.shape.name, setup.device, workload.name, *options[1:]))
    prompts = setup.scratch / f"{case}.json"
    prompts.write_text(json.dumps(workload.texts(setup.shape.vocab)))
    ids = setup.scratch / f"{case}-{implementation.name}.npy"
    reference = setup.scratch / f"{case}-{REFERENCE}.npy"

    command = [interpreter, "-m", f"benchmarks.implementations.{implementation.module}", *options]
    command += [*_model_options(setup), "--layer", str(setup.layer), "--device", setup.device]
    command += ["--prompts", str(prompts), "--out", str(ids)]
    _prepare_files(setup, cold=cold)
    figures = run_reporting(command)
    figures["tokens_per_s"] = figures["tokens"] / figures["compute_s"]
    if reference.is_file():
        figures["shared"] = _share_of_same_features(
            np.load(ids, allow_pickle=False), np.load(reference, allow_pickle=False)
        )
    return figures


def _share_of_same_features(ids: np.ndarray, reference: np.ndarray) -> float:
    """The mean share of each token's features that the reference has too; 0 if sizes differ."""
    if ids.shape != reference.shape:
        return 0.0
    per_token = [np.isin(ours, theirs).mean() for ours, theirs in zip(ids, reference, strict=True)]
    return float(np.mean(per_token))


def matmul_rates(rows: Sequence[int]) -> Task:
    """The rate of matmuls with these numbers of rows."""

    def run(setup: Setup) -> Figures:
        numbers = [str(number) for number in rows]
        return _run_probe("rates", setup, "--shape", _shape_option(setup.shape), "--rows", *numbers)

    return Task("rates", "matmuls", 2 + sum(rows) / 100, run)


def _shape_option(shape: Shape) -> str:
    return next(option for option, other in SHAPES.items() if other.name == shape.name)


def probe(
    module: str, title: str, seconds: float, *, needs_model: bool, repeats_factor: int = 1
) -> Task:
    """A module of benchmarks/probes, which alternates its cases within one process.

    It repeats each `repeats_factor` times as often as the bench repeats other tasks.
    """

    def run(setup: Setup) -> Figures:
        repeats = repeats_factor * setup.repeats
        options = ["--times", str(repeats)]
        if needs_model:
            _prepare_files(setup, cold=False)
            options += [*_model_options(setup), "--layer", str(setup.layer)]
        return {**_run_probe(module, setup, *options), "repeated": repeats}

    return Task(module, title, seconds, run)


def _run_probe(module: str, setup: Setup, *options: str) -> Figures:
    command = [sys.executable, "-m", f"benchmarks.probes.{module}", "--device", setup.device]
    return run_reporting([*command, *options])


def saescope_command(
    name: str, title: str, seconds: float, arguments: Callable[[Setup], Sequence[str]]
) -> Task:
    """A saescope command as a whole process."""

    def run(setup: Setup) -> Figures:
        return run_watched([*saescope_executable(), *arguments(setup)])

    return Task(name, title, seconds, run)


def contrast(name: str, title: str, seconds: float, layers: str, *, limited: bool) -> Task:
    """`contrast` on 60 prompts in four sets, files evicted first; `limited` sets a hard limit.

    An empty `layers` means the layer of the setup.
    """

    def run(setup: Setup) -> Figures:
        with tempfile.TemporaryDirectory(dir=setup.scratch) as name:
            folder = Path(name)
            sets = _write_prompt_sets(setup, folder / "prompts")
            command = [*saescope_executable(), "contrast", str(sets), *_model_options(setup)]
            command += ["--layers", layers or str(setup.layer), "--memory", "4GiB"]
            command += ["--device", setup.device, "--out", str(folder / "run")]
            _prepare_files(setup, cold=True)
            return _run_limited(command) if limited else run_watched(command)

    return Task(name, title, seconds, run)


def _run_limited(command: Sequence[str]) -> Figures:
    with hard_limit(LIMIT_BYTES) as limit:
        figures = run_watched([*limit.prefix, *command])
        return {**figures, "limit": limit.name, "peak_limited": limit.peak()}


def copy(setup: Setup) -> Figures:
    """Copy the model's files until all bytes are on disk: how fast this disk writes."""
    _prepare_files(setup, cold=False)
    with tempfile.TemporaryDirectory(dir=setup.scratch) as name:
        folder = Path(name)
        start = time.perf_counter()
        for file in setup.files.model.iterdir():
            shutil.copyfile(file, folder / file.name)
            evict(folder / file.name)  # returns once the copy is on disk
        seconds = time.perf_counter() - start
        return {"wall_s": seconds, "bytes": _size_of_files(folder)}


def bake(setup: Setup, method: str, *, measured: bool) -> Figures:
    """`saescope bake` of one projected feature until all bytes are on disk.

    `measured` also compares the checkpoint with its hook.
    """
    _prepare_files(setup, cold=False)
    with tempfile.TemporaryDirectory(dir=setup.scratch) as name:
        folder = Path(name)
        edits, out = _write_edits(setup, folder / "edits.toml"), folder / "baked"
        command = [*saescope_executable(), "bake", "--edits", str(edits)]
        command += ["--out", str(out), "--method", method]
        if measured:
            command += ["--neutral", str(_write_prompt_sets(setup, folder / "text"))]
        else:
            command.append("--no-measure")
        figures = run_watched(command)

        start = time.perf_counter()
        for file in out.iterdir():
            evict(file)
        figures["wall_s"] += time.perf_counter() - start
        return {**figures, "bytes": _size_of_files(out)}


def _write_edits(setup: Setup, file: Path) -> Path:
    """An edits file that projects out feature 0 of the layer."""
    lines = [
        f"model = {json.dumps(str(setup.files.model))}",
        f"sae = {json.dumps(str(setup.files.sae))}",
        "[[edit]]",
        f'feature = "{setup.layer}/0"',
        'op = "project"',
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def _write_prompt_sets(setup: Setup, folder: Path) -> Path:
    """The 60 short prompts as four files of 15."""
    texts = WORKLOADS["short"].texts(setup.shape.vocab)
    folder.mkdir(parents=True)
    for number in range(4):
        lines = [text.strip() + "\n" for text in texts[15 * number : 15 * (number + 1)]]
        (folder / f"set{number}.txt").write_text("".join(lines))
    return folder


def _model_options(setup: Setup) -> list[str]:
    return ["--model", str(setup.files.model), "--sae", str(setup.files.sae)]


def _prepare_files(setup: Setup, *, cold: bool) -> None:
    prepare((setup.files.model, setup.files.sae), cold=cold)


def _size_of_files(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
