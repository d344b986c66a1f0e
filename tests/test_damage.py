"""Damage is that of ordinary forward passes, though what lies below the edits runs once."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kinds
import tiny
from saescope.control.edits import Edit
from saescope.control.evaluation import neutral_passes
from saescope.control.evaluation.damage import Damage, DamageMeter
from saescope.control.steer import steered
from saescope.engine import split_pass
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.engine.split_pass import can_split
from saescope.sources.saes import open_sae

# Full and sliding attention, linear attention, states, experts, keys and values shared.
MODELS = ("Gemma 3", "Qwen3.5", "Granite 4", "LFM2", "Mixtral", "DeepSeek-V3", "Gemma 4")
TEXTS = ("The red car", "old", "a big brown dog", "one sun and a moon", "x")
EDITS: tuple[Sequence[Edit], ...] = (
    [Edit("2/3", "add", 4.0)],
    [Edit("1/3", "scale", -3.0, skip_sinks=True), Edit("2/5", "project")],
    [Edit("2/7", "add", 3.0, when="1/9 > 0.1")],
)


def load_pair(model: str, folder: Path) -> tuple[LM, list[Sae]]:
    kind = kinds.KINDS[model]
    if model == "Gemma 4":
        kind = replace(kind, values={**kind.values, "num_kv_shared_layers": 2})
    kinds.save(kind, folder / "model")
    sae = open_sae(str(tiny.save_sae(folder / "sae", [1, 2], d_model=kinds.D_MODEL, d_sae=64)))
    return load_lm(str(folder / "model")), [load_sae(sae, n, decoder=True) for n in (1, 2)]


def plain_damage(lm: LM, rows: Sequence[Sequence[int]], steering: Any) -> tuple[float, float]:
    """Mean KL and share of flips, one row at a time, each in an ordinary forward pass."""
    kls: list[float] = []
    flips: list[bool] = []
    for row in rows:
        ids = torch.tensor([list(row)])
        with torch.inference_mode():
            before = torch.log_softmax(lm.whole(ids).logits[0].double(), -1)
            with steering():
                after = torch.log_softmax(lm.whole(ids).logits[0].double(), -1)
        kls += (before.exp() * (before - after)).sum(-1).tolist()
        flips += (before.argmax(-1) != after.argmax(-1)).tolist()
    return float(np.mean(kls)), float(np.mean(flips))


@pytest.mark.parametrize(
    "model", [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])]
)
def test_damage_equals_that_of_ordinary_passes(model: str, tmp_path: Path) -> None:
    lm, saes = load_pair(model, tmp_path)
    assert can_split(lm, 1, [5, 6, 7]) == (model != "Gemma 4")
    rows = [lm.tokenizer(text)["input_ids"] for text in TEXTS]
    blocks = [partial(steered, lm, saes, edits) for edits in EDITS]
    meter = DamageMeter(lm, rows)
    first = meter.measure([nullcontext, *blocks])
    assert (first[0].kl_mean, first[0].top1_flips, first[0].ppl_ratio) == (0, 0, 1)
    for block, damage in zip(blocks, first[1:], strict=True):
        kl, flips = plain_damage(lm, rows, block)
        assert kl > 1e-4
        assert damage.kl_mean == pytest.approx(kl, rel=1e-3)
        assert damage.top1_flips == pytest.approx(flips)
    assert meter.measure(blocks[1:]) == first[2:]


def test_the_lower_layers_run_once_for_all_arms_and_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, saes = load_pair("Qwen3", tmp_path)
    rows = [lm.tokenizer(text)["input_ids"] for text in TEXTS]
    runs = [0] * kinds.LAYERS

    def count(layer: int, *_: Any) -> None:
        runs[layer] += 1

    blocks = [partial(steered, lm, saes, [Edit("2/3", "add", float(n))]) for n in range(1, 4)]
    DamageMeter(lm, rows).measure(blocks[:1])  # tries once whether this model can be split
    meter = DamageMeter(lm, rows)
    n_batches = len(meter._passes.batches)
    own = [block.mlp.register_forward_hook(partial(count, n)) for n, block in enumerate(lm.blocks)]
    kept = [*meter.measure(blocks), *meter.measure(blocks)]
    assert runs[1:3] == [n_batches] * 2
    assert runs[3] == (1 + 2 * len(blocks)) * n_batches  # once without edits
    for handle in own:
        handle.remove()
    assert all("forward" not in vars(block) for block in lm.blocks)
    # Without memory for what is kept, and if blocks cannot be skipped, the figures are the same.
    monkeypatch.setattr(neutral_passes.NeutralPasses, "_fits", lambda *_: False)
    assert DamageMeter(lm, rows).measure(blocks) == kept[:3]
    monkeypatch.setattr(neutral_passes, "can_split", lambda lm, layer, _: layer > 2)
    assert DamageMeter(lm, rows).measure(blocks) == kept[:3]
    monkeypatch.setattr(neutral_passes, "can_split", lambda *_: False)
    for damage, first in zip(DamageMeter(lm, rows).measure(blocks), kept[:3], strict=True):
        assert damage.kl_mean == pytest.approx(first.kl_mean, rel=1e-4)


def test_other_threads_run_the_whole_model_meanwhile(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    lm, _ = load_pair("Qwen3", tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = lm.whole(ids).logits
        lower = split_pass.run_lower(lm, 1, input_ids=ids + 9, use_cache=False)

    def elsewhere() -> Any:
        with torch.inference_mode():
            return lm.whole(ids).logits

    with split_pass.starting_above(lm, lower), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(elsewhere).result(), expected)
        with torch.inference_mode():
            assert not torch.equal(lm.whole(ids).logits, expected)
    assert torch.equal(elsewhere(), expected)


def test_damage_has_every_figure(tmp_path: Path) -> None:
    lm, saes = load_pair("Qwen3", tmp_path)
    rows = [lm.tokenizer(text)["input_ids"] for text in TEXTS if len(text) > 1]
    sets = [str(len(row) > 5) for row in rows]
    [damage] = DamageMeter(lm, rows, sets).measure([partial(steered, lm, saes, EDITS[0])])
    assert isinstance(damage, Damage)
    assert damage.tokens == sum(map(len, rows))
    assert set(damage.kl_sets) == {"True", "False"}
    assert damage.kl_mean < damage.kl_p95 < damage.kl_p99
    assert damage.ppl_ratio > 1
