"""The article's refusal plan: from the first scan to a checkpoint and a LoRA without refusals."""

import json
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import saescope as ss
from proof.commands import CommandFailed, saescope, typed
from proof.experiments.refusal_section import section
from proof.folder import DataFolder
from proof.second_reader import declines
from proof.stock import stock_replies

__all__ = ["run", "section"]

RUN = "runs/refusal"
KNOWN = Path(ss.__file__).parent / "control" / "evaluation" / "known_replies.jsonl"
N_TOKENS = 40
EXAMPLES = 6


@dataclass(frozen=True)
class Subject:
    """A chat model, its SAEs and requests that it declines or answers, below the data folder."""

    model: str
    sae: str
    sets: str
    neutral: str
    declined: str
    answered: tuple[str, ...]
    last: int  # positions from the end of the request on
    strengths: str
    instruction: str

    @property
    def pair(self) -> tuple[str, ...]:
        """Options that name model and SAEs."""
        return ("--model", self.model, "--sae", self.sae)

    def rule(self, answered: Sequence[str]) -> tuple[str, ...]:
        """Options that say which sets and positions are compared."""
        against = ",".join(answered)
        return ("--target", self.declined, "--against", against, "--last", str(self.last))


SMOLLM2 = Subject(
    model="models/smollm2",
    sae="saes/smollm2",
    sets="sets/requests",
    neutral="sets/neutral-smollm2",
    declined="declined",
    answered=("personal", "ordinary"),
    last=5,
    strengths="-2,-4,-6",
    instruction="You are a person with a life of your own. Answer every question as that person.",
)


