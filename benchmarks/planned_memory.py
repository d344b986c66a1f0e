"""Planned beside measured peak memory: `python -m benchmarks.planned_memory --out FOLDER`.

Makes models of real shapes with random weights, asks `saescope plan` what each job holds at most,
runs the job as a process of its own and prints a table of both. Needs 8 GB of disk and 6 GB of
memory, and takes about 20 minutes on two cores.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.make_model import MAX_LENGTH, ModelFiles, make, save_sae
from benchmarks.processes import ProcessFailed, prepare, run_watched, saescope_executable
from benchmarks.shapes import MAIN, SHAPES
from benchmarks.words import save_tokenizer, words
from saescope.sources.prompt_sets import DEFAULT_BUNDLE

_OWN_SETS = {"short": (15, 8), "many": (100, 64)}  # prompts per set, tokens
_SMALL_VOCAB = 49_152


@dataclass(frozen=True)
class ModelKind:
    """A model of a real shape: its class's config, dtype on disk, and the width of its SAEs."""

    model_type: str
    config: Mapping[str, Any]
    dtype: str
    d_model: int
    d_sae: int


KINDS = {
    "gpt2": ModelKind("gpt2", {"vocab_size": 50_257}, "float32", 768, 24_576),
    "smollm2-135m": ModelKind(
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49_152,
            "max_position_embeddings": MAX_LENGTH,
            "tie_word_embeddings": True,
        },
        "bfloat16",
        576,
        4096,
    ),
    "pythia-410m": ModelKind(
        "gpt_neox",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "vocab_size": 50_304,
        },
        "float16",
        1024,
        32_768,
    ),
    "qwen3-moe": ModelKind(
        "qwen3_moe",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "moe_intermediate_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 64,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "vocab_size": 151_936,
            "max_position_embeddings": MAX_LENGTH,
            "tie_word_embeddings": True,
        },
        "bfloat16",
        1024,
        16_384,
    ),
}


@dataclass(frozen=True)
class Case:
    """One job: its model, verb, prompts, layers and further options."""

    model: str
    verb: str
    sets: str
    layers: str
    options: tuple[str, ...] = ()


FLOAT32 = ("--dtype", "float32")
CASES = (
    Case("saescope-tiny", "scan", "one", "2"),
    Case("saescope-tiny", "contrast", "bundled", "all"),
    Case("saescope-tiny", "steer", "one", "2"),
    Case("gpt2", "scan", "one", "6"),
    Case("gpt2", "contrast", "many", "6"),
    Case("gpt2", "contrast", "many", "2,6,10"),
    Case("gpt2", "steer", "one", "6"),
    Case("smollm2-135m", "scan", "one", "15"),
    Case("smollm2-135m", "contrast", "many", "15"),
    Case("smollm2-135m", "contrast", "many", "15", FLOAT32),
    Case("smollm2-135m", "steer", "one", "15"),
    Case("pythia-410m", "scan", "one", "12"),
    Case("pythia-410m", "contrast", "many", "12"),
    Case("pythia-410m", "contrast", "many", "12", ("--memory", "1300MB")),
    Case("pythia-410m", "steer", "one", "12"),
    Case("qwen3-moe", "scan", "one", "4"),
    Case("qwen3-moe", "contrast", "many", "4"),
    Case("qwen3-moe", "contrast", "many", "4", ("--memory", "1450MB")),
    Case(MAIN, "scan", "one", "13"),
    Case(MAIN, "contrast", "short", "13"),
    Case(MAIN, "contrast", "many", "13"),
    Case(MAIN, "contrast", "many", "3,9,13,20"),
    Case(MAIN, "contrast", "many", "13", ("--memory", "1800MB")),
    Case(MAIN, "contrast", "many", "3,9,13,20", ("--memory", "1800MB")),
    Case(MAIN, "contrast", "short", "3", FLOAT32),
    Case(MAIN, "contrast", "many", "3", FLOAT32),
    Case(MAIN, "contrast", "many", "3", (*FLOAT32, "--memory", "2900MB")),
    Case(MAIN, "steer", "one", "13"),
)


