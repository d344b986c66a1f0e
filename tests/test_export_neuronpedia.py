"""A run in Neuronpedia's layout: the columns of its import, the run's values, stable bytes."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from saescope.control.exports.firings import Histogram
from saescope.control.exports.lens import LogitLens
from saescope.control.exports.logit_effect import LogitEffect, TokenEffect
from saescope.control.exports.neuronpedia import export_neuronpedia
from saescope.control.exports.neuronpedia_rows import NeuronpediaIds
from saescope.control.exports.settings import NeuronpediaSettings
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.engine.load import load_sae
from saescope.engine.tokens import TokenText
from saescope.errors import ArgumentError, ResourceError, RunError
from saescope.sources.prompts import texts
from saescope.store.masking import Masking
from saescope.store.runs import Run
from stored import write_run
from test_architectures import save

# Columns of Neuronpedia's tables (apps/webapp/prisma/schema.prisma).
# The import needs those in NEEDED, which have no default.
NEURON = {
    "modelId",
    "layer",
    "index",
    "sourceSetName",
    "creatorId",
    "createdAt",
    "maxActApprox",
    "hasVector",
    "vector",
    "vectorLabel",
    "vectorDefaultSteerStrength",
    "hookName",
    "topkCosSimIndices",
    "topkCosSimValues",
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_pearson",
    "correlated_neurons_l1",
    "correlated_features_indices",
    "correlated_features_pearson",
    "correlated_features_l1",
    "neg_str",
    "neg_values",
    "pos_str",
    "pos_values",
    "frac_nonzero",
    "freq_hist_data_bar_heights",
    "freq_hist_data_bar_values",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
}
ACTIVATION = {
    "id",
    "tokens",
    "dataIndex",
    "index",
    "layer",
    "modelId",
    "dataSource",
    "maxValue",
    "maxValueTokenIndex",
    "minValue",
    "values",
    "dfaValues",
    "dfaTargetIndex",
    "dfaMaxValue",
    "creatorId",
    "createdAt",
    "lossValues",
    "logitContributions",
    "binMin",
    "binMax",
    "binContains",
    "qualifyingTokenIndex",
}
NEEDED = {
    "release": {"name", "description", "creatorName", "creatorId"},
    "model": {"id", "creatorId", "layers", "neuronsPerLayer", "owner", "instruct"},
    "sourceset": {"modelId", "name", "description", "creatorName", "creatorId"},
    "source": {"id", "modelId", "setName", "creatorId"},
}


def lines(path: Path) -> Iterator[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return map(json.loads, data.decode().splitlines())


def rows(source: Path, kind: str) -> list[dict[str, Any]]:
    paths = sorted(
        (source / kind).iterdir(),
        key=lambda path: int(path.name.split(".")[0].removeprefix("batch-")),
    )
    return [row for path in paths for row in lines(path)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two sets of prompts of 30 and 7 tokens, 600 features, most of which fire somewhere."""
    random = np.random.default_rng(0)
    lengths = {"red": [30] * 5, "blue": [7] * 6}
    fires = random.random((5 * 30 + 6 * 7, 600)) < 0.01
    fires[:, 17] = False
    fires[:, 99] = True
    return write_run(
        tmp_path_factory.mktemp("np") / "run",
        lengths,
        {2: fires, 4: ~fires[:, :40]},
        words=["a", "\x00", "\\xe5", "語"],
    )


def dense(run: Run, layer: int) -> np.ndarray:
    """Every feature's activation by token, 0 where it is not scored."""
    stored = run.features(layer)
    acts = np.zeros((len(stored.counts), run.saes[layer].d_sae))
    for token in np.flatnonzero(Masking().apply(run.token_pos, stored.norms).scored).tolist():
        acts[token, stored.ids[stored.row(token)]] = stored.acts[stored.row(token)]
    return acts


