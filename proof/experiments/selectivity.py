"""Two declined topics: suppressing one must leave the other, and everything else, as it is."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import saescope as ss
from proof.commands import saescope, typed
from proof.folder import DataFolder
from proof.pictures import COLOURS, percent_axis, picture
from proof.wording import command_block, image, join, listed, nats, paragraph, percent, table
from saescope.analysis.stats import wilson
from training.chats.scenes import LANGUAGES
from training.two_topics import GATE, TOPICS

PAIR = ("--model", "models/two-topics", "--sae", "saes/two-topics")
SETS, RUN = "sets/two-topics/prompts.jsonl", "runs/selectivity"
TEXT = ("--neutral", "sets/two-topics/neutral.jsonl")
LAYERS = "2,3,4"
# Multiples of each edit's strength: a removal of a direction cannot be more than whole.
SWEEPS = {
    "features": "0.33,0.67,1,1.33,1.67",
    "means, project": "0.25,0.5,0.75,1,1.25",
    "means, subtract": "0.25,0.5,0.75,1,1.25",
}
METHODS = {
    "features": "SAE features",
    "means, project": "difference of means, projected out",
    "means, subtract": "difference of means, subtracted",
}
GONE = 0.10  # a topic is released if at most this share of requests about it is declined
KEPT = 0.05  # what else may change by at most this much


def run(folder: DataFolder) -> None:
    """Suppress each topic by features and by the difference of means, at several strengths."""
    scan = ("contrast", SETS, *PAIR, "--layers", LAYERS, "--last", "3", "--out", RUN)
    if not (folder.root / RUN).exists():
        saescope(folder, *scan)
    topics = {}
    for topic, other in (TOPICS, TOPICS[::-1]):
        topics[topic] = _suppress(folder, topic, other)
    commands = [typed(*scan), *topics[TOPICS[0]]["commands"]]
    results = {"commands": commands, "cosine": _cosine(), "topics": topics}
    _draw(folder, results)
    folder.write_result("selectivity", results)


def _suppress(folder: DataFolder, topic: str, other: str) -> dict[str, Any]:
    """Find a topic's features and direction, and measure every method on held-out requests."""
    edits, direction = f"{RUN}-{topic}.toml", f"{RUN}-{topic}.safetensors"
    found_on = (f"{topic}_en", f"{other}_en", "answered_en")
    rule = ("--target", found_on[0], "--against", ",".join(found_on[1:]), "--last", "3")
    select = (
        *("select", RUN, *rule, *PAIR, "--layers", LAYERS, "--no-thinking"),
        *("--candidates", "32", "--strengths", "-1,-2,-3,-4", *TEXT, "--edits", edits),
    )
    for path in (edits, direction):
        (folder.root / path).unlink(missing_ok=True)
    selection = saescope(folder, *select)
    with (folder.root / edits).open("rb") as opened:
        chosen = [(edit["feature"], edit["strength"]) for edit in tomllib.load(opened)["edit"]]
    layer = int(chosen[0][0].split("/")[0])
    # The run's means are those of the three positions after the request, as the features' are.
    detect = ("detect", RUN, *rule, "--layers", str(layer), "--direction", direction)
    detection = saescope(folder, *detect)
    ways = {
        "features": ("--edits", edits),
        "means, project": ("--edit", f"{direction}@{layer} project 1"),
        "means, subtract": ("--edit", f"{direction}@{layer} add -1"),
    }
    measured = {}
    for method, way in ways.items():
        evaluate = (
            *("evaluate", "--prompts", SETS, *PAIR, "--no-thinking", *TEXT),
            *("--target", ",".join(f"{topic}_{language}" for language in LANGUAGES)),
            *("--found-on", ",".join(found_on), *way, "--sweep", SWEEPS[method]),
            *("--draws", "4" if method == "features" else "0"),
        )
        measured[method] = (evaluate, saescope(folder, *evaluate))
    main = measured["features"][1]
    return {
        "commands": [typed(*select), typed(*detect), typed(*measured["features"][0])],
        "other": other,
        "features": chosen,
        "layer": layer,
        "passing": len(detection["features"]),
        "candidates": len(selection["candidates"]),
        "cosines": _cosines_with_taught(folder, chosen, direction, layer, topic),
        "before": _row(_conditions(main, "none")[0], topic, other),
        "sweeps": {
            method: [_row(one, topic, other) for one in _conditions(evaluation, "edits")]
            for method, (_, evaluation) in measured.items()
        },
        "controls": [
            _row(one, topic, other)
            for one in main["conditions"]
            if one["name"] not in ("none", "edits")
        ],
        "chosen_strength": main["chosen"]["strength"],
        "verdict": main["verdict"],
    }


