"""Edits hold in transformers' generation: with and without cache, beams, copies, hybrids."""

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig, pipeline
from transformers.cache_utils import DynamicCache

import tiny
from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine.generate import generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.errors import EditError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import texts

Steerable = tuple[LM, list[Sae]]
EDITS = [Edit(Feature(1, 3), "add", 4.0), Edit(Feature(2, 8), "scale", 3.0)]
TEXT = "def add(a, b):\n    return a + b"


@pytest.fixture(scope="module")
def steerable(tmp_path_factory: pytest.TempPathFactory) -> Steerable:
    folder = tmp_path_factory.mktemp("transformers")
    source = tiny.save_sae(folder / "sae")
    lm = load_lm(tiny.save_model(folder / "model"), [2])
    lm.whole.generation_config.eos_token_id = None
    return lm, [load_sae(source, layer) for layer in (0, 1, 2)]


def ids_of(lm: LM, text: str = TEXT) -> Tensor:
    return torch.tensor([lm.tokenizer(text)["input_ids"]])


def written(lm: LM, ids: Tensor, **extra: Any) -> Tensor:
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    return lm.whole.generate(input_ids=ids, **{**options, **extra})


def test_transformers_generate_equals_our_generation(steerable: Steerable) -> None:
    lm, saes = steerable
    ids, [prompt] = ids_of(lm), texts([TEXT])[0].prompts
    plain = written(lm, ids)
    with steered(lm, saes, EDITS) as receipt:
        [ours] = generate_batch(lm, [prompt], max_new_tokens=8)
        counted = receipt.positions
        theirs = written(lm, ids)
        assert receipt.positions == 2 * counted
        uncached = written(lm, ids, use_cache=False)
    assert theirs[0, ids.shape[1] :].tolist() == ours.ids
    assert torch.equal(theirs, uncached)
    assert not torch.equal(theirs, plain)
    assert torch.equal(written(lm, ids), plain)


def test_pipeline_and_the_decoder_alone_are_steered(steerable: Steerable) -> None:
    lm, saes = steerable
    ids = ids_of(lm)
    say = pipeline("text-generation", model=lm.whole, tokenizer=lm.tokenizer, device="cpu")
    with torch.inference_mode():
        before = (
            lm.model(input_ids=ids, use_cache=False).last_hidden_state,
            say(TEXT, max_new_tokens=6),
        )
        with steered(lm, saes, EDITS):
            inside = (
                lm.model(input_ids=ids, use_cache=False).last_hidden_state,
                say(TEXT, max_new_tokens=6),
            )
    assert not torch.equal(inside[0], before[0])
    assert inside[1] != before[1]


@pytest.mark.parametrize("scope", ["all", "last"])
def test_beams_with_a_cache_equal_beams_without(steerable: Steerable, scope: Any) -> None:
    lm, saes = steerable
    ids = torch.cat([ids_of(lm)[:, :9], ids_of(lm)[:, 3:12]])
    edits = [Edit(edit.feature, edit.op, edit.strength, scope=scope) for edit in EDITS]
    beams = {"num_beams": 3, "num_return_sequences": 2}
    with steered(lm, saes, edits):
        cached = written(lm, ids, **beams)
        assert len(cached) == 4
        alone = torch.cat([written(lm, row[None], **beams) for row in ids])
        assert torch.equal(cached, alone)
        if scope == "all":
            assert torch.equal(cached, written(lm, ids, **beams, use_cache=False))
    assert not torch.equal(cached, written(lm, ids, **beams))


