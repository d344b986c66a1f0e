"""The embedded pair: a small model and its SAEs in the formats of real ones, made by `training/`."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
SAE = Path(__file__).parent / "sae"