def test_layout_and_names(run: Run, tmp_path: Path) -> None:
    settings = NeuronpediaSettings("tiny", "res-600", "Somebody")
    result = export_neuronpedia(run, tmp_path / "out", layers=[4, 2], settings=settings)
    assert [path.name for path in sorted((tmp_path / "out" / "tiny").iterdir())] == [
        "2-res-600",
        "4-res-600",
    ]
    source = tmp_path / "out" / "tiny" / "2-res-600"
    assert sorted(p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()) == [
        *(f"activations/batch-{n}.jsonl.gz" for n in range(2)),
        *(f"features/batch-{n}.jsonl.gz" for n in range(2)),
        "model.jsonl",
        "release.jsonl",
        "source.jsonl",
        "sourceset.jsonl",
    ]
    about = {name: next(lines(source / f"{name}.jsonl")) for name in NEEDED}
    assert all(
        NEEDED[name] <= row.keys() and None not in [row[k] for k in NEEDED[name]]
        for name, row in about.items()
    )
    assert about["source"]["setName"] == about["sourceset"]["name"] == "res-600"
    assert about["source"]["id"] == "2-res-600"
    assert about["sourceset"]["releaseName"] == about["release"]["name"]
    assert "11 first positions, 0 sinks" in about["source"]["notes"]
    assert set(result.files) == {path for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_rows_have_the_columns_and_the_values_of_the_run(run: Run, tmp_path: Path) -> None:
    settings = NeuronpediaSettings("tiny", "res", n_examples=3, context=10)
    export_neuronpedia(run, tmp_path / "out", settings=settings)
    for layer in (2, 4):
        source = tmp_path / "out" / "tiny" / f"{layer}-res"
        features, activations = rows(source, "features"), rows(source, "activations")
        assert all(row.keys() == features[0].keys() <= NEURON for row in features)
        assert all(row.keys() == activations[0].keys() <= ACTIVATION for row in activations)
        assert len({row["id"] for row in activations}) == len(activations)
        fired = {f: a for f, a in enumerate(dense(run, layer).T) if a.any()}
        assert [row["index"] for row in features] == list(map(str, fired))
        for row in features:
            a = fired[int(row["index"])]
            assert row["maxActApprox"] == pytest.approx(a.max(), abs=1e-3)
            assert row["frac_nonzero"] == pytest.approx((a > 0).sum() / (run.token_pos > 0).sum())
            assert sum(row["freq_hist_data_bar_heights"]) == (a > 0).sum()
        for index, examples in (
            (f, [r for r in activations if r["index"] == f]) for f in map(str, list(fired)[:30])
        ):
            check_examples(run, fired[int(index)], examples)


def check_examples(run: Run, a: np.ndarray, examples: list[dict[str, Any]]) -> None:
    by_prompt = {n: a[run.token_prompt == n].max() for n in range(len(run.prompts))}
    strongest = sorted((value for value in by_prompt.values() if value > 0), reverse=True)[:3]
    np.testing.assert_allclose([row["maxValue"] for row in examples], strongest, atol=1e-3)
    for row in examples:
        prompt = next(n for n, p in enumerate(run.prompts) if p.id == row["dataIndex"])
        whole = a[run.token_prompt == prompt]
        text = [t for t, n in zip(run.token_text, run.token_prompt, strict=True) if n == prompt]
        assert len(row["tokens"]) == len(row["values"]) == min(10, len(whole))
        assert (
            row["values"][row["maxValueTokenIndex"]]
            == row["maxValue"]
            == pytest.approx(whole.max(), abs=1e-3)
        )
        assert any(
            row["tokens"] == text[n : n + 10]
            and np.allclose(row["values"], whole[n : n + 10], atol=1e-3)
            for n in range(len(whole))
        )


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    first, second = (export_neuronpedia(run, tmp_path / name) for name in "ab")
    assert len(first.files) > 10
    assert [p.read_bytes() for p in first.files] == [p.read_bytes() for p in second.files]


def test_logits_come_from_the_lens(run: Run, tmp_path: Path) -> None:
    def lens(layer: int, ids: list[int]) -> list[LogitEffect]:
        histogram = Histogram([1, 2], [0.5, 1.5])
        return [
            LogitEffect([TokenEffect("up", i / 7)], [TokenEffect("down", -i / 7)], histogram)
            for i in ids
        ]

    result = export_neuronpedia(
        run, tmp_path / "out", layers=[4], lens=lens, settings=NeuronpediaSettings("tiny", "res")
    )
    assert result.limits == ()
    for row in rows(tmp_path / "out" / "tiny" / "4-res", "features"):
        assert (row["pos_str"], row["pos_values"]) == (["up"], [round(int(row["index"]) / 7, 3)])
        assert (row["neg_str"], row["logits_hist_data_bar_heights"]) == (["down"], [1, 2])


def test_ids_come_from_the_names_in_the_run(run: Run) -> None:
    names = NeuronpediaIds.of(run, NeuronpediaSettings())
    assert (names.model, names.source_set) == ("planned", "planned")
    named = NeuronpediaSettings(source_set="Somebody/My SAEs (16k)")
    assert NeuronpediaIds.of(run, named).source_set == "my-saes-16k"


def test_a_failed_export_leaves_nothing(run: Run, tmp_path: Path) -> None:
    def full(layer: int, ids: list[int]) -> list[LogitEffect]:
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match="No space left"):
        export_neuronpedia(run, tmp_path / "new" / "out", lens=full)
    with pytest.raises(RunError, match="holds layers 2, 4, not 3"):
        export_neuronpedia(run, tmp_path / "out", layers=[3])
    with pytest.raises(ArgumentError, match="n_examples must be at least 1, got 0"):
        export_neuronpedia(run, tmp_path / "out", settings=NeuronpediaSettings(n_examples=0))
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    with pytest.raises(ResourceError, match="exists"):
        export_neuronpedia(run, tmp_path / "out")


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2"])
def test_lens_is_the_final_norm_and_the_lm_head(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "model", tie_word_embeddings=name == "gemma2")
    sae = load_sae(tiny.save_sae(tmp_path / "sae", [1]), 1)
    lm = load_lm(model, [1])
    run = extract(lm, [sae], texts(tiny.TEXTS), tmp_path / "run")
    [effect, _] = LogitLens(run)(1, [3, 9])
    whole, norm = (
        lm.whole,
        lm.whole.get_submodule("transformer.ln_f" if name == "gpt2" else "model.norm"),
    )
    assert sae.W_dec is not None
    h = 1e4 * torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    step = sae.W_dec[:, 3] * 1e-1
    # The logits' derivative along the direction, with the norm's scale held fixed.
    with torch.inference_mode():
        rms = (h - h.mean() if name == "gpt2" else h).pow(2).mean().sqrt()
        scaled = h + step, h
        normed = [
            norm(x) * ((x - x.mean() if name == "gpt2" else x).pow(2).mean().sqrt() / rms)
            for x in scaled
        ]
        derivative = (whole.lm_head(normed[0]) - whole.lm_head(normed[1]))[0] * rms / 1e-1
    top = derivative[: len(lm.tokenizer)].topk(10)
    text = TokenText(lm.tokenizer)
    np.testing.assert_allclose(
        [token_effect.value for token_effect in effect.raised], top.values, rtol=0.05, atol=0.02
    )
    assert effect.raised[0].token in [text(token) for token in top.indices[:3].tolist()]
    assert sum(effect.histogram.counts) == len(lm.tokenizer)
