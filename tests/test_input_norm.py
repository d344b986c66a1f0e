"""SAEs that normalise each residual: encoding, decoding, edits and export, by the formulas."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from saescope.control.edits import Edit
from saescope.control.exports.saelens import export_saelens
from saescope.control.formulae import bind_edits, delta
from saescope.control.readouts import WatchedFeature, condition_reader
from saescope.control.steer import steered
from saescope.engine.extract import extract
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.errors import EditError, SourceError
from saescope.sources.catalog import Feature
from saescope.sources.prompts import texts
from saescope.store.masking import Masking

NORMS = ("layer_norm", "constant_norm_rescale")
KINDS = {"standard": {}, "topk": {"k": 8}, "jumprelu": {}}


def normalised(norm: str, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The input in SAELens' formula, and the factor and shift of its output."""
    if norm == "layer_norm":
        mean = h.mean(-1, keepdim=True)
        std = (h - mean).std(-1, keepdim=True)
        return (h - mean) / (std + 1e-5), std, mean
    unit = h.norm(dim=-1, keepdim=True) / h.shape[-1] ** 0.5
    return h / unit, unit, torch.zeros_like(unit)


def residuals(n: int = 40) -> Tensor:
    """Residuals whose lengths differ by a factor of a hundred, as those of real models do."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.logspace(0, 2, n)[:, None]
    return (torch.randn(n, 32, generator=generator) + 0.7) * lengths


def saved(folder: Path, norm: str, kind: str = "standard", **settings: object) -> Path:
    settings = {"normalize_activations": norm, **KINDS[kind], **settings}
    return tiny.save_saelens(folder, [1], kind, settings)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [False, True])
def test_encoding_and_decoding_are_of_the_normalised_residual(
    tmp_path: Path, norm: str, kind: str, centred: bool
) -> None:
    folder = saved(tmp_path, norm, kind, apply_b_dec_to_input=centred)
    sae = load_sae(folder, 1)
    state = tiny.sae_tensors(seed=1)
    h = residuals()
    x, unit, shift = normalised(norm, h.double())
    if centred:
        x = x - state["b_dec"].double()
    z = x @ state["W_enc"].double().T + state["b_enc"].double()
    acts = z.relu()
    if kind == "jumprelu":
        acts = torch.where(z > 1, acts, 0)
    if kind == "topk":
        top = acts.topk(8)
        acts = torch.zeros_like(acts).scatter(1, top.indices, top.values)
    sparse = sae.encode(h)
    dense = torch.zeros(acts.shape).scatter_add(1, sparse.ids, sparse.acts)
    torch.testing.assert_close(dense, acts.float(), atol=1e-5, rtol=1e-4)
    decoded = (acts @ state["W_dec"].double().T + state["b_dec"].double()) * unit + shift
    torch.testing.assert_close(sae.decode(sparse, h), decoded.float(), atol=1e-3, rtol=1e-4)
    ids = torch.tensor([0, 5, 77])
    assert torch.equal(sae.fires(h, ids), dense[:, ids] > 0)
    with pytest.raises(
        SourceError, match=r"normalises its input per token \(.*decode\(sparse, resid"
    ):
        sae.decode(sparse)


@pytest.mark.parametrize("norm", NORMS)
def test_a_residual_of_zeros_is_finite(tmp_path: Path, norm: str) -> None:
    sae = load_sae(saved(tmp_path, norm), 1)
    sparse = sae.encode(torch.zeros(2, 32))
    assert torch.isfinite(sae.decode(sparse, torch.zeros(2, 32))).all()


def features_of(sae: Sae, h: Tensor) -> tuple[Tensor, list[int]]:
    """Dense activations, and three features that fire on some of these residuals."""
    sparse = sae.encode(h)
    dense = torch.zeros(len(h), sae.spec.d_sae).scatter_add(1, sparse.ids, sparse.acts)
    counts = (dense > 0).sum(0)
    return dense, ((counts > 5) & (counts < len(h))).nonzero()[:3, 0].tolist()


@pytest.mark.parametrize("norm", NORMS)
def test_edits_are_in_units_of_the_residual(tmp_path: Path, norm: str) -> None:
    sae = load_sae(saved(tmp_path, norm, "jumprelu"), 1)
    assert sae.W_dec is not None
    h = residuals()
    dense, (first, second, third) = features_of(sae, h)
    _, unit, _ = normalised(norm, h)
    columns = sae.W_dec.T
    edits = [
        Edit(Feature(1, first), "scale", -1.0, gate="topk"),
        Edit(Feature(1, second), "clamp", 3.0, gate="topk"),
        Edit(Feature(1, third), "add", 2.0),
    ]
    expected = (
        -unit * dense[:, [first]] * columns[first]
        + unit * (3.0 - dense[:, [second]]) * columns[second]
        + 2.0 * columns[third]
    )
    torch.testing.assert_close(delta(bind_edits(edits, sae), h), expected, atol=1e-4, rtol=1e-4)
    # Removing all contributions leaves what the SAE does not explain.
    every = [Edit(Feature(1, i), "scale", -1.0, gate="topk") for i in range(sae.spec.d_sae)]
    left = h + delta(bind_edits(every, sae), h)
    error = h - sae.decode(sae.encode(h), h)
    nothing = sae.decode(
        sae.encode(h)._replace(
            acts=torch.zeros(len(h), 1), ids=torch.zeros(len(h), 1, dtype=torch.int64)
        ),
        h,
    )
    torch.testing.assert_close(left, error + nothing, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_relu_gates_and_conditions_read_the_normalised_residual(tmp_path: Path, norm: str) -> None:
    sae = load_sae(saved(tmp_path, norm), 1)
    h = residuals()
    dense, ids = features_of(sae, h)
    reader = condition_reader([WatchedFeature(Feature(1, i), topk=False) for i in ids], sae)
    torch.testing.assert_close(reader.acts(h, reader.readout(h)), dense[:, ids])


def test_directions_beside_features_read_the_residual_itself(tmp_path: Path) -> None:
    sae = load_sae(saved(tmp_path, "layer_norm"), 1)
    assert sae.W_dec is not None
    h = residuals()
    edit = Edit(Feature(1, 3), "project")
    unit_column = sae.W_dec[:, 3] / sae.W_dec[:, 3].norm()
    expected = -(h @ unit_column)[:, None] * unit_column
    torch.testing.assert_close(delta(bind_edits([edit], sae), h), expected, atol=1e-4, rtol=1e-4)


def test_a_read_out_cannot_be_set(tmp_path: Path) -> None:
    sae = load_sae(saved(tmp_path, "layer_norm"), 1)
    with pytest.raises(EditError, match=r"normalises each residual, .*: use clamp"):
        bind_edits([Edit(Feature(1, 3), "readout_clamp", 1.0)], sae)


def test_a_steered_model_adds_what_the_formula_says(tmp_path: Path) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(saved(tmp_path / "sae", "layer_norm", "jumprelu"), 1)
    assert sae.W_dec is not None
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        h = output_of(lm, ids)
        dense, [feature, *_] = features_of(sae, h)
        edit = Edit(Feature(1, feature), "scale", -1.0, gate="topk", skip_sinks=False)
        with steered(lm, [sae], [edit]):
            edited = output_of(lm, ids)
    _, unit, _ = normalised("layer_norm", h)
    expected = h - unit * dense[:, [feature]] * sae.W_dec[:, feature]
    torch.testing.assert_close(edited, expected, atol=1e-4, rtol=1e-4)


def output_of(lm: LM, ids: Tensor) -> Tensor:
    """What block 1 writes for these tokens, after the edits that are active."""
    seen: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = lm.blocks[1].register_forward_hook(keep)
    lm.model(ids.long().reshape(1, -1))
    handle.remove()
    return seen[0].reshape(ids.numel(), -1)


@pytest.mark.parametrize("norm", NORMS)
def test_an_export_for_saelens_is_the_same_sae(tmp_path: Path, norm: str) -> None:
    folder = saved(tmp_path / "sae", norm, "topk", apply_b_dec_to_input=True)
    export_saelens(folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    assert config["normalize_activations"] == norm
    first, again = load_sae(folder, 1), load_sae(tmp_path / "out", 1)
    h = residuals()
    torch.testing.assert_close(again.encode(h).acts, first.encode(h).acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        again.decode(again.encode(h), h), first.decode(first.encode(h), h), atol=1e-3, rtol=1e-4
    )


@pytest.mark.parametrize("norm", NORMS)
def test_a_run_measures_the_reconstruction_of_the_residual(tmp_path: Path, norm: str) -> None:
    lm = load_lm(tiny.save_model(tmp_path / "model"), [1])
    sae = load_sae(saved(tmp_path / "sae", norm, "topk"), 1)
    prompts = texts(["hello there, how are you?", "a second one"])
    run = extract(lm, [sae], prompts, tmp_path / "run", errors=True)
    features = run.features(1)
    rows = []
    with torch.no_grad():
        for prompt in range(len(run.prompts)):
            rows.append(output_of(lm, torch.tensor(run.token_id[run.token_prompt == prompt])))
    h = torch.cat(rows)
    reconstruction = sae.decode(sae.encode(h), h)
    assert features.error is not None
    error = (h - reconstruction).norm(dim=-1)
    torch.testing.assert_close(torch.tensor(features.error), error, atol=1e-4, rtol=1e-4)
    scored = Masking().apply(run.token_pos, features.norms).scored
    unexplained = (error[scored] ** 2).sum() / ((h[scored] - h[scored].mean(0)) ** 2).sum()
    fit = run.sae_fits().layers[1]
    assert fit is not None
    assert fit.explained_variance == pytest.approx(1 - float(unexplained), abs=1e-4)


@pytest.mark.parametrize("key", ["norm_scaling_factor", "scaling_factor"])
def test_a_constant_scale_of_the_input_is_folded_in(tmp_path: Path, key: str) -> None:
    scaled = {"normalize_activations": "expected_average_only_in"}
    folder = tiny.save_saelens(tmp_path / "a", [1], "standard", {**scaled, key: 0.25})
    plain = load_sae(tiny.save_saelens(tmp_path / "b", [1], "standard"), 1)
    sae = load_sae(folder, 1)
    h = residuals()
    expected = plain.encode(h * 0.25)
    torch.testing.assert_close(sae.encode(h).acts, expected.acts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        sae.decode(sae.encode(h)), plain.decode(expected) * 4, atol=1e-3, rtol=1e-4
    )


def test_a_scale_beside_a_training_checkpoint_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    folder = tiny.save_saelens(
        tmp_path, [1], "standard", {"normalize_activations": "expected_average_only_in"}
    )
    with pytest.raises(SourceError, match=r"write it as norm_scaling_factor into cfg\.json"):
        load_sae(folder, 1)
    scale_file = folder / "blocks.1.hook_resid_post" / "activation_scaler.json"
    prints = []
    for scale in (0.25, 0.5):
        scale_file.write_text(json.dumps({"scaling_factor": scale, "has_whitening": False}))
        prints.append(load_sae(folder, 1).spec.fingerprint)
    assert prints[0] != prints[1]
    scale_file.write_text(json.dumps({"scaling_factor": None}))
    with pytest.raises(SourceError, match="a constant that its files do not hold"):
        load_sae(folder, 1)
