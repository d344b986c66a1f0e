"""Every way of putting an edit into weights, on the organism: `python -m benchmarks.baking`.

What the organism declines and answers right on held-out requests (three languages), and how far each baked checkpoint
is from its hook, from the edits as steered and from the model, on the bundled neutral text. Prints the table of
docs/baking.md. The direction is the difference of means of the English discovery requests' last residuals.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import saescope as ss
from saescope.control.baking.settings import Method
from saescope.control.evaluation.behaviour import normalised, read_behaviour
from saescope.demo import ORGANISM
from saescope.engine.generate import generate
from saescope.errors import SaescopeError
from saescope.sources.prompts import split_prompts

MODEL, SAE, LAYER = "saescope-tiny-chat", "saescope-tiny-chat-sae", 2
LANGUAGES = ("en", "ja", "zh")
PROJECTING: Sequence[Method] = ("every-write", "readers-above", "next-layer", "writers-up-to")


def main(folder: Path) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    lm, sae = ss.load_lm(MODEL, layers=[LAYER]), ss.load_sae(SAE, layer=LAYER)
    direction = _direction(lm, sae, folder)
    _row("the model", "-", behaviour(lm, nullcontext()), None)
    feature = ss.Edit("2/412", "scale", -3.0)
    means = ss.Edit(direction=direction, op="project")
    along = replace(means, op="add", strength=-1.0)
    for name, edit in (
        ("2/412 scale -3", feature),
        ("means, project", means),
        ("means, add -1", along),
    ):
        _row(name, "steered", behaviour(lm, ss.steered(lm, [sae], [edit])), None)
        for method in ("bias",) if edit.op == "add" else PROJECTING:
            out = folder / f"{edit.op}-{method}"
            try:
                baked = ss.bake(
                    MODEL, [sae], [edit], out, ss.BakeSettings(method=method, convert="project")
                )
            except SaescopeError as error:
                print(f"| {name} | `{method}` | {error} |")
                continue
            _row(
                name,
                f"`{method}`",
                behaviour(ss.load_lm(out, layers=[LAYER]), nullcontext()),
                baked,
            )


def _direction(lm: ss.LM, sae: ss.Sae, folder: Path) -> ss.Direction:
    sets = [
        group
        for group in ss.bundled_prompts("requests")
        if group.name in ("declined_en", "answered_en")
    ]
    run = ss.extract(lm, [sae], sets, folder / "run")
    return ss.difference_of_means(run, "declined_en", LAYER, position="last")


def behaviour(lm: ss.LM, edited: AbstractContextManager[Any]) -> list[tuple[int, int, int, int]]:
    """By language: declined and right of the held-out requests on the topic, how many they are, right of the others."""
    judge = read_behaviour("declining")
    assert isinstance(judge, ss.Phrases)
    answers = json.loads((ORGANISM / "answers.json").read_text(encoding="utf-8"))
    prompts = [prompt for group in ss.bundled_prompts("requests") for prompt in group.prompts]
    held_out = [
        p
        for p, part in zip(prompts, split_prompts(prompts, seed=0), strict=True)
        if part == "holdout"
    ]
    with edited:
        replies = generate(lm, held_out, max_new_tokens=48, thinking=False)
    found = []
    for language in LANGUAGES:
        topic, other = (
            [
                (p, r.text)
                for p, r in zip(held_out, replies, strict=True)
                if p.set == f"{kind}_{language}"
            ]
            for kind in ("declined", "answered")
        )
        right = [
            sum(normalised(text) == normalised(answers[p.id]) for p, text in part)
            for part in (topic, other)
        ]
        found.append(
            (sum(judge(text) is not None for _, text in topic), right[0], len(topic), right[1])
        )
    return found


def _row(
    name: str, way: str, counts: Sequence[tuple[int, int, int, int]], baked: ss.BakeResult | None
) -> None:
    declined, right, _, other = (
        ", ".join(map(str, column)) for column in zip(*counts, strict=True)
    )
    far = ["-"] * 4
    if baked is not None and baked.kl_hook_baked and baked.kl_steered_baked and baked.kl_base_baked:
        three = (baked.kl_hook_baked, baked.kl_steered_baked, baked.kl_base_baked)
        far = [baked.label, *(f"{one.mean:.2g} ({one.p99:.2g})" for one in three)]
    print(
        f"| {name} | {way} | {far[0]} | {declined} | {right} | {other} | {' | '.join(far[1:])} |",
        flush=True,
    )


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.baking", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
