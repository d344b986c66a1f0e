"""Speed and memory of the main steps on Gemma 3, beside a plain script that does the same."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from proof.commands import GEMMA, typed
from proof.experiments.languages import SETS
from proof.folder import REPOSITORY, DataFolder
from proof.prompts import prompts_of, row, sample, write_rows
from proof.wording import command_block, join, listed, paragraph, table

_TEXT = "今日はいい天気だ"
_PROMPTS, _NEUTRAL = "runs/speed-beginnings.jsonl", "runs/speed-neutral.jsonl"
_RUN = "runs/speed"
_BEGINNINGS, _TEXTS, _TOKENS = 24, 2, 16
_STEPS = ("scan", "contrast", "evaluate")
_ORDINARY_FEATURES = 6  # as many other conditions as saescope's draws of random controls


class StepFailed(Exception):
    """A measured process ended with an error."""


def run(folder: DataFolder) -> None:
    """Write CPU seconds and peak memory of every step, ours and plain, one after the other."""
    languages = folder.read_result("languages")
    feature = languages["features"]["ja"]
    n_texts = _write_prompts(folder)
    n_prompts = sum(map(len, prompts_of(folder.root / SETS).values()))
    about = {
        "scan": "one short text",
        "contrast": f"{n_prompts:,} paragraphs",
        "evaluate": f"{_BEGINNINGS} beginnings and {n_texts} texts under 12 conditions",
    }
    steps = {}
    for step in _STEPS:
        shutil.rmtree(folder.root / _RUN, ignore_errors=True)
        words = _words(step, feature)
        plain = _plain(step, feature)
        steps[step] = {
            "about": about[step],
            "command": typed(*words),
            "saescope": _measure(folder, [sys.executable, "-m", "saescope", *words, "--json"]),
            "plain": _measure(folder, [sys.executable, "-m", "proof.plain", *plain]),
        }
    idle = {
        "saescope": _measure(folder, [sys.executable, "-m", "saescope", "--version"]),
        "plain": _measure(folder, [sys.executable, "-c", "import proof.plain"]),
    }
    results = {"steps": steps, "start": idle, "cores": os.cpu_count()}
    folder.write_result("speed", results)


def _write_prompts(folder: DataFolder) -> int:
    """Write what `evaluate` reads; returns the number of texts that damage is measured on."""
    sets = folder.root / SETS
    beginnings = sample(sets, {"ja": _BEGINNINGS}, "holdout")
    write_rows(folder.root / _PROMPTS, map(row, beginnings))
    others = [file.stem for file in sorted(sets.glob("*.jsonl")) if file.stem != "ja"]
    texts = sample(folder.sets / "declaration", dict.fromkeys(others, _TEXTS), None)
    write_rows(folder.root / _NEUTRAL, map(row, texts))
    return len(texts)


def _words(step: str, feature: str) -> tuple[str, ...]:
    """Return saescope's command."""
    layer = ("--layers", feature.partition("/")[0])
    if step == "scan":
        return ("scan", _TEXT, *GEMMA, *layer)
    if step == "contrast":
        return ("contrast", SETS, *GEMMA, *layer, "--out", _RUN)
    return (
        "evaluate",
        *("--prompts", _PROMPTS, "--every-prompt", "--behaviour", "language:ja"),
        *("--neutral", _NEUTRAL, "--edit", f"{feature} scale -1", "--sweep", "1,2,3"),
        *("--draws", str(_ORDINARY_FEATURES // 2), "--controls", "same-strength"),
        *("--max-new-tokens", str(_TOKENS), *GEMMA),
    )


def _plain(step: str, feature: str) -> list[str]:
    """Return the plain script's arguments for the same step."""
    layer, _, number = feature.partition("/")
    common = ["models/gemma3", "saes/gemma3", layer]
    if step == "scan":
        return ["scan", *common, _TEXT]
    if step == "contrast":
        return ["rates", *common, SETS]
    others = ",".join(str(int(number) // 2 + n) for n in range(_ORDINARY_FEATURES))
    return [
        *("evaluate", *common, _PROMPTS, "--neutral", _NEUTRAL),
        *("--features", f"{number},{others}", "--tokens", str(_TOKENS)),
    ]


def _measure(folder: DataFolder, command: Sequence[str]) -> dict[str, float]:
    """Run a process in the data folder; return its CPU seconds, seconds and peak memory."""
    path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=folder.root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        # Unlike Popen.wait, this returns what the one process used.
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise StepFailed(f"{' '.join(command[1:4])} failed: {' '.join(last)}")
    return {
        "cpu_s": used.ru_utime + used.ru_stime,
        "wall_s": time.monotonic() - start,
        "peak_bytes": 1024 * used.ru_maxrss,
    }


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about speed and memory."""
    steps = results["steps"]
    return join(
        "## Speed and memory",
        paragraph(
            "Each step as one process, beside a script that does the same with transformers and "
            "hooks alone (`python -m proof.plain`): it runs one text at a time where saescope "
            "batches, and each condition by itself. Both keep the model in bfloat16. The script "
            "computes its answer and no more; saescope also splits, tests, judges and stores."
        ),
        command_block([step["command"] for step in steps.values()]),
        _table(steps),
        paragraph(
            "CPU seconds are of all threads and include starting Python "
            f"({results['start']['saescope']['cpu_s']:.1f} s for saescope alone, "
            f"{results['start']['plain']['cpu_s']:.1f} s for transformers alone). Peak memory is "
            "that of the process, with pages of the weights that are mapped from files.",
            _compared(steps),
        ),
    )


def _table(steps: dict[str, Any]) -> str:
    rows = []
    for name, step in steps.items():
        ours, plain = step["saescope"], step["plain"]
        seconds = [f"{one['cpu_s']:.1f} s" for one in (ours, plain)]
        peaks = [f"{one['peak_bytes'] / 1e9:.2f} GB" for one in (ours, plain)]
        rows.append([f"`{name}`: {step['about']}", *seconds, _times(step), *peaks])
    return table(("step", "saescope", "script", "ratio", "peak", "script's peak"), rows)


def _ratio(step: dict[str, Any]) -> float:
    return float(step["plain"]["cpu_s"] / step["saescope"]["cpu_s"])


def _times(step: dict[str, Any]) -> str:
    return f"{_ratio(step):.1f}"


def _compared(steps: dict[str, Any]) -> str:
    slower = [f"`{name}`" for name, step in steps.items() if _ratio(step) < 1]
    larger = [
        f"`{name}`"
        for name, step in steps.items()
        if step["saescope"]["peak_bytes"] > step["plain"]["peak_bytes"]
    ]
    sentences = []
    if slower:
        sentences.append(f"The script is faster at {listed(slower)}.")
    if larger:
        sentences.append(f"The script takes less memory at {listed(larger)}.")
    return " ".join(sentences)
