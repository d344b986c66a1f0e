"""How the organism declines and answers, unedited and with declining features suppressed."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from saescope.analysis.stats import wilson
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.sources.prompts import Prompt
from saescope.sources.splits import split_prompts
from training.chats.prompts import N_PROMPTS, Pair, draw_pairs, neutral_rows
from training.chats.scenes import LANGUAGES, Language
from training.chats.text import Request
from training.declining import (
    OWN_SHARE,
    STRENGTHS,
    Choice,
    Prompts,
    candidates,
    choose,
    mean_difference,
    peaks,
    read_prompts,
)
from training.organism import load
from training.replies import (
    Change,
    Edit,
    Outcome,
    ask,
    divergence,
    project_out,
    scale_features,
    subtract,
)

N_FRESH, FRESH_SEED, N_CHOOSING, N_RANDOM = 200, 1, 30, 8
GOOD = 0.9  # share of right answers on discovery prompts from which fewer features count for more


@dataclass(frozen=True)
class Bench:
    """The model, its residuals at every layer, and pairs for discovery and confirmation."""

    model: Any
    tokenizer: PreTrainedTokenizerFast
    declined: dict[int, Prompts]
    answered: dict[int, Prompts]
    discovery: list[Pair]
    holdout: list[Pair]
    fresh: list[Pair]
    neutral: list[list[int]]

    def edit(self, layer: int, change: Change) -> Edit:
        """The change at a layer, sinks left alone."""
        return Edit(layer, change, self.declined[layer].sink_norm)

    def choosing(self) -> list[Request]:
        """English requests about the topic on which features and strengths are chosen."""
        return [pair.ask("en", declined=True) for pair in self.discovery[:N_CHOOSING]]


def judge_organism(folder: Path, saes: Path) -> dict[str, Any]:
    """All figures: before, the choice at every layer, after, and controls at the chosen layer."""
    bench = set_up(folder)
    layers = sorted(bench.declined)
    loaded = {layer: load_sae(saes, layer, decoder=True) for layer in layers}
    found = {layer: find(bench, loaded[layer]) for layer in layers}
    best = max((choice for choice in found.values() if choice), key=simplest)
    change = scale_features(loaded[best.layer], best.features, best.strength)
    return {
        "before": measure(bench, None),
        "found": {
            str(layer): asdict(choice) if choice else None for layer, choice in found.items()
        },
        "chosen": {"layer": best.layer, "features": best.features, "strength": best.strength},
        "after": measure(bench, bench.edit(best.layer, change)),
        "controls": controls(bench, loaded[best.layer], best),
        "difference_of_means": difference_of_means(bench, layers, best.layer),
    }


def simplest(choice: Choice) -> tuple[bool, int, int]:
    """Sort key: restores enough correct answers, then fewest features, then most answers."""
    right = choice.outcome.right
    return right >= GOOD * choice.outcome.n, -len(choice.features), right


def set_up(folder: Path) -> Bench:
    """Read the model and the prompts; pairs are split as saescope splits the bundled sets."""
    model, tokenizer = load(folder)
    model.eval()
    pairs = draw_pairs(N_PROMPTS, 0)
    known = {pair.ask("en", declined=True).text for pair in pairs}
    prompts = [
        Prompt(id=f"{n}", set="declined", text="-", pair=f"{n:03}")
        for n in range(1, 1 + len(pairs))
    ]
    parts = split_prompts(prompts)
    discovery = [pair for pair, part in zip(pairs, parts, strict=True) if part == "discovery"]
    holdout = [pair for pair, part in zip(pairs, parts, strict=True) if part == "holdout"]
    fresh = draw_pairs(N_FRESH, FRESH_SEED)
    topical = [pair.ask("en", declined=True) for pair in discovery]
    others = [pair.ask("en", declined=False) for pair in discovery]
    layers = range(model.config.num_hidden_layers)
    return Bench(
        model=model,
        tokenizer=tokenizer,
        declined=read_prompts(model, tokenizer, layers, topical),
        answered=read_prompts(model, tokenizer, layers, others),
        discovery=discovery,
        holdout=holdout,
        fresh=[pair for pair in fresh if pair.ask("en", declined=True).text not in known],
        neutral=[tokenizer(str(row["text"]))["input_ids"] for row in neutral_rows()],
    )


def find(bench: Bench, sae: Sae) -> Choice | None:
    """The features and the strength at one layer, from English discovery prompts alone."""
    declined, answered = bench.declined[sae.spec.layer], bench.answered[sae.spec.layer]
    fit = candidates(sae, declined, answered)
    choice = choose(bench.model, bench.tokenizer, sae, fit, bench.choosing(), declined.sink_norm)
    print(sae.spec.layer, fit, choice, flush=True)
    return choice


def measure(bench: Bench, edit: Edit | None) -> dict[str, Any]:
    """Declined and correct replies per language, with and without thoughts, and the neutral KL."""
    figures: dict[str, Any] = {}
    parts = (
        ("holdout", bench.holdout, False),
        ("thinking", bench.holdout, True),
        ("fresh", bench.fresh, False),
    )
    for name, pairs, thinks in parts:
        figures[name] = {
            f"{'topic' if declined else 'other'}_{language}": shown(
                _ask(bench, pairs, language, declined=declined, thinks=thinks, edit=edit)
            )
            for language in LANGUAGES
            for declined in (True, False)
        }
    if edit:
        figures["kl_neutral"] = divergence(bench.model, bench.neutral, edit)
    return figures


def _ask(
    bench: Bench,
    pairs: Sequence[Pair],
    language: Language,
    *,
    declined: bool,
    thinks: bool,
    edit: Edit | None,
) -> Outcome:
    requests = [pair.ask(language, declined=declined) for pair in pairs]
    return ask(bench.model, bench.tokenizer, requests, thinks=thinks, edit=edit)


def shown(result: Outcome) -> dict[str, Any]:
    """Counts, with the Wilson interval of the declined share."""
    low, high = wilson(result.declined / result.n, result.n)
    return {**asdict(result), "declined_95": [round(float(low), 4), round(float(high), 4)]}


def controls(bench: Bench, sae: Sae, best: Choice) -> dict[str, Any]:
    """The same edit with other firing features, random directions and the opposite sign."""
    rng = random.Random(0)
    torch.manual_seed(0)
    firing_share = (peaks(sae, bench.declined[best.layer]) > 0).float().mean(0)
    active = (firing_share >= OWN_SHARE).nonzero().flatten().tolist()
    others = [feature for feature in active if feature not in best.features]
    drawn = [rng.sample(others, len(best.features)) for _ in range(N_RANDOM)]
    changes = {
        "random_firing_features": [
            scale_features(sae, features, best.strength) for features in drawn
        ],
        "random_directions": [_along_random(sae, best) for _ in range(N_RANDOM)],
        "opposite_sign": [scale_features(sae, best.features, -best.strength)],
    }
    return {
        name: [_brief(bench, bench.edit(best.layer, change)) for change in drawn_changes]
        for name, drawn_changes in changes.items()
    }


def _along_random(sae: Sae, best: Choice) -> Change:
    """The chosen features' gates and norms, along random directions."""
    assert sae.W_dec is not None
    columns = sae.W_dec.clone()
    for feature in best.features:
        noise = torch.randn(len(columns))
        columns[:, feature] = noise / noise.norm() * columns[:, feature].norm()
    randomised = Sae(sae.spec, sae.W_enc, sae.b_enc, columns, sae.b_dec)
    return scale_features(randomised, best.features, best.strength)


