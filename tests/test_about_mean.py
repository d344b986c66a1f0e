"""Edits about the mean residual over neutral text: the mean, the formula, files, receipts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from saescope.control.about import about_means, with_spreads
from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import read_edits, write_edits
from saescope.control.formulae import bind_edits, coefficients, delta
from saescope.control.steer import steered
from saescope.engine.batches import plan_batches
from saescope.engine.forward import compute_residuals
from saescope.engine.generate import generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.neutral_means import neutral_means
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import EditError, PromptError, SourceError
from saescope.sources.directions import Direction
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import Prompt, texts

LAYER = 1
NEUTRAL = texts(tiny.TEXTS)[0].prompts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, Sae]:
    folder = tmp_path_factory.mktemp("about")
    lm = load_lm(tiny.save_model(folder / "model"), [2])
    return lm, load_sae(tiny.save_sae(folder / "sae"), LAYER)


@pytest.fixture(scope="module")
def mean(model: tuple[LM, Sae]) -> NeutralMean:
    return neutral_means(model[0], [LAYER], NEUTRAL)[LAYER]


def residual(lm: LM, prompt: Prompt, layer: int = LAYER) -> Tensor:
    """A prompt's residuals after a layer, computed by transformers alone."""
    with torch.no_grad():
        ids = torch.tensor([prompt_ids(lm, prompt)])
        states = lm.whole(input_ids=ids, output_hidden_states=True).hidden_states
    return states[layer + 1][0].double()


def steered_residual(lm: LM, sae: Sae, edits: list[Edit], prompt: Prompt) -> Tensor:
    with steered(lm, [sae], edits):
        [batch] = compute_residuals(lm, [LAYER], plan_batches(lm, [prompt]))
    return batch.resid.double()


