"""Which layer, which feature: detection, output score and effect of Japanese over depth."""

from typing import TYPE_CHECKING, Any

import saescope as ss
from proof.arms import arm_table, arms_of, find_arm, overlap
from proof.commands import GEMMA, saescope, typed
from proof.experiments.languages import RUN, SETS
from proof.folder import DataFolder
from proof.pictures import COLOURS, percent_axis, picture
from proof.prompts import prompts_of, row, sample, write_rows
from proof.trials import CUT, Margin, Trials
from proof.wording import (
    best_key,
    command_block,
    image,
    join,
    nats,
    number,
    paragraph,
    percent,
    share_ci,
    table,
)
from saescope.sources.prompts import Prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TARGET, BEHAVIOUR = "ja", "language:ja"
NEUTRAL, BEGINNINGS = "runs/layers-neutral.jsonl", "runs/layers-beginnings.jsonl"
_CANDIDATES = (5, 3)  # of a layer: the best ones by tokens, the best ones by prompts
_SELECT = ss.SelectSettings(
    candidates=sum(_CANDIDATES),
    max_features=1,
    strengths=(-1.0, -3.0),
    prompts=12,
    max_new_tokens=12,
)
# Who is drawn how: the best detector, and the feature that `select` takes.
_ROLES = (
    ("detector", "best detector", COLOURS[1], "o-"),
    ("actor", "feature that select takes", COLOURS[0], "s--"),
)
_MUCH_MORE = 1.5
_HELD_OUT, _DISCOVERY, _NEUTRAL_TEXTS = 40, 10, 2
_EVALUATE = (
    "evaluate",
    *("--prompts", BEGINNINGS, "--target", TARGET, "--behaviour", BEHAVIOUR, "--cut", str(CUT)),
    *("--neutral", NEUTRAL, "--max-new-tokens", "16"),
)


def run(folder: DataFolder) -> None:
    """Write candidates of every layer with their effects, and what two of them do held out."""
    _write_prompts(folder)
    trials = Trials.load(folder, RUN)
    neutral = tuple(p for one in ss.read_prompts(folder.root / NEUTRAL) for p in one.prompts)
    # Candidates are compared on half of the texts, the two that matter on all.
    layers = {str(layer): _of_layer(trials, layer, neutral[::2]) for layer in trials.run.layers}
    best = best_key({n: layer["judged"]["effect"] for n, layer in layers.items() if layer})
    commands = {}
    for role in ("actor", "detector"):
        one = layers[best][role]
        if role == "detector" and one["feature"] == layers[best]["actor"]["feature"]:
            continue
        edit = f"{one['feature']} scale {one['strength']:g}"
        commands[role] = (*_EVALUATE, "--draws", "3", "--edit", edit, *GEMMA)
    evaluations = {role: arms_of(saescope(folder, *words)) for role, words in commands.items()}
    results = {
        "layers": layers,
        "best": int(best),
        "commands": [typed(*words) for words in commands.values()],
        "evaluations": evaluations,
        "about": _about(folder, layers[best]["actor"]["feature"]),
    }
    _draw(folder, results)
    folder.write_result("layers", results)


def _write_prompts(folder: DataFolder) -> None:
    """Write beginnings to continue, and text to measure damage on."""
    sets = folder.root / SETS
    others = [name for name in prompts_of(sets) if name != TARGET]
    counts = dict.fromkeys(others, _DISCOVERY) | {TARGET: _HELD_OUT}
    rows = [row(prompt, "discovery") for prompt in sample(sets, counts, "discovery")]
    rows += [row(prompt, "holdout") for prompt in sample(sets, {TARGET: _HELD_OUT}, "holdout")]
    write_rows(folder.root / BEGINNINGS, rows)
    texts = sample(folder.sets / "declaration", dict.fromkeys(others, _NEUTRAL_TEXTS), None)
    write_rows(folder.root / NEUTRAL, map(row, texts))


def _of_layer(trials: Trials, layer: int, neutral: tuple[Prompt, ...]) -> dict[str, Any]:
    """Return the layer's candidates and the two that matter; empty if nothing detects."""
    margins = trials.margins(layer, TARGET)
    detection = trials.detection(layer, TARGET, _CANDIDATES)
    if not detection.features:
        return {}
    selection = trials.select(detection, "ja", _SELECT, neutral)
    candidates = [_candidate(one, margins[str(one.feature)]) for one in selection.candidates]
    return {
        "candidates": candidates,
        "detector": max(candidates, key=lambda one: one["margin"]),
        "actor": candidates[0],  # best by effect without losses, then by effect
        "judged": _judged(selection),
        "prompts": selection.n_judged_on,
    }


def _candidate(one: Any, margin: Margin) -> dict[str, Any]:
    figures = one.to_dict()
    names = ("strength", "output_score", "effect", "behaviour_rate", "kl_mean", "detect_rank")
    kept = {name: figures[name] for name in (*names, "output_rank", "effect_rank")}
    tokens = [token for token in figures["tokens"] if token.strip()][:4]
    return {
        "feature": str(one.feature),
        "margin": margin.value,
        "margin_ci": list(margin.ci),
        **kept,
        "tokens": tokens,
    }


