"""Agreement of two runs, by hand and by definition; what precision and fitness conclude."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from conftest import Pair
from saescope.analysis.agreement import agreement
from saescope.analysis.fitness import fitness
from saescope.analysis.token_agreement import bfloat16
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.errors import RunError
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import texts
from saescope.store.runs import Run
from saescope.surfaces.cli import run as cli
from stored import write_run

K = 8


def test_agreement_by_hand(tmp_path: Path) -> None:
    # Two sets × one prompt × three tokens; position 0 never counts.
    fires_a = np.zeros((6, 5), bool)
    fires_a[:, :2] = True
    fires_b = fires_a.copy()
    fires_b[1] = [True, False, True, False, False]  # one of two features is another
    a = write_run(tmp_path / "a", {"x": [3], "y": [3]}, {4: fires_a})
    b = write_run(tmp_path / "b", {"x": [3], "y": [3]}, {4: fires_b})
    stats = agreement(a, b).layers[4]
    assert (stats.tokens, stats.masked_pos0, stats.masked_sinks) == (4, 2, 0)
    assert stats.topk_equal == stats.top5_equal == pytest.approx(3 / 4)
    assert stats.topk_jaccard == pytest.approx((3 + 1 / 3) / 4)
    assert stats.act_rel_diff == stats.resid_rel_diff == stats.norm_rel_diff == 0
    assert stats.rate_diff == pytest.approx(1 / 2)  # features 1 and 2 on half of x's scored tokens
    assert [(w.id, w.topk_jaccard) for w in stats.worst] == [
        ("x:0", pytest.approx(2 / 3)),
        ("y:0", 1.0),
    ]
    unsafe = "it is not safe for rates (differ by at most 50.0 points; limit 5 points)"
    assert unsafe in agreement(a, b).verdicts[4]


def test_run_agrees_with_itself(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(0, 2)
    run = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    result = agreement(run, run)
    for layer, stats in result.layers.items():
        assert stats.topk_equal == stats.top1_equal == stats.topk_jaccard == 1
        assert stats.act_rel_diff_p99 == stats.resid_rel_diff == stats.rate_diff == 0
        assert "is safe here" in result.verdicts[layer]


def test_overlap_equals_sets(pair: Pair, tmp_path: Path) -> None:
    sets = texts(tiny.TEXTS)
    runs = []
    for dtype in ("float32", "bfloat16"):
        lm = load_lm(pair.model, [1], dtype=dtype)
        runs.append(extract(lm, [load_sae(pair.sae, 1)], sets, tmp_path / dtype))
    stats = agreement(*runs).layers[1]
    features_a, features_b = (run.features(1) for run in runs)
    scored = np.flatnonzero(runs[0].token_pos > 0)
    jaccards, diffs = [], []
    for t in scored.tolist():
        a, b = (
            dict(zip(f.ids[f.row(t)].tolist(), f.acts[f.row(t)], strict=True))
            for f in (features_a, features_b)
        )
        jaccards.append(len(a.keys() & b.keys()) / len(a.keys() | b.keys()))
        diffs += [abs(a[f] - b[f]) / max(a[f], b[f]) for f in a.keys() & b.keys()]
    assert stats.tokens == len(scored)
    assert stats.topk_jaccard == pytest.approx(np.mean(jaccards))
    assert stats.act_rel_diff == pytest.approx(np.median(diffs), rel=1e-5)
    assert 0 < stats.resid_rel_diff < 0.05


def test_bfloat16_rounds_as_torch_does() -> None:
    values = np.concatenate(
        [np.random.default_rng(0).normal(size=5000), [1.00390625, 1.01171875, 0.0]]
    ).astype("f4")
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(bfloat16(values), expected)


def test_next_pre_act_is_the_largest_that_does_not_fire(pair: Pair, tmp_path: Path) -> None:
    lm, [sae] = pair.load(1)
    resid = torch.randn(40, 32)
    _, next_pre_act = sae.encode_with_next(resid)
    torch.testing.assert_close(next_pre_act, sae.pre_acts(resid).topk(K + 1, dim=-1).values[:, -1])
    run = extract(lm, [sae], texts(tiny.TEXTS), tmp_path / "run")
    features = run.features(1)
    assert (features.counts == K).all()
    assert (features.next_pre_act <= features.acts[features.starts[1:] - 1] + 1e-6).mean() > 0.99
    assert features.error is None


def test_sae_with_every_feature_firing_has_no_next_pre_act(tmp_path: Path) -> None:
    sae = load_sae(tiny.save_sae(tmp_path, layers=[0], d_sae=K), 0)
    assert torch.isnan(sae.encode_with_next(torch.randn(3, 32))[1]).all()


def test_residuals_by_prompt_are_means_and_last_ones(pair: Pair, tmp_path: Path) -> None:
    lm, [sae] = pair.load(1)
    run = extract(lm, [sae], texts(tiny.TEXTS), tmp_path / "run", batch_tokens=50)
    alone = [
        extract(lm, [sae], texts([text]), tmp_path / str(n)) for n, text in enumerate(tiny.TEXTS)
    ]
    for name in ("positions", "mean", "last"):
        together = getattr(run.resids(1), name)
        np.testing.assert_allclose(
            together, np.concatenate([getattr(r.resids(1), name) for r in alone]), atol=2e-5
        )
    lengths = np.bincount(run.token_prompt)
    # A prompt of one token has none.
    assert run.resids(1).positions.tolist() == (lengths - 1).tolist()
    norms = np.linalg.norm(run.resids(1).last, axis=1)
    np.testing.assert_allclose(norms, run.features(1).norms[np.cumsum(lengths) - 1], rtol=1e-5)


def test_runs_of_other_prompts_are_refused(tmp_path: Path) -> None:
    fires = np.ones((4, 2), bool)
    a, b = (write_run(tmp_path / name, {name: [4]}, {0: fires}) for name in "ab")
    with pytest.raises(RunError, match="different prompts"):
        agreement(a, b)


def test_fitness_is_error_over_variance(pair: Pair, tmp_path: Path) -> None:
    lm, [sae] = pair.load(1)
    run = extract(lm, [sae], texts(tiny.TEXTS), tmp_path / "run", errors=True)
    layer_fitness = fitness(run).layers[1]
    resid = []
    with torch.inference_mode():
        block = lm.blocks[1].register_forward_hook(lambda _m, _i, out: resid.append(out[0, 1:]))
        for text in tiny.TEXTS:
            lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"]]))
        block.remove()
    h = torch.cat(resid)
    error = (h - sae.decode(sae.encode(h))).pow(2).sum() / (h - h.mean(0)).pow(2).sum()
    assert layer_fitness.fvu == pytest.approx(float(error), rel=1e-3)
    assert layer_fitness.l0 == pytest.approx(float((sae.encode(h).acts > 0).sum(1).float().mean()))
    assert layer_fitness.base_fvu is None
    assert "base run" in layer_fitness.verdict


def test_fitness_needs_errors_and_the_same_sae(pair: Pair, tmp_path: Path) -> None:
    lm, [sae] = pair.load(1)
    without = extract(lm, [sae], texts(tiny.TEXTS), tmp_path / "without")
    with pytest.raises(RunError, match="keeps no reconstruction errors"):
        fitness(without)
    other = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1], d_sae=100), 1)
    run, other_run = (
        extract(lm, [s], texts(tiny.TEXTS), tmp_path / n, errors=True)
        for s, n in ((sae, "a"), (other, "b"))
    )
    with pytest.raises(RunError, match="different SAEs"):
        fitness(run, other_run)


@pytest.mark.slow
def test_sae_fits_its_own_model_and_not_a_random_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embedded SAE on its own model, on a slightly changed copy, and on random weights."""
    from safetensors.torch import load_file, save_file

    from saescope.demo import MODEL

    monkeypatch.chdir(tmp_path)
    verdicts = {}
    for name, noise in (("near", 0.02), ("far", 3.0)):
        folder = tmp_path / name
        folder.mkdir()
        for file in MODEL.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        state = load_file(folder / "model.safetensors")
        torch.manual_seed(0)
        for key, tensor in state.items():
            if tensor.ndim == 2:
                noisy = tensor.float() + noise * tensor.float().std() * torch.randn(tensor.shape)
                state[key] = noisy.to(tensor.dtype)
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        arguments = [
            "--model",
            name,
            "--sae",
            "saescope-tiny-sae",
            "--base",
            "saescope-tiny",
            "--layers",
            "2",
            "--json",
        ]
        assert cli(["fitness", *arguments]) == 0
        verdicts[name] = json.loads(capsys.readouterr().out)["layers"]["2"]
    near, far = verdicts["near"], verdicts["far"]
    assert near["verdict"].startswith("fits")
    assert near["base_fvu"] == pytest.approx(0.11, abs=0.03)
    assert far["verdict"].startswith("does not fit")
    assert far["fvu"] > 2 * near["fvu"]
    assert far["topk_jaccard"] < 0.4 < near["topk_jaccard"]


