"""What it costs to project a language's feature out of Gemma 3 270M: about zero, about the mean."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import saescope as ss
from proof.commands import typed
from proof.experiments.languages import NAMES
from proof.folder import DataFolder
from proof.wording import command_block, join, listed, nats, number, paragraph, table
from saescope.control.evaluation.damage import DamageMeter
from saescope.engine.tokens import prompt_ids
from saescope.sources.prompts import Prompt

LAYER = 15
CHEAP = 0.05  # nats per token
_MUCH_MORE = 3.0
_RANDOM = 3
_PER_LANGUAGE = 2  # texts that KL is measured on: each token has 262,144 logits


def run(folder: DataFolder) -> None:
    """Measure KL on neutral text in other languages for each language's best feature."""
    sets = folder.read_result("languages")["layers"][str(LAYER)]["sets"]
    lm = ss.load_lm(folder.gemma3)
    sae = ss.load_sae(folder.saes / "gemma3", LAYER)
    [neutral] = ss.read_prompts(folder.sets / "neutral-gemma3")
    mean = ss.neutral_means(lm, [LAYER], neutral.prompts)[LAYER]
    texts = [text for text in neutral.prompts if int(text.id[-2:]) < _PER_LANGUAGE]
    rows = {name: _row(lm, sae, mean, texts, name, sets[name]) for name in sets}
    results = {
        "layer": LAYER,
        "mean_norm": mean.norm,
        "spread": mean.spread,
        "positions": mean.positions,
        "texts": len(neutral.prompts),
        "measured_on": len(texts),
        "features": rows,
        "random": _random(lm, mean, texts),
    }
    folder.write_result("removal", results)


def _row(
    lm: ss.LM,
    sae: ss.Sae,
    mean: ss.NeutralMean,
    texts: Sequence[Prompt],
    language: str,
    found: dict[str, Any],
) -> dict[str, Any]:
    others = [text for text in texts if not text.id.startswith(f"neutral-{language}-")]
    feature = found["feature"]
    edits = [ss.Edit(feature, "project", about=about) for about in (None, mean)]
    about_zero, about_mean = _kls(lm, [sae], edits, others)
    rates = [found["holdout_rate"], found["holdout_other_rate"]]
    return {"feature": feature, "rates": rates, "zero": about_zero, "mean": about_mean}


def _random(lm: ss.LM, mean: ss.NeutralMean, texts: Sequence[Prompt]) -> dict[str, float]:
    """Return the mean KL of random directions, projected out in the same two ways."""
    draws = np.random.default_rng(0)
    directions = [
        ss.Direction(LAYER, draws.normal(size=lm.spec.d_model), f"random {n}")
        for n in range(_RANDOM)
    ]
    costs = {}
    for name, about in (("zero", None), ("mean", mean)):
        edits = [ss.Edit(op="project", direction=one, about=about) for one in directions]
        costs[name] = float(np.mean(_kls(lm, [], edits, texts)))
    return costs


def _kls(
    lm: ss.LM, saes: Sequence[ss.Sae], edits: Sequence[ss.Edit], texts: Sequence[Prompt]
) -> list[float]:
    """Return the mean KL per token of each edit by itself."""
    meter = DamageMeter(lm, [prompt_ids(lm, text) for text in texts])
    blocks = [partial(ss.steered, lm, saes, [edit]) for edit in edits]
    return [one.kl_mean for one in meter.measure(blocks)]


def section(results: dict[str, Any]) -> str:
    """Return the section of the page."""
    features, layer = results["features"], results["layer"]
    rows: list[tuple[str, ...]] = [
        (NAMES[name], one["feature"], nats(one["zero"]), nats(one["mean"]))
        for name, one in features.items()
    ]
    rows.append(("random directions", "–", *(nats(results["random"][n]) for n in ("zero", "mean"))))
    cheap = [NAMES[name] for name, one in features.items() if one["mean"] < CHEAP]
    dear = [NAMES[name] for name, one in features.items() if one["mean"] >= CHEAP]
    more = [
        name for name, one in features.items() if one["zero"] > _MUCH_MORE * max(one["mean"], 1e-9)
    ]
    example = typed(
        *("steer", "今日は", "--edit", f"{features['ja']['feature']} project"),
        *("--model", "models/gemma3", "--sae", "saes/gemma3", "--about", "zero"),
    )
    return join(
        "## Removing a direction: about the mean",
        paragraph(
            f"At layer {layer} the mean residual over {results['texts']} neutral texts is "
            f"{results['mean_norm']:,.0f} long, and residuals lie {results['spread']:,.0f} from it "
            "(root mean square). `project` therefore removes what differs from the mean along a "
            "direction; about zero, it would take the mean's own part away too. The table has the "
            "KL of projecting out each language's best feature there, on those of "
            f"{results['measured_on']} neutral texts that are in other languages."
        ),
        table(("language", "feature", "about zero", "about the mean"), rows),
        paragraph(
            f"About the mean it costs less than {CHEAP} nats per token for "
            f"{listed(cheap) if cheap else 'no language'}"
            + (f", and more for {listed(dear)}." if dear else "."),
            f"About zero it costs more than {_MUCH_MORE:g} times as much for "
            f"{number(len(more))} of the {number(len(features))} languages.",
        ),
        command_block([example]),
    )
