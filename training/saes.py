"""Training of TopK SAEs on the model's residuals, written in the Qwen-Scope format.

Plain TopK training splits a language into one feature per word. Here the first few features form a
general group, as the first group of a Matryoshka SAE (Bussmann 2025). The group learns that its
features last over a document, as in temporal SAEs (Bhalla 2025): every document has one winner in
the group, the feature that is strongest on average. The winner alone must explain as much of each
token as it can, and the losers are pushed below zero. No labels are used: which documents share a
winner starts from k-means of their mean residuals and follows the reconstruction. Inference is
plain TopK over all features.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn


@dataclass(frozen=True)
class SaeRecipe:
    """Sizes, loss weights and schedule of one layer's SAE; `general` 0 is plain TopK.

    Real residuals have a large common mean: `centred` scales what varies around it to a mean
    square of 1, instead of all of it. For large dictionaries, `sparse` decodes active features
    alone, and `bfloat16` rounds the encoder's products: both are several times faster.
    """

    d_sae: int = 512
    k: int = 32
    general: int = 8
    per_document: bool = True
    general_weight: float = 0.5
    margin_weight: float = 5.0
    margin: float = 3.0
    documents: int = 32
    steps: int = 3000
    peak_lr: float = 2e-3
    dead_after: int = 300
    dead_weight: float = 1 / 32
    centred: bool = False
    sparse: bool = False
    bfloat16: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Residuals:
    """Residuals of one layer by document; `starts` has one entry more than there are documents."""

    resid: Float[Tensor, "n d_model"]
    starts: Int[Tensor, "documents_and_one"]

    @property
    def documents(self) -> int:
        return len(self.starts) - 1

    def batch(
        self, documents: Int[Tensor, "d"]
    ) -> tuple[Float[Tensor, "n d_model"], Int[Tensor, "n"]]:
        """Residuals of these documents, and which of them each row belongs to."""
        lengths = (self.starts[1:] - self.starts[:-1])[documents]
        owner = torch.repeat_interleave(torch.arange(len(documents)), lengths)
        offset = torch.arange(len(owner)) - torch.repeat_interleave(
            lengths.cumsum(0) - lengths, lengths
        )
        return self.resid[self.starts[documents][owner] + offset].float(), owner


class Sae(nn.Module):
    """Trainable SAE on scaled residuals; columns of W_dec are features of norm 1."""

    def __init__(self, recipe: SaeRecipe, data: Residuals) -> None:
        super().__init__()
        d_model = data.resid.shape[1]
        self.recipe = recipe
        varying = data.resid.to(torch.float32, copy=True)  # changed in place: it may be large
        mean = varying.mean(0)
        if recipe.centred:
            varying -= mean
        self.scale = float(varying.pow_(2).mean().sqrt())
        self.mean = mean / self.scale
        self.b_dec = nn.Parameter(self.mean.clone())
        directions = nn.functional.normalize(torch.randn(d_model, recipe.d_sae), dim=0)
        if recipe.general:
            directions[:, : recipe.general] = _clusters(data, recipe).T
        self.W_dec = nn.Parameter(directions)
        self.W_enc = nn.Parameter(directions.T.clone())
        self.b_enc = nn.Parameter(-(self.W_enc @ self.b_dec).detach())

    def pre_acts(self, x: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_sae"]:
        if self.recipe.bfloat16:
            # Only what varies is rounded: next to the mean it would lose most of its digits.
            product = (x - self.mean).bfloat16() @ self.W_enc.bfloat16().T
            return product.float() + (self.W_enc @ self.mean + self.b_enc)
        return torch.addmm(self.b_enc, x, self.W_enc.T)

    def state(self) -> dict[str, Tensor]:
        """The four tensors of the Qwen-Scope format, for residuals as they are."""
        tensors = {
            "W_enc": self.W_enc,
            "b_enc": self.b_enc * self.scale,
            "W_dec": self.W_dec,
            "b_dec": self.b_dec * self.scale,
        }
        return {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}


def _clusters(data: Residuals, recipe: SaeRecipe) -> Float[Tensor, "general d_model"]:
    """Directions of k-means centres of mean residuals of documents, the best of ten starts."""
    sample = torch.randperm(data.documents)[:4000]
    x, owner = data.batch(sample)
    if not recipe.per_document:
        owner = torch.arange(len(x))[: len(sample)]
        x = x[torch.randperm(len(x))[: len(sample)]]
    means = _document_means(x, owner, len(sample)).numpy()
    means = means - means.mean(0)
    results = [kmeans2(means, recipe.general, minit="++", seed=recipe.seed + i) for i in range(10)]
    costs = [float(((means - centres[labels]) ** 2).sum()) for centres, labels in results]
    return nn.functional.normalize(
        torch.from_numpy(results[int(np.argmin(costs))][0]).float(), dim=1
    )


def _document_means(
    values: Float[Tensor, "n c"], owner: Int[Tensor, "n"], n: int
) -> Float[Tensor, "n_documents c"]:
    sums = torch.zeros(n, values.shape[1]).index_add_(0, owner, values)
    return sums / torch.bincount(owner, minlength=n).clamp(min=1)[:, None]


def train_sae(recipe: SaeRecipe, data: Residuals) -> Sae:
    """Train one layer's SAE by Adam with a warm-up and a linear decay."""
    torch.manual_seed(recipe.seed)
    sae = Sae(recipe, data)
    optimizer = torch.optim.Adam(
        sae.parameters(), lr=recipe.peak_lr, betas=(0.9, 0.99), fused=recipe.bfloat16
    )
    idle = torch.zeros(recipe.d_sae, dtype=torch.int64)
    scaled = data.resid.to(torch.float32, copy=True).div_(sae.scale)
    variance = scaled.var(0).sum().item()
    del scaled
    for step, documents in enumerate(_batches(data.documents, recipe)):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * min(1.0, (step + 1) / 100, 3 * (1 - step / recipe.steps))
        x, owner = data.batch(documents)
        loss, fired = _loss(
            sae, x / sae.scale, owner, len(documents), idle > recipe.dead_after, variance
        )
        loss.backward()
        nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        idle = torch.where(fired, 0, idle + 1)
        with torch.no_grad():
            sae.W_dec.div_(sae.W_dec.norm(dim=0))
    return sae


