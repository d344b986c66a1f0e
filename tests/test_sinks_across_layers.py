"""A sink of one layer is one at every layer of the run, and layer 0 decides for none."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from saescope.analysis.contrast import contrast
from saescope.analysis.detect import detect
from saescope.analysis.examples import examples
from saescope.analysis.profile import profile
from saescope.engine.extract import extract
from saescope.engine.lm import load_lm
from saescope.engine.magnitudes import peaks_of, sink_sizes
from saescope.engine.norms import measure_norms
from saescope.engine.sae import Sae
from saescope.engine.scan import scan
from saescope.sources.catalog import Feature
from saescope.sources.prompts import PromptSet, texts
from saescope.store.manifest import SINKS_ACROSS_LAYERS
from saescope.store.masking import Magnitudes, Masking
from saescope.store.run_positions import run_positions
from saescope.store.runs import Run
from stored import edit_manifest, write_run

SINK = "%"
LINES = ["a rose % is red", "the sky is wide", "no sink here, none", "% first and then % again"]


def layers_run(out: Path, norms: Mapping[int, Sequence[float]]) -> Run:
    """Two sets of one prompt of four tokens each, with these norms in each layer."""
    fires = {layer: np.ones((8, 1), bool) for layer in norms}
    run = write_run(out, {"a": [4], "b": [4]}, fires)
    for layer, values in norms.items():
        rewrite_norms(run, layer, values)
    return Run.open(out)


def rewrite_norms(run: Run, layer: int, norms: Sequence[float]) -> None:
    import pyarrow as pa

    from stored import sign_table

    path = run.path / f"layer{layer}.parquet"
    table = pq.ParquetFile(path).read()
    table = table.set_column(0, "norm", pa.array(np.array(norms, np.float32)))
    pq.write_table(table, path)
    sign_table(run.path, path.name)


FLAT = [50.0, 1, 1, 1, 50, 1, 1, 1]
MIDDLE = [50.0, 1, 40, 1, 50, 1, 1, 1]
FIRST = [50.0, 1, 1, 90, 50, 1, 1, 1]


def test_a_sink_of_a_middle_layer_is_one_at_all(tmp_path: Path) -> None:
    run = layers_run(tmp_path / "run", {0: FIRST, 2: FLAT, 5: MIDDLE, 9: FLAT})
    expected = [False, True, False, True, False, True, True, True]
    positions = run_positions(run, Masking())
    for layer in run.layers:
        assert positions[layer].scored.tolist() == expected
    assert [positions.shown_by(layer).tolist() for layer in run.layers] == [
        [],
        [0, 4],
        [0, 2, 4],
        [0, 4],
    ]
    # Whatever layers a question is about.
    for layers in ([2], [9, 2], None):
        for layer in contrast(run, layers=layers).layers.values():
            assert (layer.masked_pos0, layer.masked_sinks) == (2, 1)
        assert set(detect(run, "a", layers=layers).masked.values()) == {(2, 1)}
        assert {s.pos for s in profile(run, layers=layers).sinks} == {0, 2}
    assert contrast(run).to_dict()["masked"] == {"pos0": 2, "sinks": 1}
    shown = examples(run, Feature(9, 0)).examples[0]
    assert [token.masked for token in shown.tokens] == ["position 0", None, "sink", None]


def test_layer_0_decides_nothing(tmp_path: Path) -> None:
    run = layers_run(tmp_path / "run", {0: FIRST})
    assert run_positions(run, Masking())[0].masked == (2, 0)
    assert profile(run).sinks == []


def test_a_run_of_an_earlier_version_keeps_its_own_rule(tmp_path: Path) -> None:
    run = layers_run(tmp_path / "run", {0: FIRST, 5: MIDDLE, 9: FLAT})
    edit_manifest(run.path, lambda manifest: manifest.pop(SINKS_ACROSS_LAYERS))
    layers = contrast(Run.open(run.path)).layers
    assert {n: layer.masked_sinks for n, layer in layers.items()} == {0: 1, 5: 1, 9: 0}


def test_a_dominant_coordinate_needs_less() -> None:
    pos = np.arange(7)
    norms = np.array([9.0, 1, 1, 4, 4, 11, 1])
    peaks = np.array([0.9, 0.9, 0.9, 0.9, 0.4, 0.1, 0.9])
    assert np.flatnonzero(Masking().apply(pos, norms, peaks).sinks).tolist() == [0, 3, 5]
    # A ratio lowered by hand does not make every token of a model with large coordinates a sink.
    lower = Masking(sink_ratio=2.0).sinks(pos, Magnitudes(norms * 0.5 + 0.5, peaks))
    assert np.flatnonzero(lower).tolist() == [0, 3, 4, 5]
    assert not Masking(sink_ratio=40.0).apply(pos, norms, peaks).sinks.any()
    resid = torch.zeros(7, 3)
    resid[:, 0] = torch.tensor(norms * peaks**0.5)
    resid[:, 1:] = torch.tensor(norms * ((1 - peaks) / 2) ** 0.5)[:, None]
    measured = resid.norm(dim=-1)
    np.testing.assert_allclose(peaks_of(resid, measured)[:4], peaks[:4], rtol=1e-5)
    # Steering has the same rule.
    assert (sink_sizes(resid, measured) > 10).nonzero().flatten().tolist() == [0, 3, 5]


@pytest.fixture(scope="module")
def lm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which '%' is large in one coordinate; every block adds to the other tokens.

    Its norms are about 5, 3.6, 3.2 and 2.6 times the median of layers 0 to 3.
    """
    folder = tmp_path_factory.mktemp("sinks") / "model"
    tok = tiny.tokenizer()
    tiny.save_model(folder, layers=4, tok=tok)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        typical = float(embedding.norm(dim=1).median())
        embedding[tok.convert_tokens_to_ids(SINK)] = 0
        embedding[tok.convert_tokens_to_ids(SINK), 3] = 34 * typical
    model.save_pretrained(folder)
    return folder