@pytest.mark.slow
def test_precision_command_says_what_bfloat16_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(["precision", "--layers", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    layer_precision = result["layers"]["2"]
    assert (result["a"]["what"], result["b"]["what"]) == ("float32", "bfloat16")
    assert layer_precision["top5_equal"] > 0.9
    assert layer_precision["topk_jaccard"] > 0.95
    assert layer_precision["ties"] == 0 < layer_precision["ties_bfloat16"] < 0.5
    assert layer_precision["rate_diff"] < 0.05
    assert layer_precision["verdict"].startswith("bfloat16 is safe for rates (differ by at most 0.")
    assert layer_precision["safe_for"]["rates"]["limit"] == 0.05
    assert cli(["precision", result["b"]["run"], result["a"]["run"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == result["layers"]
    assert cli(["rerun", result["b"]["run"], "--json"]) == 0
    repeated = json.loads(capsys.readouterr().out)
    assert repeated["layers"] == result["layers"]
    assert repeated["rerun"] == {"same": True, "differences": [], "verb": "precision"}


def test_messages_come_back_from_a_run(pair: Pair, tmp_path: Path, sets_folder: Path) -> None:
    lm, [sae] = pair.load(1)
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}"
    (sets_folder / "chat.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "hé\nho"}]})
    )
    sets = read_prompts(sets_folder)
    run = extract(lm, [sae], sets, tmp_path / "run")
    assert run.prompt_sets == sets
    assert Run.open(run.path).prompt_sets == sets