def test_static_caches_are_steered_alike(steerable: Steerable) -> None:
    lm, saes = steerable
    ids = torch.cat([ids_of(lm)[:, :9], ids_of(lm)[:, 3:12]])
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # filled on the left: first positions and medians are those of the real ones
    for edits in (
        EDITS,
        [Edit(edit.feature, edit.op, edit.strength, skip_sinks=False) for edit in EDITS],
    ):
        with steered(lm, saes, edits) as dynamic:
            expected = written(lm, ids, attention_mask=mask)
        with steered(lm, saes, edits) as static:
            generated = written(
                lm, ids, attention_mask=mask, cache_implementation="static", disable_compile=True
            )
        assert torch.equal(generated, expected)
        assert (static.positions, static.fired) == (dynamic.positions, dynamic.fired)


def run(lm: LM, ids: Tensor, cache: DynamicCache) -> Tensor:
    with torch.inference_mode():
        return lm.whole(input_ids=ids, past_key_values=cache, use_cache=True).logits


def test_cache_of_a_prefix_serves_the_same_edits(steerable: Steerable) -> None:
    lm, saes = steerable
    ids, cache = ids_of(lm), DynamicCache()
    with steered(lm, saes, EDITS):
        run(lm, ids[:, :10], cache)
        whole = run(lm, ids, DynamicCache())
    with steered(lm, saes, list(EDITS)):  # another block with the same edits
        copied_cache = copy.deepcopy(cache)
        torch.testing.assert_close(
            run(lm, ids[:, 10:], copied_cache), whole[:, 10:], atol=1e-5, rtol=1e-5
        )
        repeated_cache = copy.deepcopy(cache)
        repeated_cache.batch_repeat_interleave(3)
        torch.testing.assert_close(
            run(lm, ids[:, 10:].repeat(3, 1), repeated_cache)[2:],
            whole[:, 10:],
            atol=1e-5,
            rtol=1e-5,
        )


OTHERS = {
    "none": [],
    "another strength": [EDITS[0], Edit(Feature(2, 8), "scale", 3.5)],
    "another order": EDITS[::-1],
    "one more": [*EDITS, Edit(Feature(0, 1), "add", 1.0)],
    "a condition": [EDITS[0], Edit(Feature(2, 8), "scale", 3.0, when="0/1")],
}


@pytest.mark.parametrize("name", OTHERS)
def test_cache_of_a_prefix_refuses_other_edits(steerable: Steerable, name: str) -> None:
    lm, saes = steerable
    ids = ids_of(lm)
    for first, second in ((EDITS, OTHERS[name]), (OTHERS[name], EDITS)):
        cache = DynamicCache()
        with steered(lm, saes, first):
            run(lm, ids[:, :10], cache)
        with (
            steered(lm, saes, second),
            pytest.raises(EditError, match="built under different edits"),
        ):
            run(lm, ids[:, 10:], copy.deepcopy(cache))
    cache = DynamicCache()
    with steered(lm, saes, EDITS):
        run(lm, ids[:, :10], cache)
    with (
        steered(lm, saes, EDITS, random_directions=1),
        pytest.raises(EditError, match="built under different edits"),
    ):
        run(lm, ids[:, 10:], cache)


def test_cache_without_edits_serves_edits_that_change_nothing(steerable: Steerable) -> None:
    lm, saes = steerable
    ids, cache = ids_of(lm), DynamicCache()
    run(lm, ids[:, :10], cache)
    plain = run(lm, ids[:, 10:], copy.deepcopy(cache))
    with steered(lm, saes, [Edit(Feature(1, 3), "add", 0.0)]):
        assert torch.equal(run(lm, ids[:, 10:], cache), plain)


def test_cache_of_other_rows_is_refused(steerable: Steerable) -> None:
    lm, saes = steerable
    ids, cache = ids_of(lm), DynamicCache()
    with steered(lm, saes, EDITS):
        run(lm, ids[:, :10].repeat(2, 1), cache)
        cache.batch_repeat_interleave(2)
        with pytest.raises(EditError, match="built with batch size 2, now 4"):
            run(lm, ids[:, 10:].repeat(4, 1), cache)


