"""JumpReLU and ReLU SAEs, whose number of active features varies, from extract to the CLI."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from conftest import Pair
from saescope.analysis.agreement import agreement
from saescope.analysis.contrast import contrast
from saescope.analysis.detect import detect
from saescope.analysis.examples import examples
from saescope.analysis.fitness import fitness
from saescope.analysis.layers import layers
from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine.batches import plan_batches
from saescope.engine.decoders import decoder_cosines
from saescope.engine.extract import compute_features, extract
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.residual import capture
from saescope.engine.sae import Sae
from saescope.engine.scan import scan
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import texts
from saescope.sources.saes import open_sae
from saescope.store.runs import Run
from saescope.store.verification import verify
from saescope.surfaces.cli import main

Kind = tuple[LM, list[Sae], Path]


@pytest.fixture(params=["jumprelu", "standard"])
def kind(request: pytest.FixtureRequest, pair: Pair, tmp_path: Path) -> Kind:
    folder = tiny.save_saelens(tmp_path / "saes", kind=request.param)
    source = open_sae(str(folder))
    assert source.choose_layers(None) == (1,)
    return (
        load_lm(pair.model, [0, 1, 2]),
        [load_sae(source, layer) for layer in source.layers],
        folder,
    )


def dense(sae: Sae, resid: torch.Tensor) -> torch.Tensor:
    pre = resid @ sae.W_enc.T + sae.b_enc
    return torch.where(pre > (0 if sae.threshold is None else sae.threshold), pre.relu(), 0)


@pytest.mark.parametrize("batch_tokens", [1, 16, 2048])
def test_run_keeps_exactly_what_fires(kind: Kind, batch_tokens: int, tmp_path: Path) -> None:
    lm, saes, _ = kind
    run = extract(
        lm, saes, texts(tiny.TEXTS), tmp_path / "run", batch_tokens=batch_tokens, errors=True
    )
    assert verify(run.path) == []
    for layer, sae in enumerate(saes):
        assert run.saes[layer] == sae.spec
        features = Run.open(run.path).features(layer)
        assert len(np.unique(features.counts)) > 5
        rows = []
        for text in tiny.TEXTS:
            ids = lm.tokenizer(text, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                rows.append(
                    lm.model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]
                )
        if layer == 2:
            continue  # what transformers returns there is taken after its final norm
        resid = torch.cat(rows)
        expected = dense(sae, resid)
        rebuilt = np.zeros(expected.shape, np.float32)
        rebuilt[features.token, features.ids] = features.acts
        np.testing.assert_allclose(rebuilt, expected.numpy(), atol=2e-5)
        error = (resid - expected @ sae.W_dec.T - sae.b_dec).norm(dim=-1)
        np.testing.assert_allclose(features.error, error.numpy(), rtol=1e-4, atol=1e-4)


def test_outlier_token_lengthens_no_other_row(kind: Kind) -> None:
    lm, saes, _ = kind
    work = plan_batches(lm, texts(tiny.TEXTS)[0].prompts)
    [unit] = compute_features(lm, saes[:1], work)
    features = unit.features
    assert (
        len(features.acts) == features.counts.sum() < len(features.counts) * features.counts.max()
    )
    assert (features.acts > 0).all()


@pytest.mark.slow
def test_every_analysis_runs_with_thresholds(kind: Kind, sets_folder: Path, tmp_path: Path) -> None:
    lm, saes, _ = kind
    run = extract(lm, saes, read_prompts(str(sets_folder)), tmp_path / "run", errors=True)
    contrasted = contrast(run)
    assert contrasted.layers[1].sets["red"].features
    best = contrasted.layers[1].sets["red"].features[0]
    assert examples(run, best.feature).fired > 0
    assert layers(run, cosines=decoder_cosines(run)).best in (0, 1, 2)
    assert detect(run, "red").features is not None
    layer_fitness = fitness(run).layers[1]
    assert layer_fitness.l0 == pytest.approx(
        run.features(1).counts[run.token_pos > 0].mean(), rel=0.1
    )
    stats = agreement(run, run).layers[1]
    assert (stats.topk_jaccard, stats.top5_equal, stats.act_rel_diff) == (1, 1, 0)
    shown = scan(lm, saes, texts(["hello there"])[0].prompts, n_top=10**6).prompts[0].tokens
    assert len({len(token.features[1]) for token in shown}) > 1


@pytest.mark.parametrize("gate", ["relu", "topk"])
def test_steering_ablates_what_the_gate_lets_through(kind: Kind, gate: str) -> None:
    lm, saes, _ = kind
    sae = saes[1]
    ids = lm.tokenizer(tiny.TEXTS[0], return_tensors="pt")["input_ids"]

    def resid() -> torch.Tensor:
        with torch.no_grad(), capture(lm, [1]) as caught:
            lm.model(input_ids=ids)
        return caught[1][0]

    before = resid()
    feature = int((dense(sae, before)[1:] > 0).sum(0).argmax())
    edit = Edit(f"1/{feature}", "scale", -1.0, gate=gate, skip_sinks=False)
    with steered(lm, [sae], [edit]):
        after = resid()
    z = before @ sae.W_enc[feature] + sae.b_enc[feature]
    a = z.relu() if gate == "relu" else dense(sae, before)[:, feature]
    torch.testing.assert_close(
        after, before - a[:, None] * sae.W_dec[:, feature], atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
def test_commands_take_saes_with_thresholds(
    kind: Kind, pair: Pair, sets_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, folder = kind
    options = ["--model", str(pair.model), "--sae", str(folder), "--layers", "1", "--json"]
    runs = str(sets_folder.parent / "runs")
    for verb in (
        ["contrast", str(sets_folder), "--out", f"{runs}/a"],
        ["fitness", str(sets_folder), "--out", f"{runs}/b"],
        ["precision", str(sets_folder), "--out", f"{runs}/c"],
        ["layers", str(sets_folder), "--out", f"{runs}/d"],
        ["steer", "hello", "--edit", "1/3 scale -1 topk", "--max-new-tokens", "3"],
        ["plan", str(sets_folder)],
    ):
        with pytest.raises(SystemExit) as done:
            main([*verb, *options])
        printed = capsys.readouterr()
        assert done.value.code == 0, (verb, printed.err)
        assert json.loads(printed.out)
        assert "Qwen" not in printed.err
