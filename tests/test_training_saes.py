"""The SAE workshop: fast ways compute what the plain ones do, and a second run gives the same."""

from dataclasses import replace

import torch

from training.saes import Residuals, Sae, SaeRecipe, train_sae

PLAIN = SaeRecipe(
    d_sae=32, k=2, general=0, documents=16, steps=150, peak_lr=1e-2, dead_after=30, centred=True
)


def mixture() -> Residuals:
    """Residuals of two of 12 directions each, about a mean that is longer than they are."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(12, 24, generator=generator), dim=1)
    first, second = torch.randint(12, (2, 1600), generator=generator)
    resid = 0.5 + directions[first] + directions[second]
    return Residuals(resid, torch.arange(0, 1601, 10))


def unexplained(sae: Sae, resid: torch.Tensor) -> float:
    state = sae.state()
    pre = resid @ state["W_enc"].T + state["b_enc"]
    top = pre.topk(sae.recipe.k)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    error = resid - acts @ state["W_dec"].T - state["b_dec"]
    return float(error.pow(2).sum() / (resid - resid.mean(0)).pow(2).sum())


def test_fast_training_explains_as_much_as_plain_training() -> None:
    data = mixture()
    plain = unexplained(train_sae(PLAIN, data), data.resid)
    sparse = unexplained(train_sae(replace(PLAIN, sparse=True), data), data.resid)
    rounded = train_sae(replace(PLAIN, sparse=True, bfloat16=True), data)
    assert plain < 0.1
    assert abs(sparse - plain) < 0.03
    assert abs(unexplained(rounded, data.resid) - plain) < 0.05


def test_a_second_training_gives_the_same_bytes_and_leaves_its_data() -> None:
    data = mixture()
    before = data.resid.clone()
    recipe = replace(PLAIN, steps=20, sparse=True, bfloat16=True)
    first, second = (train_sae(recipe, data).state() for _ in range(2))
    assert torch.equal(data.resid, before)
    assert all(torch.equal(first[name], second[name]) for name in first)