def test_alternating_generations_do_not_affect_each_other(steerable: Steerable) -> None:
    """What a pass must know of an earlier one lies with its cache, not with the thread."""
    lm, saes = steerable
    rows = [ids_of(lm)[:, :9], ids_of(lm, "hello there")[:, :7]]
    with steered(lm, saes, EDITS):
        expected = [run(lm, row[:, -2:], prefilled(lm, row[:, :-2])) for row in rows]
        caches = [prefilled(lm, row[:, :-2]) for row in rows]
        logits = [run(lm, row[:, -2:], cache) for row, cache in zip(rows, caches, strict=True)]
    assert all(map(torch.equal, logits, expected))


def prefilled(lm: LM, ids: Tensor) -> DynamicCache:
    cache = DynamicCache()
    run(lm, ids, cache)
    return cache


@pytest.mark.slow
def test_threads_keep_their_own_edits(steerable: Steerable) -> None:
    lm, saes = steerable
    lists = [
        EDITS,
        [Edit(Feature(0, 5), "add", 5.0)],
        [Edit(Feature(1, 7), "clamp", 6.0, "topk")],
        [],
    ]
    ids = ids_of(lm)

    def serial(edits: list[Edit]) -> tuple[Tensor, int]:
        with steered(lm, saes, edits) as receipt:
            return torch.stack([run(lm, ids, DynamicCache()) for _ in range(20)]), receipt.positions

    expected = [serial(edits) for edits in lists]
    results: dict[int, tuple[Tensor, int]] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: serial(lists[n])}))
        for n in range(len(lists))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, (logits, positions) in enumerate(expected):
        assert torch.equal(results[n][0], logits)
        assert results[n][1] == positions


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Steerable:
    """Three linear-attention layers in four, as Qwen3.5 has them."""
    folder = tmp_path_factory.mktemp("hybrid")
    tok = tiny.tokenizer()
    config = Qwen3_5TextConfig(
        vocab_size=len(tok) + 3,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        initializer_range=0.2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
    torch.manual_seed(0)
    Qwen3_5ForCausalLM(config).save_pretrained(folder / "model")
    tok.save_pretrained(folder / "model")
    source = tiny.save_sae(folder / "sae", layers=[0, 2])
    return load_lm(folder / "model", [2]), [load_sae(source, layer) for layer in (0, 2)]


@pytest.mark.parametrize("scope", ["all", "prefill", "decode", "last"])
def test_hybrid_models_are_steered_where_the_scope_says(hybrid: Steerable, scope: Any) -> None:
    lm, saes = hybrid
    ids = ids_of(lm)
    edits = [
        Edit(Feature(0, 3), "add", 3.0, scope=scope),
        Edit(Feature(2, 8), "add", 2.0, scope=scope),
    ]
    plain_cache, cache = DynamicCache(config=lm.whole.config), DynamicCache(config=lm.whole.config)
    plain = [run(lm, ids[:, :10], plain_cache), run(lm, ids[:, 10:11], plain_cache)]
    with steered(lm, saes, edits) as receipt:
        logits = [run(lm, ids[:, :10], cache), run(lm, ids[:, 10:11], cache)]
    changed = [
        [not torch.equal(a[0, at], b[0, at]) for at in range(a.shape[1])]
        for a, b in zip(plain, logits, strict=True)
    ]
    prompt = {
        "all": [False] + [True] * 9,
        "last": [False] * 9 + [True],
        "prefill": [False] + [True] * 9,
        "decode": [False] * 10,
    }
    # A changed prompt is remembered by both kinds of attention.
    assert changed == [
        prompt[scope],
        [True],
    ]
    assert receipt.positions == 2 * {"all": 10, "prefill": 9, "decode": 1, "last": 2}[scope]
    if scope == "all":
        with steered(lm, saes, edits), torch.inference_mode():
            whole = lm.whole(input_ids=ids[:, :11], use_cache=False).logits
        torch.testing.assert_close(torch.cat(logits, 1), whole, atol=1e-4, rtol=1e-4)
