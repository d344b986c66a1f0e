"""Features of languages in Gemma 3 270M over depth, on several kinds of text."""

import shutil
from typing import Any

import saescope as ss
from proof.commands import GEMMA, saescope, typed
from proof.folder import DataFolder
from proof.pictures import COLOURS, QUIET, heat_map, picture
from proof.wording import (
    best_key,
    command_block,
    image,
    join,
    listed,
    number,
    number_ci,
    paragraph,
    percent,
    table,
)

RUN, SETS = "runs/languages", "sets/languages"
KINDS = {"declaration": "the Declaration of Human Rights", "story": "a game's story"}
NAMES = {
    "de": "German",
    "en": "English",
    "eo": "Esperanto",
    "es": "Spanish",
    "eu": "Basque",
    "hi": "Hindi",
    "ja": "Japanese",
    "zh": "Chinese",
}
_LAYERS = ("layers", SETS, *GEMMA, "--layers", "all", "--out", RUN)
_CONTRAST = ("contrast", RUN, "--n-top", "1")
_EVERY_FEATURE = 100_000
_STYLES = ("-", "--", ":")  # of lines that share a colour
# The least that a feature of a language does: as `contrast` says it of headlines.
LEAST_RATE, LEAST_RATIO = 0.5, 5.0


def run(folder: DataFolder) -> None:
    """Write separation by layer, and rates of each language's best feature on every kind."""
    shutil.rmtree(folder.root / RUN, ignore_errors=True)
    layers = saescope(folder, *_LAYERS)
    best = int(layers["best"])
    shuffled = saescope(folder, *_CONTRAST)["layers"][str(best)]["control"]
    features = {name: one["feature"] for name, one in layers["layers"][str(best)]["sets"].items()}
    results = {
        "commands": [typed(*words) for words in (_LAYERS, _CONTRAST, *_kinds(best).values())],
        "best": best,
        "layers": {n: _of_layer(layer) for n, layer in layers["layers"].items()},
        "masked": {n: layer["masked"] for n, layer in layers["layers"].items()},
        "features": features,
        "help": _held_out(folder, best, features),
        "kinds": {kind: _of_kind(folder, kind, best, features) for kind in KINDS},
        "shuffled": shuffled,
    }
    _draw_depth(folder, results)
    _draw_rates(folder, results)
    folder.write_result("languages", results)


def _kinds(layer: int) -> dict[str, tuple[str, ...]]:
    """Return the command that computes the features of each other kind of text."""
    return {
        kind: ("contrast", f"sets/{kind}", *GEMMA, "--layers", str(layer), "--out", f"runs/{kind}")
        for kind in KINDS
    }


def _of_layer(layer: dict[str, Any]) -> dict[str, Any]:
    names = ("feature", "holdout_rate", "holdout_other_rate", "holdout_score", "holdout_score_ci")
    sets = {
        name: {key: one[key] for key in (*names, "other_set", "confirmed")}
        for name, one in layer["sets"].items()
    }
    kept = ("separation", "ci", "as_good_as_best")
    return {**{key: layer[key] for key in kept}, "sets": sets}


def _held_out(folder: DataFolder, layer: int, features: dict[str, str]) -> dict[str, Any]:
    """Return figures of the kind of text on which the features were found."""
    run = ss.Run.open(folder.root / RUN)
    split = [prompt.split for prompt in run.prompts]
    rates = _rates(run, layer, features, "holdout_rate")
    return {"rates": rates, "prompts": len(split), "held_out": split.count("holdout")}


def _of_kind(folder: DataFolder, kind: str, layer: int, features: dict[str, str]) -> dict[str, Any]:
    """Return figures of the same features on another kind of text, all of it."""
    words = _kinds(layer)[kind]
    shutil.rmtree(folder.root / words[-1], ignore_errors=True)
    saescope(folder, *words)
    run = ss.Run.open(folder.root / words[-1])
    rates = _rates(run, layer, features, "rate")
    intervals = _rates(run, layer, features, "rate_ci")
    own = {
        name: {"rate": rates[name][name], "ci": intervals[name][name]}
        for name in features
        if name in rates[name]
    }
    return {"rates": rates, "own": own, "prompts": len(run.prompts)}


