"""Weights that project about the mean, against stock transformers with hooks written here."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from saescope.control.baking.bake import bake
from saescope.control.baking.residual_map import projection
from saescope.control.baking.settings import BakeSettings
from saescope.control.edits import Edit
from saescope.control.exports.lora import export_lora
from saescope.control.exports.settings import ExportSettings
from saescope.errors import EditError
from saescope.sources.directions import Direction
from saescope.sources.neutral_mean import NeutralMean
from saescope.sources.prompts import texts
from test_architectures import one_thread, save
from test_bake import blocks, decoder, kl, model_of, output, scores, whole
from test_export_lora import IDS, in_peft

__all__ = ["one_thread"]
NEUTRAL = texts(tiny.TEXTS)[0].prompts
RANDOM = np.random.default_rng(5)
D = [RANDOM.normal(size=32) for _ in range(2)]
MEAN = NeutralMean(1, 0.5 * RANDOM.normal(size=32), spread=2.0, positions=99, source="made up")
WRITERS = ("self_attn", "linear_attn", "attn", "mlp")


def edits(share: float = 1.0, mean: NeutralMean = MEAN) -> list[Edit]:
    directions = [Direction(1, d, f"d{n}") for n, d in enumerate(D)]
    return [Edit(direction=d, op="project", strength=share, about=mean) for d in directions]


def basis() -> Tensor:
    return torch.linalg.qr(torch.tensor(np.array(D)).T)[0]


def removed(h: Tensor, share: float) -> Tensor:
    return share * (h @ basis()) @ basis().T


def at_every_write(model: Any, share: float) -> ExitStack:
    """The input of block 0 gets the mean's part; each write loses its component."""
    stack = ExitStack()
    kept = removed(torch.tensor(MEAN.values).double(), share)

    def before(_block: Any, inputs: Any, kwargs: Any) -> Any:
        h = inputs[0] if inputs else kwargs["hidden_states"]
        h = h - removed(h, share) + kept
        return ((h, *inputs[1:]), kwargs) if inputs else ((), {**kwargs, "hidden_states": h})

    stack.callback(blocks(model)[0].register_forward_pre_hook(before, with_kwargs=True).remove)
    for block in blocks(model):
        for module in (getattr(block, name) for name in WRITERS if hasattr(block, name)):
            change = output(lambda h: h - removed(h, share))
            stack.callback(module.register_forward_hook(change).remove)
    return stack


def kl_of(folder: Path, hooked: Tensor) -> float:
    return kl(hooked, scores(whole(folder), folder))


@pytest.mark.parametrize(
    ("name", "share", "tied"),
    [
        ("qwen3", 1.0, True),
        pytest.param("llama", 0.6, False, marks=pytest.mark.slow),
        pytest.param("gpt2", 1.0, True, marks=pytest.mark.slow),
        pytest.param("qwen3.5 moe", 1.0, False, marks=pytest.mark.slow),
    ],
)
def test_an_exact_bake_is_its_hook(name: str, share: float, tied: bool, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "model", **({"tie_word_embeddings": True} if tied else {}))
    every_write = BakeSettings(method="every-write")
    baked = bake(model, (), edits(share), tmp_path / "out", every_write, neutral=NEUTRAL)
    assert (baked.method, baked.exact) == ("every-write", True)
    assert any("enters with the embedding" in note for note in baked.notes)
    assert baked.hook.startswith("project about the mean at every write")
    assert baked.edits[0]["about"] == "mean"
    assert baked.edits[0]["mean"] == MEAN.to_dict()
    base = whole(model)
    with at_every_write(base, share):
        hooked = scores(base, model)
    assert kl_of(tmp_path / "out", hooked) < 1e-11
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.largest < 1e-9
    # The constant moves the model: the same bake about zero is another one.
    assert baked.kl_steered_baked is not None
    about_zero = bake(
        model,
        (),
        [Edit(direction=e.direction, op="project", strength=share) for e in edits()],
        tmp_path / "zero",
        BakeSettings(measure=False),
    )
    assert about_zero.exact
    assert kl_of(tmp_path / "zero", hooked) > 1e-4


def test_the_default_method_shows_the_mean_to_no_other_layer(tmp_path: Path) -> None:
    model = save("qwen3", tmp_path / "model")
    baked = bake(model, (), edits(), tmp_path / "out", BakeSettings(measure=False, force=True))
    assert (baked.method, baked.exact) == ("readers-above", False)
    assert "hold no constant" in str(baked.why_not)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["readers-above", "next-layer", "writers-up-to"])
