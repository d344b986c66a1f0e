"""Candidates whose edits change the first token of replies most get replies at every strength."""

from functools import partial
from pathlib import Path

import pytest
import torch

import tiny
from saescope.control.edits import Edit
from saescope.control.evaluation.runner import ArmRunner, ReplyCounter
from saescope.control.evaluation.screening import n_kept, screened, start_effects
from saescope.control.evaluation.settings import SelectSettings
from saescope.control.steer import steered
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.sources.catalog import Feature
from saescope.sources.prompts import texts
from saescope.store.resume_cache import ResumeCache


def test_half_of_the_candidates_and_at_least_four_keep_every_strength(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1, decoder=True)
    prompts = texts([text for text in tiny.TEXTS if len(text) > 1], "set")[0].prompts
    tries = {
        Feature(1, n): [Edit(f"1/{n}", "add", strength * n) for strength in (0.5, 1.0)]
        for n in range(10)
    }
    runner = ArmRunner(
        lm, [sae], prompts, [], SelectSettings(), ResumeCache(), ReplyCounter(None, 0)
    )
    remaining, kept = screened(runner, tries)
    assert list(remaining) == list(tries)
    assert len(kept) == n_kept(len(tries)) == 5
    assert Feature(1, 0) not in kept  # its strengths are 0
    for feature, edits in remaining.items():
        assert len(edits) == (2 if feature in kept else 1)
    effects = {}
    for feature, edits in tries.items():
        for edit in edits:
            rows = [torch.tensor([lm.tokenizer(prompt.text)["input_ids"]]) for prompt in prompts]
            kls = []
            for ids in rows:
                with torch.inference_mode():
                    before = torch.log_softmax(lm.whole(ids).logits[0, -1], -1)
                    with steered(lm, [sae], [edit]):
                        after = torch.log_softmax(lm.whole(ids).logits[0, -1], -1)
                kls.append(float((before.exp() * (before - after)).sum()))
            effects[feature] = max(effects.get(feature, 0.0), sum(kls) / len(kls))
    assert kept == set(sorted(effects, key=effects.__getitem__)[-5:])
    blocks = [partial(steered, lm, [sae], [tries[feature][1]]) for feature in tries]
    ids = [lm.tokenizer(prompt.text)["input_ids"] for prompt in prompts]
    for measured, feature in zip(start_effects(lm, ids, blocks), tries, strict=True):
        assert measured <= effects[feature] * (1 + 1e-3)
    few = dict(list(tries.items())[:4])
    assert screened(runner, few) == (
        {feature: list(edits) for feature, edits in few.items()},
        {*few},
    )


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (4, 4), (5, 4), (8, 4), (9, 5), (12, 6)])
def test_numbers_of_candidates(n: int, kept: int) -> None:
    assert n_kept(n) == kept