def _rates(run: ss.Run, layer: int, features: dict[str, str], figure: str) -> dict[str, Any]:
    """A figure of every language's feature in every set."""
    settings = ss.ContrastSettings(n_top=_EVERY_FEATURE, shuffles=0)
    sets = ss.contrast(run, settings, layers=[layer]).layers[layer].sets
    never: Any = [0.0, 0.0] if figure.endswith("ci") else 0.0
    by_feature = {
        name: {str(one.feature): getattr(one, figure) for one in result.features}
        for name, result in sets.items()
    }
    return {
        language: {name: by_feature[name].get(feature, never) for name in sets}
        for language, feature in features.items()
    }


def _draw_depth(folder: DataFolder, results: dict[str, Any]) -> None:
    layers = {int(n): layer for n, layer in results["layers"].items()}
    depth = list(layers)
    with picture(folder, "languages-depth", (7.6, 4.2)) as (_, [axes]):
        for n, name in enumerate(results["features"]):
            colour, style = COLOURS[1 + n % (len(COLOURS) - 1)], _STYLES[n // (len(COLOURS) - 1)]
            scores = [layer["sets"][name]["holdout_score"] for layer in layers.values()]
            axes.plot(
                depth,
                scores,
                style,
                color=colour,
                linewidth=1.1,
                alpha=0.75,
                label=NAMES[name],
            )
        low = [layer["ci"][0] for layer in layers.values()]
        high = [layer["ci"][1] for layer in layers.values()]
        separation = [layer["separation"] for layer in layers.values()]
        axes.fill_between(depth, low, high, color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(depth, separation, "o-", color=COLOURS[0], linewidth=2.4, label="mean of all")
        axes.axhline(0, color=QUIET, linewidth=0.8)
        axes.set_xticks(depth)
        axes.set_xlabel("layer")
        axes.set_ylabel("rate in the language − largest elsewhere")
        axes.legend(frameon=False, fontsize=9, loc="upper left")


def _draw_rates(folder: DataFolder, results: dict[str, Any]) -> None:
    names = list(results["features"])
    rows = [f"{NAMES[name]}  {feature}" for name, feature in results["features"].items()]
    kinds = {"help pages, held out": results["help"]}
    kinds |= {text: results["kinds"][kind] for kind, text in KINDS.items()}
    size = (3.1 + 2.7 * len(kinds), 4.1)
    with picture(folder, "languages-rates", size, columns=len(kinds)) as (_, axes):
        for n, (title, kind) in enumerate(kinds.items()):
            shares = [[kind["rates"][row].get(name) for name in names] for row in names]
            heat_map(axes[n], shares, [""] * len(rows) if n else rows, names, title)


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about languages over depth."""
    found = results["help"]
    return join(
        "## Languages over depth",
        paragraph(
            "Which features of Gemma 3 270M stand for a language? "
            f"{found['prompts']:,} paragraphs of help pages in {number(len(results['features']))} "
            f"languages are compared at {number(len(results['layers']))} layers. Features are "
            f"chosen on discovery documents; figures are of {found['held_out']} paragraphs of "
            "other documents."
        ),
        command_block(results["commands"]),
        image("languages", "depth", "separation of the languages by layer"),
        _depth(results),
        image("languages", "rates", "rates of each language's best feature on text in every other"),
        paragraph(
            "A row is the best feature of a language, a column is text in a language, a number is "
            "the percentage of its tokens on which the feature fires."
        ),
        _table(results),
        _findings(results),
    )


def _depth(results: dict[str, Any]) -> str:
    layers = results["layers"]
    best = layers[str(results["best"])]
    as_good = [n for n in layers if layers[n]["as_good_as_best"] and int(n) != results["best"]]
    lowest = layers[min(layers, key=lambda n: layers[n]["separation"])]
    worst = min(layers, key=lambda n: layers[n]["separation"])
    compared = "No other layer is as good."
    if as_good:
        compared = f"{listed(f'layer {n}' for n in as_good).capitalize()} cannot be told from it."
    return paragraph(
        f"Layer {results['best']} separates the languages best: "
        f"{number_ci(best['separation'], best['ci'])} on held-out documents.",
        compared,
        f"The lowest is layer {worst} with {number_ci(lowest['separation'], lowest['ci'])}."
        if int(worst) != results["best"]
        else "",
        "The separation is the mean over languages of a feature's rate in its language minus its "
        "largest rate in another one; the band is its 95 % bootstrap interval over documents.",
    )


def _table(results: dict[str, Any]) -> str:
    rows = []
    for name, one in results["layers"][str(results["best"])]["sets"].items():
        low, high = one["holdout_score_ci"]
        rates = f"{percent(one['holdout_rate'], 1)} / {percent(one['holdout_other_rate'], 1)}"
        row = [NAMES[name], one["feature"], rates, f"{low:.2f} to {high:.2f}"]
        rows.append([*row, *(_other_cell(results["kinds"][kind], name) for kind in KINDS)])
    kinds = [f"{text}, %" for text in KINDS.values()]
    header = ("language", "feature", "help, held out: own / elsewhere, %", "difference", *kinds)
    return table(header, rows)


def _other_cell(kind: dict[str, Any], name: str) -> str:
    if name not in kind["own"]:
        return "–"
    own, (elsewhere, where) = kind["own"][name], _elsewhere(kind["rates"][name], name)
    low, high = (percent(bound) for bound in own["ci"])
    return f"{percent(own['rate'], 1)} ({low}-{high}) / {percent(elsewhere, 1)} ({NAMES[where]})"


def _elsewhere(rates: dict[str, float], name: str) -> tuple[float, str]:
    others = {other: rate for other, rate in rates.items() if other != name}
    where = best_key(others)
    return others[where], where


def _holds(own: float, elsewhere: float) -> bool:
    return own >= LEAST_RATE and own >= LEAST_RATIO * elsewhere


def _findings(results: dict[str, Any]) -> str:
    sets = results["layers"][str(results["best"])]["sets"]
    passing = [n for n, s in sets.items() if _holds(s["holdout_rate"], s["holdout_other_rate"])]
    failing = [name for name in sets if name not in passing]
    sentences = [
        "A feature *stands for* a language here if it fires on at least "
        f"{percent(LEAST_RATE)} % of its tokens, and {LEAST_RATIO:g} times as often as in any "
        "other language.",
        _who(passing, failing),
        *(_on_kind(results["kinds"][kind], text, passing) for kind, text in KINDS.items()),
        f"With shuffled labels, {results['shuffled']['confirmed']} features were confirmed in "
        f"{results['shuffled']['shuffles']} shuffles.",
    ]
    return paragraph(*sentences)


def _who(passing: list[str], failing: list[str]) -> str:
    if not passing:
        return "No language has such a feature."
    if not failing:
        return "Every language has such a feature."
    have, have_none = (("has" if len(names) == 1 else "have") for names in (passing, failing))
    return (
        f"{listed(NAMES[name] for name in passing)} {have} one; "
        f"{listed(NAMES[name] for name in failing)} {have_none} none."
    )


def _on_kind(kind: dict[str, Any], text: str, passing: list[str]) -> str:
    measured = [name for name in passing if name in kind["own"]]
    if not measured:
        return ""
    holding = [
        name
        for name in measured
        if _holds(kind["own"][name]["rate"], _elsewhere(kind["rates"][name], name)[0])
    ]
    lost = [NAMES[name] for name in measured if name not in holding]
    but = f", not of {listed(lost)}" if lost else ""
    return f"On {text} that holds of {len(holding)} of {len(measured)}{but}."