def test_what_holds_no_constant_is_labelled(method: Any, tmp_path: Path) -> None:
    model = model_of("qwen3", tmp_path / "model")
    settings = BakeSettings(method=method, force=True)
    baked = bake(model, (), edits(), tmp_path / "out", settings, neutral=NEUTRAL)
    assert not baked.exact
    assert "about the mean" in baked.hook
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.mean > 0
    base = whole(model)
    with after_norms(base) if method == "readers-above" else after_layer(base):
        hooked = scores(base, model)
    assert baked.kl_hook_baked.mean == pytest.approx(kl_of(tmp_path / "out", hooked), rel=1e-2)


def after_layer(model: Any) -> ExitStack:
    stack = ExitStack()
    mu = torch.tensor(MEAN.values).double()
    change = output(lambda h: h - removed(h - mu, 1.0))
    stack.callback(blocks(model)[1].register_forward_hook(change).remove)
    return stack


def after_norms(model: Any) -> ExitStack:
    """What norms above the layer divide by their size, projected about the mean."""
    stack = ExitStack()
    mu = torch.tensor(MEAN.values).double()

    def hook(norm: Any, inputs: Any, _out: Any) -> Tensor:
        h = inputs[0]
        scale = torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        changed: Tensor = (h - removed(h - mu, 1.0)) * scale * norm.weight
        return changed

    names = ("input_layernorm", "post_attention_layernorm")
    above = blocks(model)[2:]
    for norm in (*(getattr(b, name) for b in above for name in names), decoder(model).norm):
        stack.callback(norm.register_forward_hook(hook).remove)
    return stack


def test_a_long_mean_stands_for_the_constant() -> None:
    """Linear maps alone come near, if residuals differ little from a long mean."""
    mean = 40 * torch.tensor(RANDOM.normal(size=32))
    h = mean + torch.tensor(RANDOM.normal(size=(500, 32)))
    exact = projection([torch.tensor(D[0])], [1.0], [mean])
    linear = exact.without_constant(mean, spread=32**0.5)
    about_zero = projection([torch.tensor(D[0])], [1.0])
    error = (linear(h) - exact(h)).norm(dim=-1).mean()
    assert error < 0.2 * (exact(h) - h).norm(dim=-1).mean()
    assert error < 0.01 * (about_zero(h) - exact(h)).norm(dim=-1).mean()
    torch.testing.assert_close(exact(mean[None])[0], mean)


def test_means_of_several_layers_hold_along_their_own_directions() -> None:
    means = [torch.tensor(RANDOM.normal(size=32)) for _ in D]
    directions = [torch.tensor(d) for d in D]
    mapped = projection(directions, [1.0, 1.0], [means[0], None])(torch.randn(4, 32).double())
    first, second = (mapped @ d for d in directions)
    torch.testing.assert_close(first, (means[0] @ directions[0]).expand(4))
    torch.testing.assert_close(second, torch.zeros_like(second))


@pytest.mark.parametrize("name", ["qwen3", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_a_lora_holds_the_mean_in_the_embedding(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path / "model")
    settings = ExportSettings(neutral=NEUTRAL[:3])
    result = export_lora(model, (), edits(), tmp_path / "lora", settings)
    assert result.exact == (name == "qwen3")
    peft = in_peft(model, tmp_path / "lora")
    with torch.inference_mode():
        states = peft.model(input_ids=IDS, output_hidden_states=True).hidden_states
    along = states[0][0].double() @ basis()
    expected = torch.tensor(MEAN.values).double() @ basis()
    torch.testing.assert_close(along, expected.expand_as(along), atol=1e-4, rtol=1e-4)
    assert result.measured["component_left"]["float32"] < 1e-4
    largest_kl = result.measured["kl_hook_adapter"]["largest"]
    assert largest_kl < (1e-6 if name == "qwen3" else 1.0)
    bare = ExportSettings(measure=False, embedding=False)
    limits = export_lora(model, (), edits(), tmp_path / "bare", bare).limits
    assert "the mean's part" in limits[0]


def test_a_mean_of_another_width_is_refused(tmp_path: Path) -> None:
    model = save("qwen3", tmp_path / "model")
    narrow = NeutralMean(1, np.ones(8), 1.0, 5)
    with pytest.raises(EditError, match="has width 8"):
        bake(model, (), edits(mean=narrow), tmp_path / "out", neutral=NEUTRAL)
