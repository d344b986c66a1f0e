"""Options that the probes share."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ModelOptions:
    """The model, SAE and layer that a probe loads, how often it measures, and where."""

    model: Path
    sae: Path
    layer: int
    times: int
    device: Literal["cpu", "cuda"]


def probe_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for `python -m benchmarks.probes.NAME` with `--times` and `--device`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.probes.{name}", description=description
    )
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--sae` and `--layer`."""
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sae", type=Path, required=True)
    parser.add_argument("--layer", type=int, required=True)


def model_options(args: argparse.Namespace) -> ModelOptions:
    """The parsed options."""
    return ModelOptions(args.model, args.sae, args.layer, args.times, args.device)