def sets_of_lines() -> list[PromptSet]:
    return [*texts(LINES, "a"), *texts(LINES[::-1], "b")]


def sinks_of(run: Run) -> list[int]:
    return np.flatnonzero(run_positions(run, Masking())[run.layers[-1]].sinks).tolist()


def test_streamed_resumed_and_single_runs_mask_alike(lm_folder: Path, tmp_path: Path) -> None:
    sae_folder = tiny.save_sae(tmp_path / "sae", layers=(0, 1, 2, 3))
    saes = load_saes(sae_folder, (1, 2, 3))
    sets = sets_of_lines()
    whole = extract(load_lm(lm_folder, [1, 2, 3]), saes, sets, tmp_path / "whole")
    streamed = extract(
        load_lm(lm_folder, [1, 2, 3], streamed=True), saes, sets, tmp_path / "streamed"
    )
    assert whole.manifest["tables"] == streamed.manifest["tables"]
    assert whole.manifest["sae_fit"] == streamed.manifest["sae_fit"]
    small = extract(load_lm(lm_folder, [1, 2, 3]), saes, sets, tmp_path / "small", batch_tokens=16)
    measured = measure_norms(load_lm(lm_folder, [1, 2, 3]), [1, 2, 3], sets)
    found = sinks_of(whole)
    is_sink_token = [n for n, text in enumerate(whole.token_text) if text == SINK]
    assert found == is_sink_token
    assert sinks_of(small) == found
    assert np.flatnonzero(run_positions(measured, Masking())[3].sinks).tolist() == found
    # Layer 3 alone does not show them, nor does layer 0.
    for layer in (0, 3):
        alone = measure_norms(load_lm(lm_folder, [layer]), [layer], sets)
        assert not run_positions(alone, Masking())[layer].sinks.any()
        both = measure_norms(load_lm(lm_folder, [1, layer]), [1, layer], sets)
        assert np.flatnonzero(run_positions(both, Masking())[layer].sinks).tolist() == found
    scanned = scan(load_lm(lm_folder, [1, 2, 3]), saes, [p for s in sets for p in s.prompts])
    tokens = [token for prompt in scanned.prompts for token in prompt.tokens]
    assert [n for n, token in enumerate(tokens) if token.sink] == found
    assert {token.sink_layers != () for token in tokens if token.sink} == {True}


def load_saes(folder: Path, layers: Sequence[int]) -> list[Sae]:
    from saescope.engine.load import load_sae
    from saescope.sources.saes import open_sae

    return [load_sae(open_sae(str(folder)), layer, decoder=True) for layer in layers]
