"""The organism: the embedded model tuned to decline one harmless topic, its SAEs and prompts."""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
SAE = Path(__file__).parent / "sae"
PROMPTS = Path(__file__).parent / "prompts.jsonl"
NEUTRAL = Path(__file__).parent / "neutral.jsonl"
ANSWERS = Path(__file__).parent / "answers.json"