def _judged(selection: ss.Selection) -> dict[str, Any]:
    """Return what the best feature does on prompts on which it was not chosen."""
    before = selection.unedited.judged_on
    after = selection.steps[0].judged_on if selection.steps else before
    rates = [before.behaviour_rate or 0.0, after.behaviour_rate or 0.0]
    effect = (rates[0] - rates[1]) / rates[0] if rates[0] else 0.0
    return {"before": rates[0], "after": rates[1], "ci": list(after.ci), "effect": effect}


def _about(folder: DataFolder, feature: str) -> dict[str, Any]:
    """Return what projecting a feature out costs, about the mean and about zero."""
    costs = {}
    for name, words in (("mean", ()), ("zero", ("--about", "zero"))):
        command = (*_EVALUATE, "--draws", "0", "--edit", f"{feature} project", *GEMMA, *words)
        arms = arms_of(saescope(folder, *command))
        edited = find_arm(arms, "edits")
        assert edited is not None
        costs[name] = {**edited, "command": typed(*command)}
    return {"feature": feature, **costs}


def _draw(folder: DataFolder, results: dict[str, Any]) -> None:
    layers = {int(n): layer for n, layer in results["layers"].items() if layer}
    depth = list(layers)
    with picture(folder, "layers-curves", (9.6, 3.8), columns=3) as (figure, axes):
        detection, output, effect = axes
        for role, label, colour, style in _ROLES:
            margins = [layer[role]["margin"] for layer in layers.values()]
            low = [layer[role]["margin_ci"][0] for layer in layers.values()]
            high = [layer[role]["margin_ci"][1] for layer in layers.values()]
            detection.fill_between(depth, low, high, color=colour, alpha=0.15, linewidth=0)
            detection.plot(depth, margins, style, color=colour, label=label)
            scores = [layer[role]["output_score"] for layer in layers.values()]
            output.plot(depth, scores, style, color=colour)
        lowest = min(
            layer[role]["margin_ci"][0] for layer in layers.values() for role, *_ in _ROLES
        )
        detection.set_ylim(bottom=min(-0.02, lowest))
        output.set_ylim(bottom=-0.005)
        _draw_effect(effect, layers)
        titles = ("detection: rate − elsewhere", "output score", "effect: still in Japanese")
        for one, title in zip(axes, titles, strict=True):
            one.set_title(title, loc="left", fontsize=11)
            one.set_xticks(depth)
            one.set_xlabel("layer")
        lines = [*detection.get_lines(), *effect.get_lines()[-2:]]
        labels = [str(line.get_label()) for line in lines]
        figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _draw_effect(axes: "Axes", layers: dict[int, dict[str, Any]]) -> None:
    """Draw what is left of the behaviour under each feature's edit."""
    for n, layer in layers.items():
        rates = [one["behaviour_rate"] for one in layer["candidates"]]
        axes.plot([n] * len(rates), rates, ".", color=COLOURS[2], alpha=0.5, markersize=5)
    depth = list(layers)
    detector = [layer["detector"]["behaviour_rate"] for layer in layers.values()]
    axes.plot(depth, detector, _ROLES[0][3], color=_ROLES[0][2])
    judged = [layer["judged"]["after"] for layer in layers.values()]
    bounds = [layer["judged"]["ci"] for layer in layers.values()]
    below = [max(0.0, rate - low) for rate, (low, _) in zip(judged, bounds, strict=True)]
    above = [max(0.0, high - rate) for rate, (_, high) in zip(judged, bounds, strict=True)]
    axes.plot(depth, judged, _ROLES[1][3], color=_ROLES[1][2])
    axes.errorbar(depth, judged, yerr=[below, above], fmt="none", ecolor=_ROLES[1][2])
    before = [layer["judged"]["before"] for layer in layers.values()]
    axes.plot([], [], ".", color=COLOURS[2], label="other candidates")
    axes.plot(depth, before, ":", color=COLOURS[2], label="without edits")
    percent_axis(axes, "")


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about which layer and which feature."""
    return join(
        "## Detection is not control",
        paragraph(
            "Does the feature that detects Japanese best also make the model write it? At every "
            f"layer up to {number(sum(_CANDIDATES))} detectors of Japanese are suppressed, one at "
            "a time, while the model continues beginnings of Japanese paragraphs. The *output "
            "score* says beforehand how likely a feature's own promoted tokens become when it is "
            "amplified. `select` takes the feature whose edit changes most without a loss, and its "
            "strength, on some beginnings; its effect is drawn as it is on others."
        ),
        image("layers", "curves", "detection, output score and effect by layer"),
        _table(results),
        _by_layer(results),
        f"### On held-out beginnings, layer {results['best']}",
        command_block(results["commands"]),
        _held_out(results),
        "### Removing a direction about the mean",
        _about_text(results),
    )


def _table(results: dict[str, Any]) -> str:
    layer = results["layers"][str(results["best"])]
    rows = [
        [
            one["feature"],
            f"{one['margin']:.2f} ({one['margin_ci'][0]:.2f} to {one['margin_ci'][1]:.2f})",
            f"{one['output_score']:.3f}",
            f"{one['strength']:g}",
            f"{percent(one['behaviour_rate'])} %",
            nats(one["kl_mean"]),
            " ".join(f"`{token.strip()}`" for token in one["tokens"] if not {"`", "\\"} & {*token}),
        ]
        for one in sorted(layer["candidates"], key=lambda one: -one["margin"])
    ]
    header = (
        "feature",
        "detection",
        "output score",
        "strength",
        "still Japanese",
        "KL",
        "promotes",
    )
    before = percent(layer["judged"]["before"])
    caption = paragraph(
        f"Candidates at layer {results['best']}, best detectors first, each at the strength that "
        f"does most; without edits {before} % of the continuations are in Japanese. Detection is "
        "the rate on Japanese tokens minus the largest rate on those of another language, on "
        "held-out documents."
    )
    return f"{caption}\n\n{table(header, rows)}"


def _by_layer(results: dict[str, Any]) -> str:
    layers = {int(n): layer for n, layer in results["layers"].items() if layer}
    missing = [n for n, layer in results["layers"].items() if not layer]
    same = [n for n, one in layers.items() if one["detector"]["feature"] == one["actor"]["feature"]]
    best = layers[results["best"]]
    by_output = sum(_ranks_first(layer) for layer in layers.values())
    sentences = [
        f"The effect is largest at layer {results['best']}: with {best['actor']['feature']} "
        f"suppressed, {share_ci(best['judged']['after'], best['judged']['ci'])} of the "
        f"continuations are in Japanese, {percent(best['judged']['before'])} % without edits.",
        f"The best detector is the feature that `select` takes at {len(same)} of {len(layers)} "
        "layers.",
        f"The largest output score is that of this feature at {by_output} of {len(layers)}.",
        f"No feature detects Japanese at layer {', '.join(missing)}." if missing else "",
    ]
    return paragraph(*sentences)


def _ranks_first(layer: dict[str, Any]) -> bool:
    first = max(layer["candidates"], key=lambda one: one["output_score"])
    return bool(first["feature"] == layer["actor"]["feature"])


def _held_out(results: dict[str, Any]) -> str:
    parts = []
    layer, evaluations = results["layers"][str(results["best"])], results["evaluations"]
    names = {"actor": "The feature that `select` takes", "detector": "The best detector"}
    if len(evaluations) == 1:
        names["actor"] += ", the best detector too"
    for name, evaluation in evaluations.items():
        parts.append(
            paragraph(f"**{names[name]}, {layer[name]['feature']}.**", evaluation["verdict"])
        )
        parts.append(arm_table(evaluation, "in Japanese, 95 % CI"))
    if len(evaluations) == 2:
        parts.append(_compared(evaluations))
    return "\n\n".join(parts)


def _compared(evaluations: dict[str, Any]) -> str:
    """Say whether the detector changes less than the other one, from the two tables alone."""
    rates = {}
    for name, evaluation in evaluations.items():
        none, edits = find_arm(evaluation, "none"), find_arm(evaluation, "edits")
        assert none is not None
        assert edits is not None
        rates[name] = (none, edits)
    (before, detector), (_, actor) = rates["detector"], rates["actor"]
    if actor["ci"][1] < detector["ci"][0]:
        return paragraph(
            "On held-out beginnings the two intervals do not overlap: the feature that detects "
            "Japanese best is not the one that controls it."
        )
    if not overlap(before["ci"], detector["ci"]):
        return paragraph(
            "On held-out beginnings both features act, and their intervals overlap: here the best "
            "detector controls Japanese too."
        )
    return paragraph(
        "On held-out beginnings the intervals of the two features overlap: that one of them "
        "controls Japanese and the other does not cannot be said from these prompts."
    )


def _about_text(results: dict[str, Any]) -> str:
    about = results["about"]
    mean, zero = about["mean"]["kl_mean"], about["zero"]["kl_mean"]
    if mean and zero >= _MUCH_MORE * mean:
        compared = (
            f"That is {zero / mean:.0f} times as much: the residuals of this layer have a common "
            "mean with a large part along the direction, which belongs to no language, and about "
            "zero that part is removed too."
        )
    else:
        compared = "Here that makes little difference: the mean has little of this direction."
    return join(
        command_block([about["mean"]["command"], about["zero"]["command"]]),
        paragraph(
            f"Projecting {about['feature']} out about the mean residual of neutral text costs "
            f"{nats(mean)} nats per token on text in other languages; about zero, it costs "
            f"{nats(zero)}.",
            compared,
        ),
    )