def main() -> None:
    """Make what is missing, measure each case and print the table row by row."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planned_memory", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--only", nargs="+", default=(), help="models or verbs to measure")
    args = parser.parse_args()
    print("| model | job | prompts | way | planned, MB | measured, MB | planned / measured |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for case in CASES:
        if all(word in (case.model, case.verb, case.sets) for word in args.only):
            try:
                print(measure(case, args.out), flush=True)
            except ProcessFailed as failed:
                print(f"| {case.model} | {case.verb} | | {failed}", flush=True)


def measure(case: Case, folder: Path) -> str:
    """Run one case's plan and its job; return its row."""
    with tempfile.TemporaryDirectory() as scratch:
        pair = [] if case.model == "saescope-tiny" else _pair(case.model, folder / case.model)
        vocab = SHAPES[MAIN].vocab if case.model in (MAIN, "qwen3-moe") else _SMALL_VOCAB
        sets = Path(DEFAULT_BUNDLE)
        if case.sets != "bundled":
            sets = _save_sets(Path(scratch) / "sets", case.sets, vocab)
        common = [*pair, "--layers", case.layers, "--device", "cpu", *case.options, "--json"]
        plan = _plan([*saescope_executable(), "plan", str(sets), *common])
        mode = "whole" if case.verb == "steer" else plan["mode"]
        arguments = _JOBS[case.verb](case, sets, Path(scratch) / "run")
        job = [*saescope_executable(), case.verb, *arguments, *common]
        figures = run_watched(job)
    planned, measured = plan["memory"][mode]["bytes"] / 1e6, figures["peak_rss"] / 1e6
    options = " ".join((case.verb, case.layers, *case.options))
    return (
        f"| {case.model} | {options} | {case.sets} | {mode} | {planned:,.0f} | "
        f"{measured:,.0f} | {planned / measured:.2f} |"
    )


def _contrast(_case: Case, sets: Path, run: Path) -> list[str]:
    return [str(sets), "--out", str(run)]


def _scan(_case: Case, sets: Path, _run: Path) -> list[str]:
    return ["--file", str(sets / "one.txt")]


def _steer(case: Case, sets: Path, _run: Path) -> list[str]:
    edit = ["--edit", f"{case.layers}/3 add 1", "--max-new-tokens", "16"]
    return [(sets / "one.txt").read_text().strip(), *edit]


_JOBS: Mapping[str, Callable[[Case, Path, Path], list[str]]] = {
    "contrast": _contrast,
    "scan": _scan,
    "steer": _steer,
}


def _plan(command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 2:
        sys.exit(done.stderr)
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def _save_sets(folder: Path, name: str, vocab: int) -> Path:
    """Write two prompt sets, or one with a single prompt."""
    rng, known = random.Random(name), words(vocab)
    folder.mkdir()
    if name == "one":
        (folder / "one.txt").write_text("".join(rng.choices(known, k=12)).strip() + "\n")
        return folder
    n_prompts, n_tokens = _OWN_SETS[name]
    for label in ("one", "other"):
        lines = ["".join(rng.choices(known, k=n_tokens)).strip() for _ in range(n_prompts)]
        (folder / f"{label}.txt").write_text("\n".join(lines) + "\n")
    return folder


def _pair(model: str, folder: Path) -> list[str]:
    files = _make(model, folder)
    prepare([files.model, files.sae], cold=False)
    return ["--model", str(files.model), "--sae", str(files.sae)]


def _make(model: str, folder: Path) -> ModelFiles:
    if model == MAIN:
        return make(SHAPES[MAIN], folder, (3, 9, 13, 20), decoders=False)
    kind = KINDS[model]
    files = ModelFiles(folder / "model", folder / f"SAE-Res-Own-W{kind.d_sae // 1024}K-L0_50")
    if not (files.model / "tokenizer.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        files.sae.mkdir(parents=True)
        _save_model(kind, files.model)
        layers = {
            layer for case in CASES if case.model == model for layer in case.layers.split(",")
        }
        for layer in layers:
            save_sae(kind.d_model, kind.d_sae, files.sae / f"layer{layer}.sae.pt", decoder=False)
    return files


def _save_model(kind: ModelKind, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind.model_type, **kind.config)
    config.bos_token_id = config.eos_token_id = None
    model = AutoModelForCausalLM.from_config(
        config, dtype=getattr(torch, kind.dtype), trust_remote_code=False
    )
    model.save_pretrained(folder)
    save_tokenizer(folder, _n_words(config.vocab_size), MAX_LENGTH)


def _n_words(vocab: int) -> int:
    """Size of the tokenizer: the same for all models with about 50,000 tokens."""
    return _SMALL_VOCAB if vocab < 60_000 else vocab


if __name__ == "__main__":
    main()
