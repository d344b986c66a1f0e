"""Extraction equals a plain per-prompt computation through transformers, however it batches."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

import reference
import tiny
from conftest import Pair
from saescope.engine.batches import plan_batches
from saescope.engine.extract import compute_features, extract
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.engine.scan import scan
from saescope.errors import PromptError, RunError, SourceError
from saescope.sources.prompts import PromptSet, texts
from saescope.store.runs import Run
from stored import padded

K = 8
SHAPES = {
    "plain": {},
    "wide": {"d_model": 72, "heads": 6, "kv_heads": 3},
    "deep": {"layers": 5},
    "tied": {"tied": True},
    "sharded": {"shard_size": "20KB"},
    "bfloat16 stored": {"dtype": torch.bfloat16},
    "no merges": {"tok": tiny.tokenizer(merges=())},
    "many merges": {
        "tok": tiny.tokenizer(
            [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "s"), ("ã", "ģ"), ("p", "o")]
        )
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_scan_equals_plain_transformers(shape: str, tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "model", **SHAPES[shape])
    sae_folder = tiny.save_sae(
        tmp_path / "sae", layers=[1], d_model=SHAPES[shape].get("d_model", 32), d_sae=300
    )
    lm, sae = load_lm(model, [1], dtype="float32"), load_sae(sae_folder, 1)
    scanned = scan(lm, [sae], texts(tiny.TEXTS)[0].prompts, n_top=K, batch_tokens=64).prompts
    for prompt, ref in zip(
        scanned, reference.features(model, sae_folder, 1, K, tiny.TEXTS), strict=True
    ):
        assert [token.id for token in prompt.tokens] == ref.ids
        norms = torch.tensor([token.norm[1] for token in prompt.tokens])
        torch.testing.assert_close(norms, ref.norms, atol=1e-4, rtol=1e-4)
        tops = [token.features[1] for token in prompt.tokens]
        acts = torch.tensor([[act for _, act in top] + [0.0] * (K - len(top)) for top in tops])
        ids = torch.tensor(
            [[feature.id for feature, _ in top] + [-1] * (K - len(top)) for top in tops]
        )
        reference.assert_same(acts, ids, ref.acts, ref.features)


def _features(lm: LM, saes: list[Sae], batch_tokens: int) -> list[npt.NDArray[np.float32]]:
    """Dense activations of every prompt, all layers side by side."""
    plan = plan_batches(lm, texts(tiny.TEXTS)[0].prompts, batch_tokens)
    rows: dict[tuple[int, int], npt.NDArray[np.float32]] = {}
    for unit in compute_features(lm, saes, plan):
        features = unit.features
        dense = np.zeros((len(features.norms), saes[0].spec.d_sae), np.float32)
        dense[features.token, features.ids] = features.acts
        ends = np.cumsum(plan.prompt_lengths(unit.batch))
        by_prompt = np.split(dense, ends[:-1])
        for prompt, part in zip(plan.prompt_order(unit.batch), by_prompt, strict=True):
            rows[prompt, unit.layer] = part
    layers = sorted(sae.spec.layer for sae in saes)
    return [
        np.concatenate([rows[p, layer] for layer in layers], axis=1) for p in range(len(tiny.TEXTS))
    ]


def test_batched_equals_single_equals_padded(pair: Pair) -> None:
    lm, saes = pair.load(0, 2)
    alone = _features(lm, saes, batch_tokens=1)
    for budget in (40, 100, 10_000):
        for single, batched in zip(alone, _features(lm, saes, budget), strict=True):
            np.testing.assert_allclose(single, batched, atol=2e-5)


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_prompts_that_share_a_row_do_not_see_each_other(kind: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    config = kind(
        **sizes, num_key_value_heads=2, vocab_size=300, initializer_range=0.2, pad_token_id=None
    )
    AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lm, saes = load_lm(tmp_path, [1]), [load_sae(tiny.save_sae(tmp_path / "sae"), 1)]
    assert lm.packs_prompts
    packed, alone = (
        _features(lm, saes, 10_000),
        _features(replace(lm, packs_prompts=False), saes, 1),
    )
    for single, in_shared_row in zip(alone, packed, strict=True):
        np.testing.assert_allclose(single, in_shared_row, atol=2e-5)


def test_last_layer_is_before_the_final_norm(pair: Pair) -> None:
    lm, saes = pair.load(2)
    [prompt] = scan(lm, saes, texts(["hello there"])[0].prompts).prompts
    [ref] = reference.features(pair.model, pair.sae, 2, K, ["hello there"])
    norms = torch.tensor([token.norm[2] for token in prompt.tokens])
    torch.testing.assert_close(norms, ref.norms, atol=1e-4, rtol=1e-4)


def test_run_holds_what_was_computed(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(0, 1, 2)
    run = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run", batch_tokens=64)
    for layer in range(3):
        stored = run.features(layer)
        acts, ids = padded(stored, K)
        start = 0
        for ref in reference.features(pair.model, pair.sae, layer, K, tiny.TEXTS):
            rows = slice(start, start + len(ref.ids))
            start = rows.stop
            assert run.token_id[rows].tolist() == ref.ids
            reference.assert_same(
                torch.from_numpy(acts[rows]),
                torch.from_numpy(ids[rows]),
                ref.acts,
                ref.features,
            )
        assert start == len(stored.norms)


def test_same_job_gives_same_bytes(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(1)
    runs = [extract(lm, saes, texts(tiny.TEXTS), tmp_path / name) for name in ("a", "b")]
    assert runs[0].manifest["tables"] == runs[1].manifest["tables"]


def test_finished_job_is_not_computed_again(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, saes = pair.load(1)
    first = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    monkeypatch.setattr(lm.model, "forward", lambda **_: pytest.fail("computed again"))
    second = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    assert second.manifest == first.manifest


def test_other_job_in_the_way_is_refused(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(1)
    extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    with pytest.raises(RunError, match="another job"):
        extract(lm, saes, texts(["other"]), tmp_path / "run")


def test_interrupted_job_resumes(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(1)
    sets, out = texts(tiny.TEXTS), tmp_path / "run"
    whole = extract(lm, saes, sets, tmp_path / "whole", batch_tokens=30)
    calls: list[int] = []

    def stop_at_third(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lm, saes, sets, out, batch_tokens=30, progress=stop_at_third)
    assert not out.exists()
    left = list[int]()
    resumed = extract(
        lm, saes, sets, out, batch_tokens=30, progress=lambda done, _: left.append(done)
    )
    n_batches = len(plan_batches(lm, sets[0].prompts, 30).batches)
    assert len(left) == n_batches - 3
    assert resumed.manifest["tables"] == whole.manifest["tables"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "whole"]


def test_failure_before_the_first_batch_leaves_nothing(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(1)
    with torch.inference_mode():
        saes[0].W_enc[5, 3] = float("nan")
    with pytest.raises(SourceError, match="not finite"):
        extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_prompt_longer_than_the_context_is_refused(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(1)
    with pytest.raises(
        PromptError, match="long:1 has 500 tokens, more than the model's maximum of 128"
    ):
        extract(lm, saes, texts(["z" * 500], name="long"), tmp_path / "run")


def test_sae_of_another_width_is_refused(pair: Pair, tmp_path: Path) -> None:
    lm, _ = pair.load(1)
    other = load_sae(tiny.save_sae(tmp_path / "sae", d_model=48), 1)
    with pytest.raises(SourceError, match="48 wide"):
        extract(lm, [other], texts(["x y"]), tmp_path / "run")


def sink_model(folder: Path, token: str) -> Path:
    """A model whose residual is 200 times its usual norm wherever `token` stands."""
    model = tiny.save_model(folder)
    from safetensors.torch import load_file, save_file

    path = model / "model.safetensors"
    state = load_file(path)
    state["model.embed_tokens.weight"][tiny.tokenizer().convert_tokens_to_ids(token)] *= 8000
    save_file(state, path, metadata={"format": "pt"})
    return model


def test_sink_mid_sequence_is_reported(tmp_path: Path) -> None:
    lm = load_lm(sink_model(tmp_path / "model", "%"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae"), 1)
    [prompt, clean] = scan(
        lm, [sae], texts(["hello the% world, how are you", "nothing here"])[0].prompts
    ).prompts
    sinks = [token for token in prompt.tokens if token.sink]
    assert [token.token for token in sinks] == ["%"]
    median = np.median([token.norm[1] for token in prompt.tokens])
    assert sinks[0].norm[1] > 200 * median
    assert not any(token.sink for token in clean.tokens)


def test_sink_reaches_no_statistic(tmp_path: Path) -> None:
    from saescope.analysis.contrast import ContrastSettings, contrast
    from saescope.analysis.profile import profile

    lm = load_lm(sink_model(tmp_path / "model", "%"), [1])
    sae = load_sae(tiny.save_sae(tmp_path / "sae"), 1)

    def run(mark: str, out: str) -> Run:
        left = PromptSet(
            "left", texts([f"hello {n} you{mark}" for n in range(9)], "left")[0].prompts
        )
        right = PromptSet(
            "right", texts([f"{n} other words" for n in range(9)], "right")[0].prompts
        )
        return extract(lm, [sae], [left, right], tmp_path / out)

    with_sink, without = run("%", "with"), run("", "without")
    documents = (
        json.dumps(contrast(r, ContrastSettings(shuffles=0)).to_dict())
        for r in (with_sink, without)
    )
    kept, plain = (
        json.loads(text, parse_float=lambda number: round(float(number), 5)) for text in documents
    )
    assert kept["masked"] == {"pos0": 18, "sinks": 9}
    assert plain["masked"] == {"pos0": 18, "sinks": 0}
    assert kept["layers"] == {"1": {**plain["layers"]["1"], "masked": {"pos0": 18, "sinks": 9}}}
    norms = [profile(r).sets["left"].layers[1] for r in (with_sink, without)]
    assert norms[0].later_norm_mean == pytest.approx(norms[1].later_norm_mean)
    assert (norms[0].sinks, norms[1].sinks) == (9, 0)
