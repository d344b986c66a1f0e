"""Compare every way of baking an edit, on the organism: `python -m benchmarks.baking`.

Counts what the organism declines and answers correctly on held-out requests in three languages.
Measures how far each baked checkpoint is from its hook, from the steered model and from the
original, on the bundled neutral text. Prints rows for docs/bake-and-export.md. The direction is the
difference of means of the last residuals of the English discovery requests.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import saescope as ss
from saescope.control.baking.settings import Method
from saescope.control.evaluation.behaviour import read_behaviour
from saescope.control.evaluation.judge import normalised
from saescope.demo import ORGANISM
from saescope.engine.generate import generate_batch
from saescope.errors import SaescopeError
from saescope.sources.prompts import Prompt
from saescope.sources.splits import split_prompts

MODEL, SAE, LAYER = "saescope-tiny-chat", "saescope-tiny-chat-sae", 2
LANGUAGES = ("en", "ja", "zh")
PROJECTION_METHODS: Sequence[Method] = (
    "every-write",
    "readers-above",
    "next-layer",
    "writers-up-to",
)


def main(folder: Path) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    lm, sae = ss.load_lm(MODEL, layers=[LAYER]), ss.load_sae(SAE, layer=LAYER)
    direction = _difference_of_means(lm, sae, folder)
    edits = {
        "2/412 scale -3": ss.Edit("2/412", "scale", -3.0),
        "means, project": ss.Edit(direction=direction, op="project"),
        "means, add -1": ss.Edit(direction=direction, op="add", strength=-1.0),
    }
    _print_row("the model", "-", count_replies(lm, nullcontext()))
    for name, edit in edits.items():
        steered = ss.steered(lm, [sae], [edit])
        _print_row(name, "steered", count_replies(lm, steered))
        methods: Sequence[Method] = ("bias",) if edit.op == "add" else PROJECTION_METHODS
        for method in methods:
            out = folder / f"{edit.op}-{method}"
            try:
                settings = ss.BakeSettings(method=method, convert="project", force=True)
                baked = ss.bake(MODEL, [sae], [edit], out, settings)
            except SaescopeError as error:
                print(f"| {name} | `{method}` | {error} |")
                continue
            counts = count_replies(ss.load_lm(out, layers=[LAYER]), nullcontext())
            _print_row(name, f"`{method}`", counts, baked)


def _difference_of_means(lm: ss.LM, sae: ss.Sae, folder: Path) -> ss.Direction:
    english = ("declined_en", "answered_en")
    sets = [group for group in ss.bundled_prompts("requests") if group.name in english]
    run = ss.extract(lm, [sae], sets, folder / "run")
    return ss.difference_of_means(run, "declined_en", LAYER, position="last")


@dataclass(frozen=True)
class ReplyCounts:
    """Replies to held-out requests in one language, on the topic and on other subjects."""

    declined: int
    correct_on_topic: int
    correct_on_others: int


def count_replies(lm: ss.LM, editing: AbstractContextManager[Any]) -> list[ReplyCounts]:
    """Counts of declined and of correct replies for each language."""
    prompts = _held_out_requests()
    with editing:
        replies = generate_batch(lm, prompts, max_new_tokens=48, thinking=False)
    declining = read_behaviour("declining")
    assert isinstance(declining, ss.judges.PhraseJudge)
    answers = json.loads((ORGANISM / "answers.json").read_text(encoding="utf-8"))

    declined: dict[str, int] = dict.fromkeys(_set_names(), 0)
    correct: dict[str, int] = dict.fromkeys(_set_names(), 0)
    for prompt, reply in zip(prompts, replies, strict=True):
        declined[prompt.set] += declining.label(reply.text) is not None
        correct[prompt.set] += normalised(reply.text) == normalised(answers[prompt.id])
    counts = []
    for language in LANGUAGES:
        topic, others = f"declined_{language}", f"answered_{language}"
        counts.append(ReplyCounts(declined[topic], correct[topic], correct[others]))
    return counts


def _set_names() -> list[str]:
    return [f"{kind}_{language}" for kind in ("declined", "answered") for language in LANGUAGES]


def _held_out_requests() -> list[Prompt]:
    prompts = [prompt for group in ss.bundled_prompts("requests") for prompt in group.prompts]
    parts = split_prompts(prompts, seed=0)
    return [prompt for prompt, part in zip(prompts, parts, strict=True) if part == "holdout"]


def _print_row(
    name: str, method: str, counts: Sequence[ReplyCounts], baked: ss.BakeResult | None = None
) -> None:
    columns = [
        [count.declined for count in counts],
        [count.correct_on_topic for count in counts],
        [count.correct_on_others for count in counts],
    ]
    by_language = [", ".join(map(str, column)) for column in columns]
    label, *distances = _label_and_distances(baked)
    print("| " + " | ".join([name, method, label, *by_language, *distances]) + " |", flush=True)


def _label_and_distances(baked: ss.BakeResult | None) -> list[str]:
    if baked is None:
        return ["-"] * 4
    cells = [baked.label]
    for divergence in (baked.kl_hook_baked, baked.kl_steered_baked, baked.kl_base_baked):
        if divergence is None:
            return ["-"] * 4
        cells.append(f"{divergence.mean:.2g} ({divergence.p99:.2g})")
    return cells


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.baking", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
