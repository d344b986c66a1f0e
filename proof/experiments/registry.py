"""All experiments, in the order of the page; a new one is one line here.

The module of an experiment has two functions: `run(folder: DataFolder) -> None` writes
`results/NAME.json` and pictures `results/NAME-*.svg` or `.png`; `section(results) -> str` makes
Markdown from the content of that file alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proof.experiments import (
    forcing,
    languages,
    large,
    layers,
    refusal,
    removal,
    selectivity,
    speed,
    tokens,
)
from proof.folder import DataFolder
from proof.steps import Step


@dataclass(frozen=True)
class Experiment:
    """What is measured, from which steps, and how the page shows it."""

    name: str
    run: Callable[[DataFolder], None]
    section: Callable[[dict[str, Any]], str]
    needs: tuple[str, ...]
    minutes: float
    about: str

    @property
    def step(self) -> Step:
        """The step that runs it."""
        made = (f"results/{self.name}.json",)
        return Step(self.name, self.run, self.needs, made, self.minutes, self.about)


# Steps to need: smollm2, gemma3, qwen3-tokenizer, sets, smollm2-saes, gemma3-saes.
EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        "languages",
        languages.run,
        languages.section,
        ("gemma3", "sets", "gemma3-saes"),
        2,
        "features of languages over depth",
    ),
    Experiment(
        "removal",
        removal.run,
        removal.section,
        ("languages",),
        0.5,
        "a direction projected out, about zero and about the mean",
    ),
    Experiment(
        "layers", layers.run, layers.section, ("languages",), 4, "detection, output score, effect"
    ),
    Experiment(
        "forcing", forcing.run, forcing.section, ("languages",), 6, "languages forced, suppressed"
    ),
    Experiment(
        "refusal",
        refusal.run,
        refusal.section,
        ("smollm2", "sets", "smollm2-saes"),
        6,
        "the article's refusal plan",
    ),
    Experiment(
        "selectivity",
        selectivity.run,
        selectivity.section,
        ("two-topics",),
        5,
        "one of two declined topics suppressed",
    ),
    Experiment(
        "tokens",
        tokens.run,
        tokens.section,
        ("qwen3-tokenizer", "texts"),
        0.1,
        "the article's token tables",
    ),
    Experiment(
        "speed", speed.run, speed.section, ("languages",), 3, "speed and memory beside a script"
    ),
    Experiment("large", large.run, large.section, ("sets",), 0.2, "what Qwen3-8B would take"),
)
