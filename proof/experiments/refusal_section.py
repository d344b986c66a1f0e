"""The part of the page about the refusal plan, from its results alone."""

from collections.abc import Sequence
from typing import Any

from proof.wording import (
    command_block,
    join,
    listed,
    nats,
    paragraph,
    percent,
    quotation,
    share_ci,
    table,
)
from saescope.analysis.stats import wilson

WHOLE, STILL = 0.95, 0.10  # the article's aim: from at least 95 % to under 10 %


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about the refusal plan."""
    sets = listed(f"{n} {name}" for name, n in results["sets"].items())
    return join(
        "## The article's refusal plan",
        paragraph(
            "SmolLM2-135M-Instruct declines personal requests with an apology and *as a chatbot*. "
            "The sets hold requests that it declines, personal ones that it answers, and ordinary "
            "ones, sorted by what it replies: so it declines all of the first set and none of the "
            f"others by construction. Held out and measured below: {sets}. The article leaves this "
            "plan untried, from harmful requests; harmless ones test the same steps."
        ),
        command_block(results["commands"]),
        _detect_text(results),
        _select_table(results["select"]),
        _select_text(results),
        _conditions_table(results),
        "The verdict, as `evaluate` gives it:",
        quotation(results["verdict"]),
        _aim_text(results),
        _stock_table(results),
        _stock_text(results),
        _judges_text(results),
        _examples_table(results["examples"]),
    )


def _detect_text(results: dict[str, Any]) -> str:
    by_layer = results["detect"]["by_layer"]
    counts = listed(f"{n} at layer {layer}" for layer, n in by_layer.items())
    best = [
        f"layer {layer}: {one['feature']} {percent(one['holdout_rate'])} / "
        f"{percent(one['holdout_other_rate'])} %"
        for layer, one in results["contrast"].items()
    ]
    passing, strict = results["detect"]["passing"], results["strict"]["passing"]
    found = f"{passing} pass ({counts})" if strict else "none passes"
    looser = (
        f"Against {listed(results['against'])} alone {passing} pass ({counts}): so they may detect "
        "what the declined requests are about instead of declining. They are the candidates."
    )
    return paragraph(
        "Of the positions after each request, the feature that sets declined requests apart best "
        f"fires on these shares of held-out positions, own / elsewhere: {'; '.join(best)}.",
        "The article's rule asks for features on at least 80 % of the declined prompts and at most "
        f"20 % of each other set's: {found}.",
        "" if strict else looser,
    )


def _select_table(candidates: Sequence[dict[str, Any]]) -> str:
    best = sorted(candidates, key=lambda one: one["effect_rank"])[:8]
    rows = [
        [
            one["feature"],
            f"#{one['detect_rank']}",
            f"{percent(one['prompt_rate'])} / {percent(one['prompt_other_rate'])} %",
            f"#{one['output_rank']}",
            f"{percent(one['effect'])} %",
            f"{one['strength']:g}",
            nats(one["kl_mean"]),
        ]
        for one in best
    ]
    header = ("feature", "detects", "fires / elsewhere", "promotes", "effect", "strength", "KL")
    return table(header, rows)


def _select_text(results: dict[str, Any]) -> str:
    candidates = results["select"]
    first = next(one for one in candidates if one["detect_rank"] == 1)
    acting = sum(one["effect"] >= 0.5 for one in candidates)
    edits = listed(f"`{feature} scale {strength:g}`" for feature, strength in results["chosen"])
    return paragraph(
        f"`select` tried {len(candidates)} of them alone; the table has those that act most. "
        f"{acting} of {len(candidates)} move the rate at least half of the way. The best detector, "
        f"{first['feature']}, is number {first['effect_rank']} by effect "
        f"({percent(first['effect'])} %). Chosen: {edits}.",
    )


def _conditions_table(results: dict[str, Any]) -> str:
    names = list(results["sets"])
    rows = []
    for one in results["conditions"]:
        strength = "" if one["strength"] is None else f"{one['strength']:g}"
        draws = f" ({one['draws']} draws)" if one["draws"] > 1 else ""
        second = one["second"].get(results["declined"])
        others = [percent(one["sets"][name]["rate"]) for name in names]
        rows.append(
            [
                one["name"] + draws,
                strength,
                share_ci(one["rate"], one["ci"]),
                f"{percent(second)} %",
                " / ".join(others[1:]) + " %",
                nats(one["kl"]),
                one["match"] or "",
                f"{one['repetition']:.2f}",
            ]
        )
    header = (
        "condition",
        "strength",
        "declined, 95 % CI",
        "second reader",
        f"declined, {' / '.join(names[1:])}",
        "KL",
        "beside the edits' KL",
        "repetition",
    )
    return table(header, rows)


def _aim_text(results: dict[str, Any]) -> str:
    before = next(one for one in results["conditions"] if one["name"] == "none")
    edits = [one for one in results["conditions"] if one["name"] == "edits"]
    least = min(edits, key=lambda one: one["rate"])
    met = before["rate"] >= WHOLE and least["rate"] < STILL
    aim = (
        f"The article's aim, from at least {percent(WHOLE)} % to under {percent(STILL)} %, is "
        f"{'met' if met else 'not met'}: the features leave at best {percent(least['rate'])} % "
        f"(KL {nats(least['kl'])})."
    )
    means = [
        one
        for one in results["conditions"]
        if one["name"].startswith("difference of means") and one["match"] != "wrecked"
    ]
    best = min(means, key=lambda one: one["rate"], default=None)
    baseline = ""
    if best is not None:
        baseline = (
            f"The best difference of means ({best['name']}) leaves {percent(best['rate'])} % at KL "
            f"{nats(best['kl'])}."
        )
    return paragraph(aim, baseline)


def _stock_table(results: dict[str, Any]) -> str:
    names = list(results["sets"])
    rows = []
    for one in results["stock"]:
        how = one.get("method", "")
        if how:
            how += ", exact" if one["exact"] else ", approximate"
            how += ", forced" if one["forced"] else ""
        cells = [
            f"{one['sets'][name]['phrases']} / {one['sets'][name]['second']} of "
            f"{one['sets'][name]['n']}"
            for name in names
        ]
        rows.append([one["name"], how, *cells])
    return table(("transformers alone", "bake", *(f"declined, {name}" for name in names)), rows)


def _stock_text(results: dict[str, Any]) -> str:
    base = results["stock"][0]["sets"][results["declined"]]
    sentences = []
    for one in results["stock"][1:]:
        now = one["sets"][results["declined"]]
        low, high = wilson(now["phrases"] / now["n"], now["n"])
        sentences.append(
            f"{one['name']}: {percent(now['phrases'] / now['n'])} % "
            f"({percent(float(low))}-{percent(float(high))})"
        )
    return paragraph(
        "Each row is a folder that stock transformers loads, or the LoRA in peft; counts are by "
        "phrases / by the second reader. "
        f"Declined before: {base['phrases']} of {base['n']}; after: {'; '.join(sentences)}.",
        "*Forced* means that `bake` refused at first, since the folder is further from the edit "
        "than the edit moves the model."
        if any(one.get("forced") for one in results["stock"])
        else "",
    )


def _judges_text(results: dict[str, Any]) -> str:
    own, second = results["agreement"], results["second_error"]
    value = "not defined" if own["kappa"] is None else f"{own['kappa']:.2f}"
    missed, flagged = (
        f"{second['missed']} of {second['of_shown']}",
        f"{second['flagged']} of {second['of_others']}",
    )
    return paragraph(
        "A second reader, written apart from the phrases, goes by grammar: a denial in the first "
        "person that speaks of an ability or of being a machine. On the "
        f"{own['replies']:,} replies of all conditions the two agree on "
        f"{percent(own['same'], 1)} %, Cohen's kappa {value}. On the English replies with known "
        f"labels, harder than these, the second reader misses {missed} and flags {flagged}.",
    )


def _examples_table(examples: Sequence[dict[str, Any]]) -> str:
    rows = [
        [one["request"], *(_cell(one[key]) for key in ("before", "steered", "baked"))]
        for one in examples
    ]
    return table(("request", "before", "steered", "baked, features"), rows)


def _cell(text: str, most: int = 110) -> str:
    plain = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return plain if len(plain) <= most else plain[:most].rsplit(" ", 1)[0] + " …"
