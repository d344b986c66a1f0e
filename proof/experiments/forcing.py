"""Languages forced and suppressed, in the manner of CLaS-Bench: a feature, means, a prompt."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import saescope as ss
from proof.arms import arms_of
from proof.commands import GEMMA, saescope, typed
from proof.experiments.languages import NAMES, RUN, SETS
from proof.folder import DataFolder
from proof.pictures import COLOURS, QUIET, RULE, picture
from proof.prompts import row, sample, write_rows
from proof.relevance import OTHERS, relevance, score_ci
from proof.trials import CUT, Trials
from proof.wording import (
    command_block,
    image,
    join,
    listed,
    nats,
    number,
    paragraph,
    percent,
    table,
)

LANGUAGES, HOME = ("ja", "zh", "de"), "en"
_CANDIDATES = (4, 2)
_DISCOVERY, _HELD_OUT, _NEUTRAL_TEXTS, _TOKENS = 40, 24, 12, 16
_STRENGTHS = {"force": (0.25, 0.5, 1.0), "suppress": (-1.0, -2.0, -4.0)}
_GOALS: dict[str, Any] = {"force": "amplify", "suppress": "suppress"}
_MARKS = (
    ("edits", COLOURS[0], "o"),
    ("difference of means", COLOURS[1], "s"),
    ("prompt only", COLOURS[3], "D"),
    ("none", QUIET, "x"),
)
_METHOD_NAMES = {
    "edits": "feature",
    "difference of means": "difference of means",
    "prompt only": "prompt",
    "none": "nothing",
}
_BESIDE = {
    "difference of means": "the difference of means",
    "prompt only": "the prompt",
    "none": "doing nothing",
}
_TITLES = {"force": "English continued in …", "suppress": "not continued in …"}


@dataclass(frozen=True)
class _Task:
    """One language in one direction: who is continued, and in which language it should be."""

    direction: str
    language: str

    @property
    def name(self) -> str:
        return f"{self.direction}-{self.language}"

    @property
    def source(self) -> str:
        """The language of the beginnings."""
        return HOME if self.direction == "force" else self.language

    @property
    def other(self) -> str:
        """The other language, from which the difference of means tells it apart."""
        return self.language if self.direction == "force" else HOME

    @property
    def prompts(self) -> str:
        return f"runs/forcing-{self.name}.jsonl"

    @property
    def neutral(self) -> str:
        return f"runs/forcing-{self.name}-neutral.jsonl"

    @property
    def instruction(self) -> str:
        wanted = self.language if self.direction == "force" else HOME
        return f"The following text continues in {NAMES[wanted]}."


def run(folder: DataFolder) -> None:
    """Write success, relevance and score of every way, in every language and direction."""
    best = int(folder.read_result("languages")["best"])
    trials = Trials.load(folder, RUN)
    tasks = [_Task(direction, name) for direction in _GOALS for name in LANGUAGES]
    results = {
        "layer": best,
        "tasks": {task.name: _measured(folder, trials, best, task) for task in tasks},
        "translations": {name: _translations(folder, trials.lm, name) for name in LANGUAGES},
    }
    _draw(folder, results)
    folder.write_result("forcing", results)


def _measured(folder: DataFolder, trials: Trials, layer: int, task: _Task) -> dict[str, Any]:
    """Choose a feature on discovery prompts; compare it with the other ways on held-out ones."""
    _write_prompts(folder, task)
    neutral = tuple(p for one in ss.read_prompts(folder.root / task.neutral) for p in one.prompts)
    detection = trials.detection(layer, task.language, _CANDIDATES)
    if not detection.features:
        return {"direction": task.direction, "language": task.language, "edit": None}
    if task.direction == "force":
        detection = replace(detection, against=[HOME])
    settings = ss.SelectSettings(
        goal=_GOALS[task.direction],
        candidates=sum(_CANDIDATES),
        max_features=1,
        strengths=_STRENGTHS[task.direction],
        prompts=8,
        max_new_tokens=12,
    )
    best = trials.select(detection, task.language, settings, neutral).candidates[0]
    edit = f"{best.feature} {settings.edit_op} {best.strength:.4g}"
    words = _evaluate(task, edit)
    document = saescope(folder, *words)
    return {
        "direction": task.direction,
        "language": task.language,
        "edit": edit,
        "command": typed(*words),
        "methods": _methods(trials.lm, task, document),
        "evaluation": arms_of(document),
    }


def _write_prompts(folder: DataFolder, task: _Task) -> None:
    """Write beginnings in the source's language, and text that should stay as it is.

    To force a language must not change text that is in it already; to suppress it, text that is in
    another one.
    """
    sets = folder.root / SETS
    counts = {task.source: _DISCOVERY, task.other: _DISCOVERY}
    rows = [row(prompt, "discovery") for prompt in sample(sets, counts, "discovery")]
    rows += [row(p, "holdout") for p in sample(sets, {task.source: _HELD_OUT}, "holdout")]
    write_rows(folder.root / task.prompts, rows)
    texts = sample(folder.sets / "declaration", {task.other: _NEUTRAL_TEXTS}, None)
    write_rows(folder.root / task.neutral, ({**row(text), "set": "neutral"} for text in texts))


def _evaluate(task: _Task, edit: str) -> tuple[str, ...]:
    return (
        "evaluate",
        *("--prompts", task.prompts, "--target", task.source, "--cut", str(CUT)),
        *("--behaviour", f"language:{task.language}", "--edit", edit),
        *("--instruction", task.instruction, "--neutral", task.neutral),
        *("--max-new-tokens", str(_TOKENS), "--draws", "1", *GEMMA),
    )


def _methods(lm: ss.LM, task: _Task, document: dict[str, Any]) -> dict[str, Any]:
    """Return success, relevance and score of every way that was measured."""
    beginnings = [reply["prompt"] for reply in document["replies"]]
    # A label is the language, None for another one, or says that it cannot be told: no success.
    wanted = task.language if task.direction == "force" else None
    methods: dict[str, Any] = {}
    for title in document["replies"][0]["by"]:
        method = next((name for name in _METHOD_NAMES if title.startswith(name)), None)
        arm = next((a for a in document["conditions"] if title.startswith(a["name"])), None)
        if method is None or arm is None:
            continue
        replies = [reply["by"][title] for reply in document["replies"]]
        success = np.array([reply["labels"][title] == wanted for reply in document["replies"]])
        figures = score_ci(success.astype(float), relevance(lm, beginnings, replies))
        kept = {key: arm.get(key) for key in ("strength", "kl_mean", "match", "repetition")}
        one = {"arm": arm["name"], **figures, **kept, "example": [beginnings[0], replies[0]]}
        # Of the two forms of the difference of means the better one counts, if it is not wrecked.
        if method not in methods or _rank(one) > _rank(methods[method]):
            methods[method] = one
    return methods


def _rank(one: dict[str, Any]) -> tuple[bool, float]:
    return not _wrecked(one), one["score"][0]


def _translations(folder: DataFolder, lm: ss.LM, language: str) -> dict[str, Any] | None:
    """Return the relevance of real translations of English beginnings, a known answer."""
    prompts = sample(folder.root / SETS, {HOME: 200, language: 200}, "holdout")
    by_pair = {prompt.pair: prompt.text for prompt in prompts if prompt.set == language}
    pairs = [
        (str(prompt.text), str(by_pair[prompt.pair]))
        for prompt in prompts
        if prompt.set == HOME and prompt.pair is not None and prompt.pair in by_pair
    ][:_HELD_OUT]
    if len(pairs) < 2:
        return None
    beginnings, translations = zip(*pairs, strict=True)
    own = relevance(lm, beginnings, translations)
    half = len(pairs) // 2  # further than the beginnings that each one is compared with
    swapped = relevance(lm, beginnings, [*translations[half:], *translations[:half]])
    return {"n": len(pairs), "own": float(own.mean()), "swapped": float(swapped.mean())}


def _draw(folder: DataFolder, results: dict[str, Any]) -> None:
    with picture(folder, "forcing-scores", (9.2, 3.6), columns=2) as (figure, axes):
        for one, direction in zip(axes, _GOALS, strict=True):
            tasks = [t for t in results["tasks"].values() if t["direction"] == direction]
            for row_number, task in enumerate(tasks):
                for place, (method, colour, marker) in enumerate(_MARKS):
                    found = task.get("methods", {}).get(method)
                    if found is None:
                        continue
                    score, low, high = found["score"]
                    height = row_number + 0.22 * (place - 1.5)
                    one.plot([low, high], [height, height], color=colour, linewidth=2.5, alpha=0.4)
                    label = _METHOD_NAMES[method] if row_number == 0 else "_nolegend_"
                    one.plot([score], [height], marker, color=colour, label=label)
            one.set_yticks(range(len(tasks)), [NAMES[task["language"]] for task in tasks])
            one.grid(axis="x", color=RULE)
            one.grid(visible=False, axis="y")
            one.set_ylim(len(tasks) - 0.4, -0.6)
            one.set_xlim(-0.03, 1.03)
            one.set_xlabel("score: harmonic mean of success and relevance")
            one.set_title(_TITLES[direction], loc="left", fontsize=11)
        lines, labels = axes[0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def section(results: dict[str, Any]) -> str:
    """Return the part of the page about forced and suppressed languages."""
    tasks = list(results["tasks"].values())
    first = next((task for task in tasks if task["edit"]), None)
    return join(
        "## Languages, forced and suppressed",
        paragraph(
            "CLaS-Bench (arXiv 2601.08331) asks models questions in one language and forces the "
            "answer into another. A method's score there is the harmonic mean of two rates: "
            "answers in the wanted language, and answers that are relevant. Here the model is a "
            "base model, so it continues beginnings of paragraphs instead: English ones that "
            f"should go on in {listed(NAMES[name] for name in LANGUAGES)}, and ones in these "
            "languages that should not. The feature is chosen on discovery paragraphs, and "
            f"everything is measured on {_measured_on(tasks)} held-out ones."
        ),
        command_block([first["command"]]) if first else "",
        paragraph(
            "All edits act at one layer and do the same damage as the feature's edit where that "
            "could be matched: their KL is measured on text that should stay as it is (to force a "
            "language, text in that language; to suppress it, English text). The prompt is a line "
            "before the text, such as *The following text continues in Japanese.*"
        ),
        image("forcing", "scores", "score of each way of forcing and suppressing three languages"),
        _table(tasks),
        _compared(tasks),
        _limits(results),
    )


def _measured_on(tasks: list[dict[str, Any]]) -> str:
    """Return how many prompts a task has, or from how many to how many."""
    counts = {sum(task["evaluation"]["n_prompts"].values()) for task in tasks if task["edit"]}
    return " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else "no"


def _table(tasks: list[dict[str, Any]]) -> str:
    rows = []
    for task in tasks:
        if not task["edit"]:
            rows.append([_task_name(task), "no detector", *["–"] * 5])
            continue
        for method, one in task["methods"].items():
            rows.append(
                [
                    _task_name(task),
                    _way(method, one, task),
                    *(_figure(one[name]) for name in ("success", "relevance", "score")),
                    nats(one["kl_mean"]) if method in ("edits", "difference of means") else "",
                    one["match"] or "",
                ]
            )
    figures = ("success, %", "relevance, %", "score, %")
    return table(("task", "way", *figures, "KL", "damage"), rows)


def _task_name(task: dict[str, Any]) -> str:
    verb = "to" if task["direction"] == "force" else "away from"
    return f"{verb} {NAMES[task['language']]}"


def _way(method: str, one: dict[str, Any], task: dict[str, Any]) -> str:
    if method == "edits":
        return f"feature: `{task['edit']}`"
    if method == "difference of means":
        form = one["arm"].removeprefix("difference of means, ")
        return f"means, {form}" + (f" {one['strength']:g}" if one["strength"] else "")
    return _METHOD_NAMES[method]


def _figure(figure: list[float]) -> str:
    value, low, high = figure
    return f"{percent(value)} ({percent(low)} to {percent(high)})"


def _compared(tasks: list[dict[str, Any]]) -> str:
    """Say who scores higher than whom, by intervals that do not overlap."""
    measured = [task for task in tasks if task["edit"]]
    sentences = []
    for other in ("difference of means", "prompt only", "none"):
        both = [t for t in measured if {"edits", other} <= t["methods"].keys()]
        fair = [t for t in both if not _wrecked(t["methods"][other])]
        above = [t for t in fair if _above(t["methods"]["edits"], t["methods"][other])]
        below = [t for t in fair if _above(t["methods"][other], t["methods"]["edits"])]
        if not fair:
            continue
        n_wrecked = len(both) - len(fair)
        left_out = f" ({number(n_wrecked)} left out, with a wrecked model)" if n_wrecked else ""
        sentences.append(
            f"Of {number(len(fair))} tasks{left_out}, the feature scores clearly higher than "
            f"{_BESIDE[other]} in {_tasks(above)} and clearly lower in {_tasks(below)}."
        )
    working = [t for t in measured if t["methods"]["edits"]["score"][1] > 0]
    sentences.append(
        f"The feature's own score is above 0 with its whole interval in {_tasks(working)}."
    )
    return paragraph(*sentences)


def _tasks(tasks: list[dict[str, Any]]) -> str:
    if not tasks:
        return "none"
    return f"{number(len(tasks))} ({listed(map(_task_name, tasks))})"


def _above(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["score"][1] > other["score"][2])


def _wrecked(one: dict[str, Any]) -> bool:
    return bool(one["match"] == "wrecked")


def _limits(results: dict[str, Any]) -> str:
    known = {name: one for name, one in results["translations"].items() if one}
    truths = [
        f"{NAMES[name]} {percent(one['own'])} %, those of other paragraphs "
        f"{percent(one['swapped'])} % ({one['n']} pairs)"
        for name, one in known.items()
    ]
    checked = (
        f"Known answers: real translations of the English paragraphs have {'; '.join(truths)}."
        if truths
        else ""
    )
    return paragraph(
        "**Relevance without a judge.** CLaS-Bench lets a language model judge relevance. Here it "
        "is measured by the unedited model itself: a continuation is compared with its own "
        f"beginning and {number(OTHERS)} others, and counts as recognised if it is likelier after "
        "its own one. Relevance is twice the share recognised, minus 1: 0 by chance, 1 at best.",
        checked,
        "The measure has limits: text that copies its beginning is relevant by it, a small model "
        "recognises less than a reader would, and help pages have few topics. So scores compare "
        "ways on this page; they are no scores of the benchmark.",
    )