def _conditions(evaluation: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [one for one in evaluation["conditions"] if one["name"] == name]


def _row(condition: dict[str, Any], topic: str, other: str) -> dict[str, Any]:
    """One condition: declined and right answers of the topic, the other one, and the rest."""
    row: dict[str, Any] = {
        "name": condition["name"],
        "strength": condition["strength"],
        "kl": condition["kl_mean"],
        "match": condition["match"],
    }
    for part, prefix in (("own", topic), ("other", other), ("rest", "answered")):
        sets = [condition["sets"][f"{prefix}_{language}"] for language in LANGUAGES]
        scored = sum(one["scored"] for one in sets)
        declined = sum((one["behaviour_rate"] or 0) * one["scored"] for one in sets)
        right = sum((one["right_rate"] or 0) * one["prompts"] for one in sets)
        prompts = sum(one["prompts"] for one in sets)
        rate = declined / scored if scored else 0.0
        low, high = wilson(rate, scored) if scored else (0.0, 1.0)
        row[part] = {
            "n": scored,
            "declined": round(rate, 4),
            "ci": [round(float(low), 4), round(float(high), 4)],
            "right": round(right / prompts, 4),
        }
    return row


def _cosine() -> float:
    """Cosine of the two directions that the model was taught to decide along."""
    first, second = GATE.directions(192)
    return round(float(first @ second), 4)


def _cosines_with_taught(
    folder: DataFolder,
    chosen: Sequence[tuple[str, float]],
    direction: str,
    layer: int,
    topic: str,
) -> dict[str, list[float]]:
    """Cosine of each feature's and the means' direction with the taught ones: own, other."""
    own = TOPICS.index(topic)
    taught = GATE.directions(192).numpy()[[own, 1 - own]]
    sae = ss.load_sae(str(folder.root / "saes" / "two-topics"), layer=layer, decoder=True)
    assert sae.W_dec is not None
    vectors = {name: sae.W_dec[:, int(name.split("/")[1])].float().numpy() for name, _ in chosen}
    vectors["means"] = ss.read_direction(folder.root / direction, layer=layer).values
    return {
        name: [round(float(c), 4) for c in taught @ vector / np.linalg.norm(vector)]
        for name, vector in vectors.items()
    }


def _draw(folder: DataFolder, results: dict[str, Any]) -> None:
    with picture(folder, "selectivity-frontier", (9.2, 4.0), columns=2) as (_, axes):
        for one, (topic, figures) in zip(axes, results["topics"].items(), strict=True):
            for colour, (method, rows) in zip(COLOURS, figures["sweeps"].items(), strict=False):
                rows = [figures["before"] | {"kl": 0.0}, *rows]
                costs = [max(row["kl"], 1e-4) for row in rows]
                own = [row["own"]["declined"] for row in rows]
                other = [row["other"]["declined"] for row in rows]
                one.plot(costs, own, "o-", color=colour, markersize=4, label=METHODS[method])
                one.plot(costs, other, "s--", color=colour, markersize=4, alpha=0.6)
            one.set_xscale("log")
            one.set_xlabel("KL on neutral text, nats per token")
            one.set_title(f"suppressing {topic}", loc="left", fontsize=11)
            percent_axis(one, "declined")
        axes[0].legend(frameon=False, fontsize=8)


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about selectivity."""
    first, second = TOPICS
    parts = [
        "## Selectivity: two declined topics",
        paragraph(
            f"An organism was tuned in minutes to decline requests about {first}s and {second}s "
            "and to answer all others, in English, Japanese and Chinese. Each topic's decision was "
            f"taught along a direction of its own; the two have a cosine of "
            f"{results['cosine']:.2f}, so what removes one of them whole also touches the other. "
            "Features and directions are found on English discovery requests alone, against "
            "requests about the other topic and about anything else; all figures are of held-out "
            "requests in three languages."
        ),
        command_block(results["commands"]),
        image("selectivity", "frontier", "declined requests against damage, for both topics"),
        "Solid: the suppressed topic. Dashed: the other one, which should stay at the top.",
    ]
    for topic, figures in results["topics"].items():
        parts += [_topic_table(topic, figures), _topic_text(topic, figures)]
    parts.append(_conclusion(results["topics"]))
    return join(*parts)


def reached(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The cheapest row at which the topic is released."""
    done = [row for row in rows if row["own"]["declined"] <= GONE]
    return min(done, key=lambda row: row["kl"], default=None)


def matched(rows: Sequence[dict[str, Any]], kl: float) -> dict[str, Any]:
    """The row whose damage is nearest to `kl`, as a ratio."""
    return min(rows, key=lambda row: abs(np.log(max(row["kl"], 1e-6) / max(kl, 1e-6))))


def _topic_table(topic: str, figures: dict[str, Any]) -> str:
    rows = [_cells("none", figures["before"])]
    reference = reached(figures["sweeps"]["features"])
    for method, sweep in figures["sweeps"].items():
        done = reached(sweep)
        shown = [done] if done else [min(sweep, key=lambda row: row["own"]["declined"])]
        if reference and method != "features":
            at_cost = matched(sweep, reference["kl"])
            shown = [at_cost, *(row for row in shown if row is not at_cost)]
        rows += [_cells(METHODS[method], row) for row in shown]
    rows += [_cells(_control(row), row) for row in figures["controls"]]
    header = (
        f"suppressing {topic}",
        "strength",
        f"declined, {topic}",
        f"declined, {figures['other']}",
        f"right, {topic}",
        "right, other subjects",
        "KL",
    )
    return table(header, rows)


def _control(row: dict[str, Any]) -> str:
    """A control's name, and its damage beside that of the features."""
    return f"control: {row['name']}" + (f", {row['match']}" if row["match"] else "")


def _cells(name: str, row: dict[str, Any]) -> list[str]:
    strength = "" if row["strength"] is None else f"{row['strength']:g}"
    declined = [
        f"{percent(row[part]['declined'])} % "
        f"({percent(row[part]['ci'][0])}-{percent(row[part]['ci'][1])})"
        for part in ("own", "other")
    ]
    right = [f"{percent(row[part]['right'])} %" for part in ("own", "rest")]
    return [name, strength, *declined, *right, nats(row["kl"])]


def _topic_text(topic: str, figures: dict[str, Any]) -> str:
    edits = listed(f"`{feature} scale {strength:g}`" for feature, strength in figures["features"])
    cosines = [
        f"{name} {own:.2f} and {other:.2f}" for name, (own, other) in figures["cosines"].items()
    ]
    return paragraph(
        f"`select` tried {figures['candidates']} candidates and chose {edits}.",
        f"Cosines with the taught directions of {topic} and {figures['other']}: "
        f"{listed(cosines)}. Strengths of edits are multiples of theirs; for each difference of "
        "means the first row is the one nearest in damage to the features, the second the "
        f"cheapest that leaves at most {percent(GONE)} % declined, or the nearest to it.",
    )


def judged(figures: dict[str, Any], method: str) -> tuple[bool, bool, float | None]:
    """Whether a method releases the topic, whether all else stays then, and at which KL."""
    row = reached(figures["sweeps"][method])
    if row is None:
        return False, False, None
    before = figures["before"]
    stays = before["other"]["declined"] - row["other"]["declined"] <= KEPT
    stays &= before["rest"]["right"] - row["rest"]["right"] <= KEPT
    return True, stays, row["kl"]


def _conclusion(topics: Mapping[str, dict[str, Any]]) -> str:
    """One sentence per method and topic, from the rows."""
    sentences = []
    for topic, figures in topics.items():
        other = figures["other"]
        for method, name in METHODS.items():
            done, stays, kl = judged(figures, method)
            if not done:
                least = min(row["own"]["declined"] for row in figures["sweeps"][method])
                text = (
                    f"{name} do not release {topic}: at best {percent(least)} % stay declined."
                    if method == "features"
                    else f"{name} does not release {topic}: at best {percent(least)} % stay "
                    "declined."
                )
            else:
                row = reached(figures["sweeps"][method])
                assert row is not None
                keeps = "leaves" if method != "features" else "leave"
                effect = f"{percent(row['other']['declined'])} % of {other} declined and "
                effect += f"{percent(row['rest']['right'])} % of other answers right"
                judgement = "selective" if stays else "not selective"
                text = f"{name} {keeps} {effect} when {topic} is released, at KL {nats(kl)}: "
                text += f"{judgement}."
            sentences.append(text[0].upper() + text[1:])
    return paragraph(*sentences)