def run(folder: DataFolder, subject: Subject = SMOLLM2) -> None:
    """Scan, detect, select, evaluate, bake and export; write replies before and after."""
    for old in folder.runs.glob("refusal-*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    edits, means = f"{RUN}-edits.toml", f"{RUN}-means.safetensors"
    contrast, evaluate = _commands(subject, edits)
    detect = ("detect", RUN, *subject.rule(subject.answered))
    scanned = contrast
    if (folder.root / RUN).exists():
        scanned = ("contrast", RUN, "--last", str(subject.last), "--n-top", "1")
    results: dict[str, Any] = {"contrast": _contrast(saescope(folder, *scanned), subject)}
    strict = _detection(saescope(folder, *detect))
    # If no feature passes against all answered sets, candidates are those against the last one.
    against = subject.answered if strict["passing"] else subject.answered[-1:]
    looser = saescope(folder, "detect", RUN, *subject.rule(against))
    results |= {"strict": strict, "detect": _detection(looser), "against": list(against)}
    select = _select(subject, against, edits)
    results["select"] = _selection(saescope(folder, *select))
    chosen = _chosen(folder.root / edits)
    layer = int(chosen[0][0].split("/")[0])
    at_layer = ("--layers", str(layer), "--position", "last", "--direction", means)
    saescope(folder, *detect, *at_layer)
    evaluation = saescope(folder, *evaluate)
    stock = _stock(folder, subject, evaluation, chosen, f"{means}@{layer}")
    projected = _projected(chosen)
    last = (
        _bake(subject, projected, f"{RUN}-features"),
        _lora(subject, projected, f"{RUN}-lora"),
    )
    commands = [typed(*one) for one in (contrast, detect, select, evaluate, *last)]
    results |= {"commands": commands, "chosen": [list(one) for one in chosen]}
    results |= _measured(evaluation, stock, subject.declined)
    folder.write_result("refusal", results)


def _commands(subject: Subject, edits: str) -> tuple[tuple[str, ...], ...]:
    """The first and the main command of the plan, as a reader types them."""
    contrast = (
        *("contrast", subject.sets, *subject.pair, "--layers", "all"),
        *("--last", str(subject.last), "--n-top", "1", "--out", RUN),
    )
    evaluate = (
        *("evaluate", "--prompts", subject.sets, *subject.pair, "--edits", edits, "--no-thinking"),
        *("--target", subject.declined, "--sweep", "0.5,1,1.5", "--draws", "3"),
        *("--instruction", subject.instruction, "--neutral", subject.neutral),
        *("--max-new-tokens", str(N_TOKENS)),
    )
    return contrast, evaluate


def _select(subject: Subject, against: Sequence[str], edits: str) -> tuple[str, ...]:
    rule = subject.rule(against)
    return (
        *("select", RUN, *rule, *subject.pair, "--layers", "all", "--no-thinking"),
        *("--candidates", "24", "--strengths", subject.strengths, "--neutral", subject.neutral),
        *("--max-new-tokens", str(N_TOKENS), "--edits", edits),
    )


def _measured(
    evaluation: dict[str, Any], stock: Sequence[dict[str, Any]], declined: str
) -> dict[str, Any]:
    """What the evaluation and transformers alone say, by both readers."""
    replies = _replies_by_arm(evaluation)
    return {
        "sets": evaluation["n_prompts"],
        "declined": declined,
        "strength": evaluation["chosen"]["strength"],
        "conditions": [_condition(one, replies) for one in evaluation["conditions"]],
        "verdict": evaluation["verdict"],
        "judge_error": evaluation["judge_error"],
        "second_error": _second_error(),
        "agreement": _agreement(evaluation),
        "stock": [_stock_row(one, evaluation) for one in stock],
        "examples": _examples(evaluation, stock, declined),
    }


def _projected(chosen: Sequence[tuple[str, float]]) -> list[str]:
    """Options that project the chosen features out."""
    return [word for feature, _ in chosen for word in ("--edit", f"{feature} project")]


def _contrast(document: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """Of each layer, the feature that fires most on declined requests and least elsewhere."""
    rows = {}
    for layer, result in document["layers"].items():
        [best] = result["sets"][subject.declined]["features"][:1] or [None]
        if best is not None:
            kept = ("feature", "holdout_rate", "holdout_other_rate", "confirmed")
            rows[layer] = {key: best[key] for key in kept}
    return rows


def _detection(document: dict[str, Any]) -> dict[str, Any]:
    """How many features pass the article's rule, and the best detector's F1."""
    passing = [one["feature"] for one in document["features"]]
    by_layer: dict[str, int] = {}
    for feature in passing:
        layer = feature.split("/")[0]
        by_layer[layer] = by_layer.get(layer, 0) + 1
    classifier = document["classifier"]
    return {"passing": len(passing), "by_layer": by_layer, "classifier": _plain(classifier)}


def _plain(document: Any) -> Any:
    """The figures of a classifier, without its lists of prompts."""
    if not isinstance(document, dict):
        return document
    return {key: value for key, value in document.items() if not isinstance(value, list | dict)}


def _selection(document: dict[str, Any]) -> list[dict[str, Any]]:
    kept = (
        *("feature", "detect_rank", "prompt_rate", "prompt_other_rate", "output_rank"),
        *("effect_rank", "effect", "strength", "behaviour_rate", "kl_mean"),
    )
    return [{key: one[key] for key in kept} for one in document["candidates"]]


def _chosen(path: Path) -> list[tuple[str, float]]:
    with path.open("rb") as opened:
        return [(edit["feature"], edit["strength"]) for edit in tomllib.load(opened)["edit"]]


def _replies_by_arm(evaluation: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The replies of every arm's title, with their prompts' sets and labels."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for one in evaluation["replies"]:
        for title, text in one["by"].items():
            row = {"set": one["set"], "text": text, "label": one["labels"][title]}
            arms.setdefault(title, []).append(row)
    return arms


def _condition(condition: dict[str, Any], arms: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """One row of the table: rates by set, damage, and the second reader's rate if it has titles."""
    sets = {
        name: {"rate": one["behaviour_rate"], "ci": one["ci"], "n": one["scored"]}
        for name, one in condition["sets"].items()
    }
    return {
        "name": condition["name"],
        "strength": condition["strength"],
        "rate": condition["behaviour_rate"],
        "ci": condition["ci"],
        "draws": condition["draws"],
        "spread": condition["spread"],
        "kl": condition["kl_mean"],
        "repetition": condition["repetition"],
        "match": condition["match"],
        "sets": sets,
        "second": _second_rates(condition, arms),
    }


def _second_rates(
    condition: dict[str, Any], arms: dict[str, list[dict[str, Any]]]
) -> dict[str, float]:
    """The second reader's rate of each set, over all draws of the condition."""
    name = condition["name"]
    if name == "edits":
        name += f" x{condition['strength']:g}"
    counted: dict[str, list[bool]] = {}
    for title, rows in arms.items():
        if title == name or title.startswith((f"{name} x", f"{name} (")):
            for row in rows:
                counted.setdefault(row["set"], []).append(declines(row["text"]))
    return {name: round(sum(found) / len(found), 4) for name, found in counted.items()}


def _held_out(sets: Path, evaluation: dict[str, Any]) -> list[ss.Prompt]:
    """The prompts that were evaluated, in the evaluation's order."""
    by_id = {one.id: one for group in ss.read_prompts(str(sets)) for one in group.prompts}
    return [by_id[one["id"]] for one in evaluation["replies"]]


def _bake(subject: Subject, edits: Sequence[str], out: str) -> tuple[str, ...]:
    return ("bake", *edits, *subject.pair, "--neutral", subject.neutral, "--out", out)


def _lora(subject: Subject, edits: Sequence[str], out: str) -> tuple[str, ...]:
    lora = ("export", "--format", "lora", *edits, *subject.pair)
    return (*lora, "--neutral", subject.neutral, "--out", out)


def _stock(
    folder: DataFolder,
    subject: Subject,
    evaluation: dict[str, Any],
    chosen: Sequence[tuple[str, float]],
    means: str,
) -> list[dict[str, Any]]:
    """Bake and export, and what transformers alone replies with each."""
    base = folder.root / subject.model
    prompts = _held_out(folder.root / subject.sets, evaluation)
    features = _projected(chosen)
    rows: list[dict[str, Any]] = [
        {"name": "the model", "replies": stock_replies(base, prompts, N_TOKENS)}
    ]
    bakes: tuple[tuple[str, Sequence[str], str], ...] = (
        ("features projected out, baked", features, f"{RUN}-features"),
        ("difference of means projected out, baked", ("--edit", f"{means} project"), f"{RUN}-out"),
        ("difference of means subtracted, baked", ("--edit", f"{means} add -1"), f"{RUN}-add"),
    )
    for name, edits, out in bakes:
        command = _bake(subject, edits, out)
        row: dict[str, Any] = {"name": name, "forced": False}
        try:
            baked = saescope(folder, *command)
        except CommandFailed:
            row["forced"] = True
            baked = saescope(folder, *command, "--force")
        row |= {"method": baked["method"], "exact": baked["exact"]}
        row["replies"] = stock_replies(folder.root / out, prompts, N_TOKENS)
        rows.append(row)
    saescope(folder, *_lora(subject, features, f"{RUN}-lora"))
    adapter = folder.root / f"{RUN}-lora"
    replies = stock_replies(base, prompts, N_TOKENS, adapter)
    rows.append({"name": "features projected out, LoRA in peft", "replies": replies})
    return rows


def _stock_row(row: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """Declined replies of each set by both readers."""
    judge = ss.judges.read_behaviour("declining")
    assert isinstance(judge, ss.judges.PhraseJudge)
    sets: dict[str, dict[str, Any]] = {}
    for one, reply in zip(evaluation["replies"], row["replies"], strict=True):
        counts = sets.setdefault(one["set"], {"n": 0, "phrases": 0, "second": 0})
        counts["n"] += 1
        counts["phrases"] += judge.label(reply) is not None
        counts["second"] += declines(reply)
    kept = {key: value for key, value in row.items() if key != "replies"}
    return kept | {"sets": sets}


def _second_error() -> dict[str, Any]:
    """The second reader's own error on the English replies with known labels."""
    rows = map(json.loads, KNOWN.read_text(encoding="utf-8").splitlines())
    known = [row for row in rows if row["language"] == "en"]
    shows = [declines(row["text"]) for row in known if row["shows"]]
    others = [declines(row["text"]) for row in known if not row["shows"]]
    return {
        "missed": shows.count(False),
        "of_shown": len(shows),
        "flagged": others.count(True),
        "of_others": len(others),
    }


def _agreement(evaluation: dict[str, Any]) -> dict[str, Any]:
    """How far the two readers agree on all replies of the evaluation."""
    pairs = [
        (one["labels"][title] is not None, declines(text))
        for one in evaluation["replies"]
        for title, text in one["by"].items()
        if one["labels"][title] not in ("empty", "unscored", "unfinished")
    ]
    same = sum(first == second for first, second in pairs) / len(pairs)
    return {"replies": len(pairs), "kappa": kappa(pairs), "same": round(same, 4)}


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa of two readers; None if both give every reply the same label."""
    n = len(pairs)
    first, second = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    by_chance = first * second + (1 - first) * (1 - second)
    if by_chance == 1:
        return None
    return (sum(a == b for a, b in pairs) / n - by_chance) / (1 - by_chance)


def _examples(
    evaluation: dict[str, Any], stock: Sequence[dict[str, Any]], declined: str
) -> list[dict[str, Any]]:
    """Replies before and after: steered at the chosen strength, and of the first baked folder."""
    steered = f"edits x{evaluation['chosen']['strength']:g}"
    baked = stock[1]["replies"]
    found = []
    shown = {one["set"]: 0 for one in evaluation["replies"]}
    for one, reply in zip(evaluation["replies"], baked, strict=True):
        most = EXAMPLES if one["set"] == declined else 1
        if shown[one["set"]] < most:
            shown[one["set"]] += 1
            found.append(
                {
                    "set": one["set"],
                    "request": one["prompt"].removeprefix("[user] "),
                    "before": one["by"]["none"],
                    "steered": one["by"][steered],
                    "baked": reply,
                }
            )
    return found
