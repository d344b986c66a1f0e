"""An SAE that does not fit is noticed: explained variance and L0 of every run and scan."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import stored
import tiny
from conftest import Pair
from saescope.analysis.contrast import ContrastSettings, contrast
from saescope.analysis.detect import detect
from saescope.analysis.fitness import fitness
from saescope.analysis.layers import layers
from saescope.analysis.report_findings import gather
from saescope.engine.extract import extract
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.engine.scan import scan
from saescope.errors import SourceError
from saescope.sources.catalog import SaeSpec
from saescope.sources.formats.tensors import InputNorm
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.prompts import PromptSet, texts
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.sae_fit import SaeFit, SaeFits, positions_of, sample_tokens
from saescope.surfaces.cli import run as run_command
from saescope.surfaces.report.page import render

LAYER = 2
TEXT = "The weather in Paris was cold, and nobody had brought a coat for the long walk home."


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_lm("saescope-tiny", [LAYER])


@pytest.fixture(scope="module")
def sae() -> Sae:
    return load_sae("saescope-tiny-sae", LAYER)


@pytest.fixture(scope="module")
def sets() -> list[PromptSet]:
    return [replace(group, prompts=group.prompts[:8]) for group in bundled_prompts()[:2]]


def altered(sae: Sae, **changes: Tensor | SaeSpec | InputNorm | None) -> Sae:
    """The SAE with other weights, which are in no file."""
    return replace(sae, mapped=(), **changes)


def random_sae(sae: Sae) -> Sae:
    generator = torch.Generator().manual_seed(0)
    d_sae, d_model = sae.W_enc.shape
    decoder = torch.randn(d_model, d_sae, generator=generator)
    return altered(
        sae,
        W_enc=torch.randn(d_sae, d_model, generator=generator) / d_model**0.5,
        b_enc=torch.zeros(d_sae),
        W_dec=torch.nn.functional.normalize(decoder, dim=0),
        b_dec=torch.zeros(d_model),
    )


def of_larger_residuals(sae: Sae, factor: float) -> Sae:
    """The SAE as it would be for residuals `factor` times as large."""
    assert sae.b_dec is not None
    return altered(sae, b_enc=factor * sae.b_enc, b_dec=factor * sae.b_dec)


def with_thresholds(sae: Sae, threshold: float, path: str = "") -> Sae:
    spec = replace(sae.spec, activation="jumprelu", k=None, path=path)
    return altered(sae, spec=spec, threshold=torch.full_like(sae.b_enc, threshold))


def scanned(lm: LM, sae: Sae) -> SaeFits:
    return scan(lm, [sae], texts([TEXT])[0].prompts).sae_fits


def test_embedded_pair_fits(lm: LM, sae: Sae, sets: list[PromptSet], tmp_path: Path) -> None:
    run = extract(lm, [sae], sets, tmp_path / "run")
    fits = run.sae_fits()
    fit = fits.layers[LAYER]
    assert fits.warnings == []
    assert fit is not None
    assert fit.explained_variance is not None
    assert 0.8 < fit.explained_variance < 0.95
    assert fit.l0 == sae.spec.k
    assert scanned(lm, sae).warnings == []
    assert contrast(run, ContrastSettings(shuffles=0)).to_dict()["sae_fit"] == fits.to_dict()


def test_run_records_what_a_dense_reference_measures(
    lm: LM, sae: Sae, sets: list[PromptSet], tmp_path: Path
) -> None:
    run = extract(lm, [sae], sets, tmp_path / "run", errors=True)
    features, resid = run.features(LAYER), _residuals(lm, run)
    lengths = np.bincount(run.token_prompt)
    scored = Masking().apply(run.token_pos, features.norms).scored
    measured = [token for token in sample_tokens(lengths.tolist()) if scored[token]]
    assert features.error is not None
    variance = ((resid[measured] - resid[measured].mean(0)) ** 2).sum()
    expected = 1 - (features.error[measured].astype(np.float64) ** 2).sum() / variance
    fit = run.sae_fits().layers[LAYER]
    assert fit is not None
    assert fit.explained_variance == pytest.approx(expected, abs=1e-6)
    assert (fit.positions, fit.measured) == (scored.sum(), len(measured))
    fvu = fitness(run).layers[LAYER].fvu
    assert fit.explained_variance == pytest.approx(1 - fvu, abs=0.03)


def _residuals(lm: LM, run: Run) -> np.ndarray:
    """Every token's residual after the layer, prompt by prompt, by transformers' own output."""
    rows = []
    for prompt in range(len(run.prompts)):
        ids = torch.from_numpy(run.token_id[run.token_prompt == prompt]).long()[None]
        with torch.inference_mode():
            resid = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[LAYER + 1]
        rows.append(resid[0].double().numpy())
    return np.concatenate(rows)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["random", "permuted", "transposed", "small_residuals"])
def test_misfit_is_noticed_everywhere(
    how: str, lm: LM, sae: Sae, sets: list[PromptSet], tmp_path: Path
) -> None:
    assert sae.W_dec is not None
    wrong = {
        "random": random_sae(sae),
        "permuted": altered(sae, W_dec=sae.W_dec.roll(1, dims=1)),
        "transposed": altered(sae, W_dec=sae.W_dec.T.reshape(sae.W_dec.shape)),
        "small_residuals": of_larger_residuals(sae, 10),
    }[how]
    run = extract(lm, [wrong], sets, tmp_path / "run")
    [line] = run.sae_fits().warnings
    assert line.startswith(f"layer {LAYER}: the SAE does not fit")
    assert all(word in line for word in ("this layer", "this model", "this scale"))
    assert contrast(run, ContrastSettings(shuffles=0)).to_dict()["warnings"][0] == line
    assert line in detect(run, sets[0].name).to_dict()["warnings"]
    assert layers(run).to_dict()["warnings"] == [line]
    assert "does not fit" in scanned(lm, wrong).warnings[0]
    page = render(gather(run))
    assert page.index("the SAE does not fit") < page.index('id="findings"')


@pytest.mark.parametrize(("of", "at"), [(0, 4), (4, 0)])
def test_sae_of_a_far_layer_is_noticed(of: int, at: int) -> None:
    far = load_sae("saescope-tiny-sae", of)
    misplaced = altered(far, spec=replace(far.spec, layer=at))
    prompts = [prompt for group in bundled_prompts() for prompt in group.prompts[:2]]
    [line] = scan(load_lm("saescope-tiny", [at]), [misplaced], prompts).sae_fits.warnings
    assert line.startswith(f"layer {at}: the SAE")
    assert "this layer" in line


def test_wrong_scale_of_an_sae_with_thresholds_shows_in_its_l0(lm: LM, sae: Sae) -> None:
    [silent] = scanned(lm, with_thresholds(sae, 1000.0)).warnings
    assert "0 features per token" in silent
    [named] = scanned(lm, with_thresholds(sae, 0.0, "layer_2/average_l0_5")).warnings
    assert "its name says 5" in named
    assert scanned(lm, with_thresholds(sae, 0.0, "layer_2/average_l0_60")).warnings == []


def test_few_positive_pre_activations_of_a_topk_sae(lm: LM, sae: Sae) -> None:
    spec = replace(sae.spec, k=sae.spec.d_sae)
    [line] = scanned(lm, altered(sae, spec=spec)).warnings
    assert f"features per token (k is {sae.spec.d_sae})" in line


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
@pytest.mark.parametrize("is_row_major", [True, False])
def test_decoder_of_any_layout_and_dtype_reconstructs_the_same(
    kind: str, is_row_major: bool, lm: LM, sae: Sae
) -> None:
    if kind == "jumprelu":
        sae = with_thresholds(sae, 5.0)
    assert sae.W_dec is not None
    expected = scanned(lm, altered(sae)).layers[LAYER]
    stored_dec = sae.W_dec if is_row_major else sae.W_dec.T.contiguous().T
    other = scanned(lm, altered(sae, W_dec=stored_dec.bfloat16())).layers[LAYER]
    assert expected is not None
    assert other is not None
    assert other.explained_variance == pytest.approx(expected.explained_variance, abs=1e-3)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_normalised_inputs_are_reconstructed_as_residuals(
    norm: InputNorm, lm: LM, sae: Sae, tmp_path: Path
) -> None:
    normalised = altered(sae, input_norm=norm)
    run = extract(lm, [normalised], texts([TEXT]), tmp_path / "run", errors=True)
    fit, error, resid = run.sae_fits().layers[LAYER], run.features(LAYER).error, _residuals(lm, run)
    assert fit is not None
    assert error is not None
    scored = Masking().apply(run.token_pos, run.features(LAYER).norms).scored
    variance = ((resid[scored] - resid[scored].mean(0)) ** 2).sum()
    expected = 1 - (error[scored].astype(np.float64) ** 2).sum() / variance
    assert fit.explained_variance == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_figures_do_not_depend_on_batches_streaming_or_interruption(
    pair: Pair, tmp_path: Path
) -> None:
    lm, saes = pair.load(0, 1, 2)
    sets = texts([*tiny.TEXTS, *(text + " again" for text in tiny.TEXTS), tiny.TEXTS[0]])
    whole = extract(lm, saes, sets, tmp_path / "whole").manifest["sae_fit"]
    small = extract(lm, saes, sets, tmp_path / "small", batch_tokens=16)
    streamed_lm = load_lm(pair.model, [0, 1, 2], streamed=True)
    streamed = extract(streamed_lm, saes, sets, tmp_path / "streamed", batch_tokens=16)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lm, saes, sets, tmp_path / "resumed", batch_tokens=16, progress=stop)
    resumed = extract(lm, saes, sets, tmp_path / "resumed", batch_tokens=16)
    assert resumed.manifest["sae_fit"] == small.manifest["sae_fit"]
    for run in (small, streamed):
        for layer, figures in run.manifest["sae_fit"].items():
            assert figures == pytest.approx(whole[layer], rel=1e-4)


def test_batches_of_an_earlier_version_leave_it_unrecorded(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(1)
    sets = texts(tiny.TEXTS)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(lm, saes, sets, tmp_path / "run", batch_tokens=16, progress=stop)
    for path in (tmp_path / ".run.partial").glob("*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive if name != "sample"}
        np.savez(path, **arrays)
    run = extract(lm, saes, sets, tmp_path / "run", batch_tokens=16)
    assert run.sae_fits().unrecorded == [1]


def test_earlier_run_says_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fires = np.zeros((2 * 8 * 4, 8), bool)
    fires[: 8 * 4, 3] = True
    run = stored.write_run(tmp_path / "run", {"a": [4] * 8, "b": [4] * 8}, {5: fires})
    stored.edit_manifest(run.path, stored.without("sae_fit"))
    assert contrast(Run.open(run.path)).to_dict()["sae_fit"] == {"5": None}
    assert "not recorded" in render(gather(Run.open(run.path)))
    assert run_command(["contrast", str(run.path)]) == 0
    assert "how well the SAE fits is not recorded" in capsys.readouterr().out


def test_rerun_of_an_earlier_run_records_it(
    pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm, saes = pair.load(1)
    run = extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    figures = run.manifest["sae_fit"]
    stored.edit_manifest(run.path, stored.without("sae_fit"))
    assert run_command(["rerun", str(run.path), "--out", str(tmp_path / "new")]) == 0
    assert Run.open(tmp_path / "new").manifest["sae_fit"] == figures


def test_decoder_that_is_not_mapped_is_read_again(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saescope.engine.load.mapped_pages", lambda tensors: [])
    unmapped = load_sae(str(pair.sae), 1, decoder=False)
    decoder, loaded = unmapped.decoder(), load_sae(str(pair.sae), 1)
    assert unmapped.W_dec is None
    assert decoder is not None
    assert loaded.W_dec is not None
    assert torch.equal(decoder.W_dec, loaded.W_dec)


def test_damaged_decoder_is_refused(lm: LM, sae: Sae) -> None:
    assert sae.W_dec is not None
    with pytest.raises(SourceError, match=r"decoder of .* not finite"):
        scanned(lm, altered(sae, W_dec=torch.full_like(sae.W_dec, torch.nan)))


def test_notebooks_show_the_warning_first(lm: LM, sae: Sae) -> None:
    html = scan(lm, [random_sae(sae)], texts([TEXT])[0].prompts)._repr_html_()
    assert html.startswith("<p>warning: layer 2: the SAE does not fit")
    assert "warning" not in scan(lm, [sae], texts([TEXT])[0].prompts)._repr_html_()


def test_warning_stands_at_the_top_of_the_terminal_output(
    pair: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["scan", TEXT, "--model", str(pair.model), "--sae", str(pair.sae), "--layers", "1"]
    assert run_command(command) == 0
    assert capsys.readouterr().out.startswith("warning: layer 1: the SAE does not fit")
    assert run_command([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["warnings"] == [document["sae_fit"]["1"]["warning"]]


def test_many_layers_share_one_line() -> None:
    spec = SaeSpec("r", None, 0, 4, 8, 2, "topk", None, "")
    fits = {layer: SaeFit(100, 2.0, 100, -float(layer)) for layer in range(6)}
    fits[7] = SaeFit(100, 2.0, 100, 0.9)
    [line] = SaeFits(fits, dict.fromkeys(fits, replace(spec))).warnings
    assert line.startswith("6 of 7 layers (0-5): the SAE does not fit or fits poorly")
    assert "worst in layer 5: explained variance -5.00" in line


@pytest.mark.parametrize("lengths", [[1], [2], [5] * 400, [1, 900, 3], [300, 1, 1, 30]])
def test_sample_is_spread_and_never_holds_position_0(lengths: Sequence[int]) -> None:
    sample = sample_tokens(lengths)
    positions = positions_of(lengths)[sample]
    candidates = sum(length - 1 for length in lengths)
    assert len(set(sample.tolist())) == len(sample) == min(256, candidates)
    assert (positions > 0).all()
    if lengths == [5] * 400:
        counts = np.bincount(positions)[1:]
        assert counts.min() > 0.7 * counts.max()


def test_prompts_of_one_token_measure_nothing(lm: LM, sae: Sae) -> None:
    fits = scan(lm, [sae], texts(["a"])[0].prompts).sae_fits
    assert fits.layers[LAYER] == SaeFit(0, None, 0, None)
    assert fits.warnings == []


def test_sae_without_decoder_records_its_l0(lm: LM, sae: Sae) -> None:
    fit = scanned(lm, altered(sae, W_dec=None, b_dec=None, read_decoder=None)).layers[LAYER]
    assert fit is not None
    assert (fit.l0, fit.measured, fit.explained_variance) == (sae.spec.k, 0, None)