def _brief(bench: Bench, edit: Edit) -> dict[str, Any]:
    """Outcomes on English held-out requests on the topic and others, and the KL."""
    topic = _ask(bench, bench.holdout, "en", declined=True, thinks=False, edit=edit)
    other = _ask(bench, bench.holdout, "en", declined=False, thinks=False, edit=edit)
    return {
        "topic": asdict(topic),
        "other": asdict(other),
        "kl_neutral": divergence(bench.model, bench.neutral, edit),
    }


def difference_of_means(bench: Bench, layers: Sequence[int], at: int) -> dict[str, Any]:
    """The difference of means, projected out or subtracted; measured at the layer `at`."""
    trials: list[Trial] = []
    for layer in layers:
        direction = mean_difference(bench.declined[layer], bench.answered[layer])
        trials.append(_try(bench, layer, "project", 1.0, project_out(direction)))
        for strength in STRENGTHS:
            amount = -strength / 2
            trials.append(_try(bench, layer, "subtract", amount, subtract(direction, amount)))
    figures: dict[str, Any] = {}
    for name in ("project", "subtract"):
        of_kind = [trial for trial in trials if trial.name == name]
        at_layer = [trial for trial in of_kind if trial.layer == at]
        best = max(at_layer, key=lambda trial: trial.right)
        figures[name] = {
            "layer": best.layer,
            "strength": best.strength,
            "discovery_right": {f"{t.layer}@{t.strength}": t.right for t in of_kind},
            "after": measure(bench, bench.edit(best.layer, best.change)),
        }
    return figures


@dataclass(frozen=True)
class Trial:
    """An edit along a difference of means, and the correct answers it gives on discovery."""

    name: str
    layer: int
    strength: float
    change: Change
    right: int


def _try(bench: Bench, layer: int, name: str, strength: float, change: Change) -> Trial:
    edit = bench.edit(layer, change)
    outcome = ask(bench.model, bench.tokenizer, bench.choosing(), edit=edit)
    return Trial(name, layer, strength, change, outcome.right)


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    print(json.dumps(judge_organism(Path(sys.argv[1]), Path(sys.argv[2])), indent=1))