def _batches(n: int, recipe: SaeRecipe) -> Iterator[Int[Tensor, "d"]]:
    for _ in range(recipe.steps):
        yield torch.randint(n, (recipe.documents,))


def _loss(
    sae: Sae,
    x: Float[Tensor, "n d_model"],
    owner: Int[Tensor, "n"],
    n_documents: int,
    dead: Bool[Tensor, "d_sae"],
    variance: float,
) -> tuple[Float[Tensor, ""], Bool[Tensor, "d_sae"]]:
    """Reconstruction, the general group's share, and a revival of dead features (Gao 2024)."""
    recipe = sae.recipe
    pre = sae.pre_acts(x)
    acts = _top(pre, recipe.k)
    error = x - _decode(sae, acts) - sae.b_dec
    loss = error.pow(2).sum(-1).mean() / variance
    if recipe.general:
        loss = loss + _general_loss(sae, x, pre[:, : recipe.general], owner, n_documents, variance)
    if dead.any():
        rest = torch.where(dead, pre, -torch.inf)
        revived = _decode(sae, _top(rest, min(2 * recipe.k, int(dead.sum()))))
        missed = (error.detach() - revived).pow(2).sum(-1).mean() / variance
        loss = loss + recipe.dead_weight * missed
    fired = torch.zeros_like(dead)
    fired[acts.ids[acts.values > 0]] = True
    return loss, fired


@dataclass(frozen=True)
class _Top:
    """The largest pre-activations per token, those below zero as zero."""

    ids: Int[Tensor, "n k"]
    values: Float[Tensor, "n k"]


def _top(pre: Float[Tensor, "n d_sae"], k: int) -> _Top:
    top = pre.topk(k, dim=-1, sorted=False)
    return _Top(top.indices, top.values.relu())


def _decode(sae: Sae, top: _Top) -> Float[Tensor, "n d_model"]:
    """The sum of the features' directions, without the decoder's bias."""
    if sae.recipe.sparse:
        return nn.functional.embedding_bag(
            top.ids, sae.W_dec.T.contiguous(), per_sample_weights=top.values, mode="sum"
        )
    acts = top.values.new_zeros(len(top.ids), sae.recipe.d_sae).scatter(-1, top.ids, top.values)
    return acts @ sae.W_dec.T


def _general_loss(
    sae: Sae,
    x: Float[Tensor, "n d_model"],
    pre: Float[Tensor, "n general"],
    owner: Int[Tensor, "n"],
    n_documents: int,
    variance: float,
) -> Float[Tensor, ""]:
    recipe = sae.recipe
    if recipe.per_document:
        winner = _document_means(pre.detach(), owner, n_documents).argmax(-1)[owner]
    else:
        winner = pre.detach().argmax(-1)
    won = pre.gather(-1, winner[:, None])
    explained = (x - won.relu() * sae.W_dec.T[winner] - sae.b_dec).pow(2).sum(-1).mean() / variance
    sign = torch.ones_like(pre).scatter(
        -1, winner[:, None], -1.0
    )  # losers below -margin, winners above margin
    hinge = (sign * pre + recipe.margin).relu().mean()
    return recipe.general_weight * explained + recipe.margin_weight * hinge


def save(sae: Sae, folder: Path, layer: int) -> None:
    """Write `layer{n}.sae.pt`."""
    torch.save(sae.state(), folder / f"layer{layer}.sae.pt")
