"""Equal prompts and shared prefixes are computed once, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import tiny
from conftest import Pair
from saescope.engine.batches import BatchPlan, plan_token_batches
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.sources.prompts import texts
from saescope.store.runs import Run

SYSTEM = (
    "You are a careful assistant. Answer in one short sentence, and say so where you do not know. "
)
QUESTIONS = [
    "What is this?",
    "Where is it, then?",
    "x",
    "Who was there on that day, and why did they stay?",
    "What is this?",
]
rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=40), min_size=1, max_size=20)


def computed(plan: BatchPlan) -> int:
    """Tokens that go through the model, a shared prefix once a batch."""
    return sum(
        b.prefix_length + sum(len(plan.token_ids[p]) - b.prefix_length for p in b.prompts)
        for b in plan.batches
    )


@given(rows, st.integers(1, 200), st.booleans(), st.booleans())
def test_every_token_has_its_own_residual(
    prompts: list[list[int]], budget: int, packed: bool, shares: bool
) -> None:
    plan = plan_token_batches(prompts, budget, packed=packed, shares=shares)
    assert sorted(p for n in range(len(plan.batches)) for p in plan.prompt_order(n)) == list(
        range(len(prompts))
    )
    for number, batch in enumerate(plan.batches):
        suffixes = [
            (p, at) for p in batch.prompts for at in range(batch.prefix_length, len(prompts[p]))
        ]
        laid_out = [(batch.prompts[0], at) for at in range(batch.prefix_length)] + suffixes
        source = plan.residual_indices(number)
        numbers = range(len(laid_out)) if source is None else source.tolist()
        contexts = [prompts[p][: at + 1] for p, at in (laid_out[n] for n in numbers)]
        assert contexts == [
            prompts[p][: at + 1] for p in plan.prompt_order(number) for at in range(len(prompts[p]))
        ]
        assert all(len(prompts[p]) > batch.prefix_length for p in batch.prompts)


def test_groups_are_cut_where_that_saves_most() -> None:
    a, b, start = [1] * 40, [2] * 40, [0] * 20
    prompts = [[*start, *system, n] for system in (a, b) for n in range(10)] + [[9, 9]]
    plan = plan_token_batches(prompts, 1000, packed=True, shares=True)
    assert sorted(batch.prefix_length for batch in plan.batches) == [0, 60, 60]
    assert computed(plan) == 2 + 2 * (60 + 10)


def test_prompts_that_extend_each_other_do_not_recurse_for_ever() -> None:
    plan = plan_token_batches([[1] * n for n in range(1, 1500)], 2048, packed=True, shares=True)
    assert sum(len(batch.prompts) for batch in plan.batches) == 1499


def run_of(pair: Pair, tmp_path: Path, name: str, *, shares: bool, prompts: list[str]) -> Run:
    lm, saes = pair.load(0, 2)
    lm = replace(lm, max_length=400)
    batching_lm = lm if shares else replace(lm, packs_prompts=False, shares_prefixes=False)
    return extract(batching_lm, saes, texts(prompts), tmp_path / name, batch_tokens=400)


def test_shared_prefix_gives_the_same_features(pair: Pair, tmp_path: Path) -> None:
    prompts = [SYSTEM + question for question in QUESTIONS] + ["something else altogether"]
    shared = run_of(pair, tmp_path, "shared", shares=True, prompts=prompts)
    plain = run_of(pair, tmp_path, "plain", shares=False, prompts=prompts)
    assert np.array_equal(shared.token_id, plain.token_id)
    for layer in (0, 2):
        with_sharing, without_sharing = shared.features(layer), plain.features(layer)
        np.testing.assert_allclose(with_sharing.norms, without_sharing.norms, rtol=1e-5)
        np.testing.assert_allclose(with_sharing.acts, without_sharing.acts, atol=2e-5)
        assert (with_sharing.ids == without_sharing.ids).mean() > 0.999
        for name in ("mean", "last"):
            np.testing.assert_allclose(
                getattr(shared.resids(layer), name), getattr(plain.resids(layer), name), atol=2e-5
            )


def test_copies_are_bitwise_the_same(pair: Pair, tmp_path: Path) -> None:
    run = run_of(pair, tmp_path, "run", shares=True, prompts=[*tiny.TEXTS, *tiny.TEXTS])
    n = len(run.token_id) // 2
    features = run.features(2)
    first, second = features.take(np.arange(n)), features.take(np.arange(n, 2 * n))
    for name in ("norms", "counts", "acts", "ids", "next_pre_act"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert np.array_equal(
        run.resids(2).mean[: len(tiny.TEXTS)], run.resids(2).mean[len(tiny.TEXTS) :]
    )


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_prefix_is_run_once_in_every_architecture_that_shares(kind: type, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    tok = tiny.tokenizer()
    config = kind(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tok),
        max_position_embeddings=400,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(
        tmp_path / "model"
    )
    tok.save_pretrained(tmp_path / "model")
    pair = Pair(tmp_path / "model", tiny.save_sae(tmp_path / "sae"))
    prompts = [SYSTEM + question for question in QUESTIONS]
    seen: list[int] = []
    lm = load_lm(pair.model, [2])
    lm.blocks[0].register_forward_pre_hook(
        lambda _block, inputs: seen.append(inputs[0][..., 0].numel())
    )
    assert lm.packs_prompts
    saes = pair.load(2)[1]
    run = extract(lm, saes, texts(prompts), tmp_path / "run")
    assert sum(seen) < 0.7 * len(run.token_id)
    alone = replace(lm, packs_prompts=False, shares_prefixes=False)
    plain = extract(alone, saes, texts(prompts), tmp_path / "plain", batch_tokens=1)
    np.testing.assert_allclose(run.features(2).acts, plain.features(2).acts, atol=2e-5)
