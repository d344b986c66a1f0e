"""Each token's strongest features, for a few prompts and in memory: the first look."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saescope.arguments import COUNT
from saescope.engine.batches import BATCH_TOKENS, BatchPlan, plan_batches
from saescope.engine.extract import choose_job_kernels, compute_features
from saescope.engine.lm import LM
from saescope.engine.reconstruction import fit_measurer
from saescope.engine.sae import Sae
from saescope.engine.tokens import TokenText
from saescope.sources.catalog import Feature
from saescope.sources.prompts import Prompt
from saescope.store.arrays import Ints
from saescope.store.masking import Masking
from saescope.store.run_positions import any_layer, join_sinks
from saescope.store.sae_fit import SaeFit, SaeFits, positions_of, sample_order
from saescope.store.tables import LayerFeatures
from saescope.table import Table


def scan(
    lm: LM,
    saes: Sequence[Sae],
    prompts: Sequence[Prompt],
    *,
    n_top: int = 5,
    masking: Masking | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> "Scan":
    """Return the `n_top` strongest features of every token at every SAE's layer.

    Only features that fire are listed. Sinks are found among the tokens of these prompts: a sink of
    one of these layers is one at all.

    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", layers=[2])
    >>> sae = ss.load_sae("saescope-tiny-sae", layer=2)
    >>> [prompt_set] = ss.texts(["What is this?"])
    >>> scan = ss.scan(lm, [sae], prompt_set.prompts, n_top=1)
    >>> [token.token for token in scan.prompts[0].tokens]
    ['Wh', 'at', ' is', ' this', '?']
    >>> scan.prompts[0].tokens[2].features  # doctest: +ELLIPSIS
    {2: [(Feature(layer=2, id=430), 46.07...)]}
    """
    COUNT.check("n_top", n_top)
    plan = plan_batches(lm, prompts, batch_tokens)
    layers, sae_fits = _features_by_layer(lm, saes, plan)
    sink_layers = _sink_layers(layers, plan, masking or Masking())
    text = TokenText(lm.tokenizer)
    scanned = []
    row = 0
    for prompt, ids in zip(prompts, plan.token_ids, strict=True):
        tokens = []
        for pos, (token_id, token_text) in enumerate(zip(ids, text.in_context(ids), strict=True)):
            token = ScannedToken(
                pos=pos,
                id=token_id,
                token=token_text,
                sink=row in sink_layers,
                sink_layers=sink_layers.get(row, ()),
                norm={layer: float(features.norms[row]) for layer, features in layers.items()},
                features=_strongest(layers, row, n_top),
            )
            tokens.append(token)
            row += 1
        scanned.append(ScannedPrompt(prompt.display_text, tokens))
    return Scan(scanned, sae_fits)


def _features_by_layer(
    lm: LM, saes: Sequence[Sae], plan: BatchPlan
) -> tuple[dict[int, LayerFeatures], SaeFits]:
    """Return the features of all tokens in the order of the prompts, and how well the SAEs fit."""
    kernels = choose_job_kernels(lm, plan.n_distinct_tokens)
    by_unit = {
        (unit.layer, unit.batch): unit for unit in compute_features(lm, saes, plan, kernels=kernels)
    }
    computed_order = np.concatenate([plan.token_indices(n) for n in range(len(plan.batches))])
    order = np.argsort(computed_order)
    order_of_sample = sample_order(computed_order, plan.lengths)
    measure_fit = fit_measurer(saes, plan.lengths)
    layers, samples = {}, {}
    for sae in saes:
        layer = sae.spec.layer
        units = [by_unit[layer, index] for index in range(len(plan.batches))]
        layers[layer] = LayerFeatures.joined([unit.features for unit in units]).take(order)
        samples[layer] = np.concatenate([unit.sample for unit in units])[order_of_sample]
    pos, masking = positions_of(plan.lengths), Masking()
    sinks = any_layer(len(pos), _sinks(layers, pos, masking).values())
    scored = masking.positions(pos, sinks).scored
    fits: dict[int, SaeFit | None] = {
        layer: measure_fit(layer, features, samples[layer], scored)
        for layer, features in layers.items()
    }
    return layers, SaeFits(fits, {sae.spec.layer: sae.spec for sae in saes})


def _sink_layers(
    layers: Mapping[int, LayerFeatures], plan: BatchPlan, masking: Masking
) -> dict[int, tuple[int, ...]]:
    """Return the layers that show each sink, by its row among all tokens."""
    sinks = _sinks(layers, positions_of(plan.lengths), masking)
    rows = {row for of_layer in sinks.values() for row in of_layer.tolist()}
    return {row: tuple(n for n, of_layer in sinks.items() if row in of_layer) for row in rows}


def _sinks(layers: Mapping[int, LayerFeatures], pos: Ints, masking: Masking) -> dict[int, Ints]:
    magnitudes = ((layer, features.magnitudes) for layer, features in layers.items())
    return join_sinks(pos, magnitudes, masking)


def _strongest(
    layers: Mapping[int, LayerFeatures], row: int, n_top: int
) -> dict[int, list[tuple[Feature, float]]]:
    strongest = {}
    for layer, features in layers.items():
        entries = features.row(row)
        ids = features.ids[entries][:n_top].tolist()
        acts = features.acts[entries][:n_top].tolist()
        strongest[layer] = [(Feature(layer, n), act) for n, act in zip(ids, acts, strict=True)]
    return strongest


@final
@dataclass(frozen=True, repr=False)
class Scan(Table):
    """The prompts that `scan` read, token by token, and how well the SAEs fit on them."""

    shown = "prompt pos token layer rank feature act norm"

    prompts: "list[ScannedPrompt]"
    sae_fits: SaeFits

    @property
    def top_warnings(self) -> list[str]:
        """SAEs that do not fit."""
        return self.sae_fits.warnings

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope scan`."""
        return {
            "sae_fit": self.sae_fits.to_dict(),
            "warnings": self.sae_fits.warnings,
            "prompts": [prompt.to_dict() for prompt in self.prompts],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per token, layer and feature that fires, strongest first."""
        rows = []
        for prompt_index, prompt in enumerate(self.prompts):
            for token in prompt.tokens:
                rows += [{"prompt": prompt_index, **row} for row in token.rows()]
        return rows


@dataclass(frozen=True)
class ScannedPrompt:
    """One prompt's tokens in order."""

    text: str
    tokens: "list[ScannedToken]"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope scan`."""
        return {"text": self.text, "tokens": [token.to_dict() for token in self.tokens]}


@dataclass(frozen=True)
class ScannedToken:
    """One token: its position, its norm and strongest features per layer, whether it is a sink.

    `sink_layers` are the layers that show it as one.
    A character that several tokens hold is in the `token` of the last of them.
    """

    pos: int
    id: int
    token: str
    sink: bool
    sink_layers: tuple[int, ...]
    norm: dict[int, float]
    features: dict[int, list[tuple[Feature, float]]]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of `saescope scan`."""
        features = {}
        for layer, top in self.features.items():
            features[str(layer)] = [{"feature": str(feature), "act": act} for feature, act in top]
        return {
            "pos": self.pos,
            "id": self.id,
            "token": self.token,
            "sink": self.sink,
            "sink_layers": list(self.sink_layers),
            "norm": {str(layer): norm for layer, norm in self.norm.items()},
            "features": features,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one row per layer and feature that fires."""
        for layer, top in self.features.items():
            for rank, (feature, act) in enumerate(top):
                yield {
                    "pos": self.pos,
                    "token": self.token,
                    "sink": self.sink,
                    "layer": layer,
                    "norm": self.norm[layer],
                    "rank": rank,
                    "feature": str(feature),
                    "act": act,
                }