def test_the_mean_is_over_the_positions_that_steering_edits(model: tuple[LM, Sae]) -> None:
    lm, _ = model
    kept = []
    for prompt in NEUTRAL:
        h = residual(lm, prompt)
        norms = h.norm(dim=-1)
        if len(h) > 1:
            others = norms[1:].sort().values
            kept.append(h[1:][norms[1:] <= 10 * others[(len(others) - 1) // 2]])
    expected = torch.cat(kept)
    measured = neutral_means(lm, [0, LAYER], NEUTRAL)[LAYER]
    assert measured.positions == len(expected)
    torch.testing.assert_close(
        torch.tensor(measured.values).double(), expected.mean(0), atol=1e-4, rtol=1e-4
    )
    distances = (expected - expected.mean(0)).norm(dim=-1)
    assert measured.spread == pytest.approx(float(distances.pow(2).mean().sqrt()), rel=1e-4)
    assert measured.source == f"{len(NEUTRAL)} texts of prompts"


def test_special_tokens_are_no_text(model: tuple[LM, Sae]) -> None:
    lm, _ = model
    plain, marked = texts(["the hill is there", "the<|endoftext|> hill"])[0].prompts
    n = len(prompt_ids(lm, plain)) - 1
    assert neutral_means(lm, [LAYER], [plain])[LAYER].positions == n
    n_marked = len(prompt_ids(lm, marked)) - 2
    assert neutral_means(lm, [LAYER], [marked])[LAYER].positions == n_marked


def test_a_mean_of_nothing_is_refused(model: tuple[LM, Sae]) -> None:
    with pytest.raises(PromptError, match="no neutral text"):
        neutral_means(model[0], [LAYER], [])
    with pytest.raises(PromptError, match="only first positions"):
        neutral_means(model[0], [LAYER], texts(["x"])[0].prompts)
    edited = steered(model[0], [model[1]], [Edit("1/5", "add", 1.0)])
    with edited, pytest.raises(SourceError, match="before steered"):
        neutral_means(model[0], [LAYER], NEUTRAL)
    with pytest.raises(SourceError, match="spread"):
        NeutralMean(1, np.ones(3), 0.0, 5)


def test_project_about_the_mean_keeps_what_the_mean_has(
    model: tuple[LM, Sae], mean: NeutralMean
) -> None:
    lm, sae = model
    edit = Edit("1/5", "project", 0.6, about=mean)
    h = residual(lm, NEUTRAL[0])
    unit = torch.nn.functional.normalize(sae.W_dec[:, 5].double(), dim=0)
    mu = torch.tensor(mean.values).double()
    expected = h - 0.6 * ((h - mu) @ unit)[:, None] * unit
    expected[0] = h[0]
    changed = steered_residual(lm, sae, [edit], NEUTRAL[0])
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-4)


def test_other_ops_do_not_depend_on_the_mean(model: tuple[LM, Sae], mean: NeutralMean) -> None:
    _, sae = model
    h = torch.randn(9, 32, generator=torch.Generator().manual_seed(3))
    direction = Direction(LAYER, np.linspace(-1, 1, 32))
    edits = [
        Edit("1/5", "add", 2.0),
        Edit("1/6", "scale", -2.0),
        Edit("1/7", "clamp", 1.5, gate="topk"),
        Edit("1/8", "readout_clamp", 0.5),
        Edit(op="readout_clamp", strength=2.0, direction=direction),
    ]
    before = delta(bind_edits(edits, sae), h)
    assert torch.equal(before, delta(bind_edits(about_means(edits, {LAYER: mean}), sae), h))


def test_rows_of_a_batch_are_edited_one_by_one(model: tuple[LM, Sae], mean: NeutralMean) -> None:
    _, sae = model
    h = torch.randn(4, 7, 32, generator=torch.Generator().manual_seed(4))
    edits = [Edit("1/5", "project", about=mean), Edit("1/9", "project", 0.5), Edit("1/5")]
    tensors = bind_edits(edits, sae)
    together = coefficients(tensors, h).values
    for row in range(4):
        torch.testing.assert_close(together[row], coefficients(tensors, h[row]).values)


def test_batched_equals_single(model: tuple[LM, Sae], mean: NeutralMean) -> None:
    lm, sae = model
    edits = [Edit("1/5", "project", about=mean), Edit("1/6", "scale", -2.0, about=mean)]
    with steered(lm, [sae], edits):
        together = generate_batch(lm, NEUTRAL[:4], max_new_tokens=6)
        alone = [generate_batch(lm, [prompt], max_new_tokens=6)[0] for prompt in NEUTRAL[:4]]
    assert [reply.ids for reply in together] == [reply.ids for reply in alone]


def test_strength_0_changes_no_bit(model: tuple[LM, Sae], mean: NeutralMean) -> None:
    lm, sae = model
    [plain] = compute_residuals(lm, [LAYER], plan_batches(lm, [NEUTRAL[0]]))
    edits = [Edit("1/5", "project", 0.0, about=mean)]
    assert torch.equal(steered_residual(lm, sae, edits, NEUTRAL[0]), plain.resid.double())


def test_random_directions_are_projected_about_the_mean_too(
    model: tuple[LM, Sae], mean: NeutralMean
) -> None:
    _, sae = model
    tensors = bind_edits([Edit("1/5", "project", about=mean)], sae).along_random_directions(1)
    [d] = tensors.write_directions.double()
    mu = torch.tensor(mean.values)[None]
    assert float(coefficients(tensors, mu).values.abs().max()) < 1e-4 * float(mu.norm())
    h = torch.randn(1, 32, generator=torch.Generator().manual_seed(5))
    expected = -((h - mu).double() @ d / d.norm()) * d / d.norm()
    torch.testing.assert_close(delta(tensors, h)[0].double(), expected, atol=1e-4, rtol=1e-4)


def test_receipts_compare_changes_with_the_spread(model: tuple[LM, Sae], mean: NeutralMean) -> None:
    lm, sae = model
    edits = [Edit("1/5", "add", 2.0, skip_sinks=False)]
    with steered(lm, [sae], edits) as without:
        generate_batch(lm, NEUTRAL[:1], max_new_tokens=2)
    with steered(lm, [sae], with_spreads(edits, {LAYER: mean})) as receipt:
        generate_batch(lm, NEUTRAL[:1], max_new_tokens=2)
    assert (without.spread_ratio, without.size.unit, without.means) == (None, "|residual|", {})
    length = 2.0 * float(sae.W_dec[:, 5].norm())
    assert receipt.spread_ratio == pytest.approx(length / mean.spread, rel=1e-5)
    assert receipt.largest_spread_ratio == pytest.approx(length / mean.spread, rel=1e-5)
    assert receipt.delta_norm_ratio == without.delta_norm_ratio
    plain = receipt.to_dict()
    assert plain["means"]["1"] == mean.to_dict()
    assert plain["edits"][0]["about"] is None


def test_only_project_says_what_it_acts_about(model: tuple[LM, Sae], mean: NeutralMean) -> None:
    lm, sae = model
    edits = [Edit("1/5", "project"), Edit("1/6", "project", about=mean)]
    with steered(lm, [sae], edits) as receipt:
        pass
    assert [row["about"] for row in receipt.to_dict()["edits"]] == ["zero", "mean"]
    assert with_spreads(edits, {LAYER: mean}) == tuple(edits)


def test_an_edits_file_keeps_the_mean(mean: NeutralMean, tmp_path: Path) -> None:
    about = Edit("1/5", "project", 1.0, about=mean)
    direction = Direction(LAYER, np.linspace(-1, 1, 32))
    edits = EditSet(
        "model",
        "sae",
        (about, Edit("1/6", "project", 0.5), Edit(op="project", strength=1.0, direction=direction)),
    )
    path = tmp_path / "edits.toml"
    write_edits(edits, path)
    assert read_edits(path) == edits
    text = path.read_text()
    assert f'source = "{mean.source}"' in text
    assert f"positions = {mean.positions}" in text
    other = replace(mean, values=mean.values + 1)
    write_edits(replace(edits, edits=(replace(about, about=other),)), path)
    assert read_edits(path).edits[0].about == other
    twice = replace(edits, edits=(about, replace(about, about=other)))
    with pytest.raises(EditError, match="different means"):
        write_edits(twice, path)


def test_an_earlier_edits_file_acts_about_zero(tmp_path: Path) -> None:
    path = tmp_path / "edits.toml"
    path.write_text('model = "m"\nsae = "s"\n[[edit]]\nfeature = "1/5"\nop = "project"\n')
    assert read_edits(path).edits[0].about is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", r"needs a table \[mean.1\]"),
        ("[mean.1]\nspread = 1.0\n", "is not a table of"),
        ("[mean.x]\nspread = 1.0\n", "a table for each layer"),
        (
            '[mean.1]\nvalues = "v.safetensors#a"\nsource = ""\nspread = nan\npositions = 3\n',
            "does not exist",
        ),
        ('[mean.1]\nvalues = 3\nsource = ""\nspread = 1.0\npositions = 3\n', "must be strings"),
        (
            '[mean.1]\nvalues = ""\nsource = ""\nspread = 1.0\npositions = true\n',
            "positions is True, not a number",
        ),
    ],
)
def test_a_damaged_mean_is_refused(tmp_path: Path, table: str, message: str) -> None:
    path = tmp_path / "edits.toml"
    edit = '[[edit]]\nfeature = "1/5"\nop = "project"\nabout = "mean"\n'
    path.write_text(f'model = "m"\nsae = "s"\n{edit}{table}')
    with pytest.raises(EditError, match=message):
        read_edits(path)


def test_a_mean_of_another_layer_or_width_is_refused(
    model: tuple[LM, Sae], mean: NeutralMean
) -> None:
    lm, sae = model
    with pytest.raises(EditError, match="mean of layer 1, not 2"):
        Edit("2/5", "project", about=mean)
    narrow = NeutralMean(LAYER, np.ones(8), 1.0, 5)
    edited = steered(lm, [sae], [Edit("1/5", "project", about=narrow)])
    with pytest.raises(EditError, match="has 8 dimensions"), edited:
        pass
