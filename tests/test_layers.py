"""Layers: separation by hand, and features followed under ids that change with the layer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from conftest import Pair
from saescope.analysis.contrast import ContrastSettings
from saescope.analysis.layers import layers
from saescope.engine.decoders import decoder_cosines
from saescope.engine.extract import extract
from saescope.errors import RunError, SourceError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import texts
from saescope.store.runs import Run
from saescope.surfaces.cli import run as cli
from stored import write_run

PROMPTS, LENGTH = 20, 6
TOTAL = 2 * PROMPTS * LENGTH


def planted(tmp_path: Path, strengths: dict[int, float], shift: int = 3) -> Run:
    """Set a's concept is feature layer · shift, on the same share of its tokens; else noise."""
    rng = np.random.default_rng(0)
    of_a = np.arange(TOTAL) < TOTAL // 2
    chance = rng.random(TOTAL)
    fires = {}
    for layer, strength in strengths.items():
        fires[layer] = rng.random((TOTAL, 40)) < 0.1
        fires[layer][:, layer * shift] = of_a & (chance < strength)
        fires[layer][:, 39] = ~of_a & (chance < strength)
    return write_run(tmp_path / "run", {"a": [LENGTH] * PROMPTS, "b": [LENGTH] * PROMPTS}, fires)


def test_concept_is_followed_under_changing_ids(tmp_path: Path) -> None:
    result = layers(planted(tmp_path, {0: 0.8, 1: 0.8, 2: 0.8, 5: 0.8}), feature=Feature(1, 3))
    assert [(str(m.source), str(m.target)) for m in result.matches] == [
        ("1/3", "0/0"),
        ("1/3", "2/6"),
        ("2/6", "5/15"),
    ]
    assert all(m.cofire == m.cofire_origin == 1 and m.cosine is None for m in result.matches)
    assert result.feature is not None
    rates = {layer: by_set["a"] for layer, by_set in result.feature.rates.items()}
    # The id alone means nothing elsewhere.
    assert rates[1] > 0.6 > 0.3 > max(rates[n] for n in (0, 2, 5))


def test_best_layer_is_the_one_that_separates(tmp_path: Path) -> None:
    result = layers(planted(tmp_path, {0: 0.2, 1: 0.9, 2: 0.5}), ContrastSettings(seed=1))
    assert result.best == 1
    assert result.layers[1].separation > result.layers[2].separation > result.layers[0].separation
    assert [result.layers[n].as_good for n in (0, 1, 2)] == [False, True, False]
    for layer in result.layers.values():
        assert layer.ci[0] < layer.separation < layer.ci[1]
    assert {str(m.origin) for m in result.matches} == {"1/3", "1/39"}


def test_equal_layers_are_as_good(tmp_path: Path) -> None:
    result = layers(planted(tmp_path, {0: 0.7, 1: 0.7}))
    assert all(layer.as_good for layer in result.layers.values())


@pytest.mark.slow
def test_interval_covers_at_its_rate(tmp_path: Path) -> None:
    """Prompts that differ, with a true separation of 0.5: nearly 95 % of intervals hold it."""
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        # Each prompt of a has its own rate, 0.5 on average.
        prompt_rates = np.repeat(rng.beta(3, 3, size=30), 5)
        fires = np.zeros((300, 2), bool)
        fires[:150, 0] = rng.random(150) < prompt_rates
        fires[150:, 1] = rng.random(150) < np.repeat(rng.beta(3, 3, size=30), 5)
        run = write_run(tmp_path / str(seed), {"a": [5] * 30, "b": [5] * 30}, {0: fires})
        low, high = layers(run, ContrastSettings(seed=seed)).layers[0].ci
        covered.append(low <= 0.5 <= high)
    # 12 held-out prompts a set: percentile intervals run a little short.
    assert np.mean(covered) >= 0.85


def test_cosines_equal_dense_ones(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saescope.engine.decoders._BLOCK_BYTES", 4 * 256 * 5)  # several blocks
    lm, saes = pair.load(0, 2)
    run = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    cosines = decoder_cosines(run)([Feature(0, 7), Feature(0, 255)], 2)
    source, target = (torch.nn.functional.normalize(sae.W_dec, dim=0) for sae in saes)
    torch.testing.assert_close(torch.from_numpy(cosines), source[:, [7, 255]].T @ target)


def test_cosines_need_the_sae_of_the_run(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(0)
    run = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    tiny.save_sae(tmp_path / "other", layers=[0], d_sae=100)
    run.manifest["inputs"]["saes"]["0"] = str(tmp_path / "other")
    with pytest.raises(SourceError, match="is not the SAE that"):
        decoder_cosines(run)([Feature(0, 1)], 0)


@pytest.mark.parametrize("feature", ["7/1", "0/512"])
def test_feature_out_of_range_is_refused(tmp_path: Path, feature: str) -> None:
    run = planted(tmp_path, {0: 0.8})
    with pytest.raises(RunError):
        layers(run, feature=Feature.parse(feature))


@pytest.mark.slow
def test_layers_command_on_the_embedded_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The Japanese feature has another id at every layer, and matching finds each layer's best."""
    monkeypatch.chdir(tmp_path)
    assert cli(["layers", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["layers"]) == [str(number) for number in range(6)]
    best = {
        number: layer["sets"]["japanese"]["feature"] for number, layer in result["layers"].items()
    }
    assert len({feature.split("/")[1] for feature in best.values()}) > 1
    assert result["best"] >= 2  # languages part in the middle, not at the embedding
    origin = best[str(result["best"])]
    followed = [m for m in result["matches"] if m["origin"] == origin]
    assert {m["to"].split("/")[0] for m in followed} == set(best) - {str(result["best"])}
    assert [m["to"] for m in followed if m["to"] != best[m["to"].split("/")[0]]] == []
    assert min(m["cosine"] for m in followed) > 0.5
    assert min(m["cofire"] for m in followed) > 0.7
    assert cli(["layers", result["run"], "--feature", best["2"], "--json"]) == 0
    rates = json.loads(capsys.readouterr().out)["feature"]["rates"]
    assert rates["2"]["japanese"] > 0.9
    assert max(by_set["japanese"] for number, by_set in rates.items() if number != "2") < 0.5
    assert cli(["layers", result["run"]]) == 0
    assert "followed from layer to layer" in capsys.readouterr().out
