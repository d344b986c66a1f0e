"""`saescope detect`: features that detect a behaviour, and a detector made of them."""

from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console

from saescope.analysis.classify import Scores
from saescope.analysis.detection import DetectedFeature, Detection, PromptFirings
from saescope.analysis.ranking import why_ranks_differ
from saescope.analysis.sentences import detection_sentence
from saescope.jobs.detect import DetectAnswer, DetectRequest
from saescope.sources.catalog import Feature
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.options import Output, command
from saescope.surfaces.cli.show import (
    TERMINAL,
    cell,
    interval,
    masked_sentence,
    note,
    number,
    p_value,
    percent,
    present,
    print_finding,
    print_sae_fits,
    print_warnings,
)
from saescope.surfaces.cli.tables import ResultTable

_FEATURES_SHOWN, _FIRING_ROWS, _TOP_FEATURES = 20, 8, 5
# Up to so many prompts, each is one mark; above, marks become counts.
_MAX_MARKS = 40
# Marks the rows of sets that a detector was chosen against: there it is no failure.
_NOT_EXPECTED = "*"


@command
def detect(request: DetectRequest, *, output: Output = Output()) -> None:
    answer = request.run(TERMINAL)
    present(answer, output, lambda console: show_detection(console, answer.result))
    if not output.json:
        _note_files(answer)


def _note_files(answer: DetectAnswer) -> None:
    result = answer.result
    if answer.edits:
        note(f"edits: {answer.edits}")
    else:
        note(f"no feature fires more often on {result.target}: no edits were written")
    if answer.direction:
        layer = result.classifier.layer
        note(f'direction: {answer.direction}; steer with "{answer.direction}@{layer} add 1"')
    note(f"run: {answer.run.path}")


def show_detection(console: Console, result: Detection) -> None:
    """Print the finding, features, prompts they fire on, detectors, and Qwen-Scope's measures."""
    print_sae_fits(console, result.sae_fits, result.run)
    print_finding(console, detection_sentence(result))
    _features(result).print(console)
    print_line(console, _chance_sentence(result))
    others = _detector_features(result)
    if others is not None:
        others.print(console)
    if result.features and result.first_by_tokens is not None:
        first = result.features[0].feature
        sentence = why_ranks_differ(result.target, result.first_by_tokens, first)
        if sentence:
            print_line(console, cell(sentence))
    _firings(result).print(console)
    _detectors(result).print(console)
    if result.classifier.silent_on:
        print_line(
            console,
            f"{_NOT_EXPECTED} not expected to transfer: the detector was chosen to be silent "
            "there.",
        )
    _measures(result).print(console)
    print_line(console, masked_sentence(result.masked))
    print_warnings(console, result.warnings)


def _features(result: Detection) -> ResultTable:
    rule = result.settings
    table = _feature_table(
        f"features on ≥ {100 * rule.min_rate:g} % of {cell(result.target)} prompts and "
        f"≤ {100 * rule.max_other:g} % elsewhere"
    )
    for feature in _shown_features(result):
        table.add(*_feature_cells(feature))
    return table


def _shown_features(result: Detection) -> Sequence[DetectedFeature]:
    """Return the best features that pass the thresholds, confirmed ones first."""
    return sorted(result.features, key=lambda feature: not feature.confirmed)[:_FEATURES_SHOWN]


def _detector_features(result: Detection) -> ResultTable | None:
    """The detector's features that the table of passing ones does not show."""
    shown = {feature.feature for feature in _shown_features(result)}
    others = [feature for feature in result.detector if feature.feature not in shown]
    if not others:
        return None
    title = "other features that the detector uses"
    if not any(feature.passes for feature in others):
        title += ": below these thresholds by themselves"
    table = _feature_table(title)
    for feature in others:
        table.add(*_feature_cells(feature))
    return table


def _feature_table(title: str) -> ResultTable:
    return ResultTable(
        title,
        text=("feature",),
        numbers=(
            "prompts / elsewhere",
            "held out",
            "95 % CI",
            "holds",
            "confirmed",
            "monolinguality",
            "group",
        ),
        after=("next set",),
        optional=("monolinguality", "group", "next set", "holds", "95 % CI"),
    )


def _feature_cells(feature: DetectedFeature) -> list[str]:
    confirmed = "no"
    if feature.confirmed:
        confirmed = f"[green]q {p_value(feature.holdout_q)}[/]"
    return [
        str(feature.feature),
        f"{100 * feature.prompt_rate:.0f} / {100 * feature.prompt_other_rate:.0f} %",
        f"{100 * feature.holdout_rate:.0f} / {100 * feature.holdout_other_rate:.0f} %",
        interval(feature.holdout_ci),
        "yes" if feature.holdout_passes else "no",
        confirmed,
        f"{feature.monolinguality:.3g}",
        str(feature.group),
        cell(feature.other_set),
    ]


def _chance_sentence(result: Detection) -> str:
    count = len(result.features)
    hidden = ""
    if count > _FEATURES_SHOWN:
        hidden = f" ({count - _FEATURES_SHOWN} not shown)"
    verb = "passes" if count == 1 else "pass"
    return (
        f"{count} {verb} on discovery prompts{hidden}. With shuffled labels "
        f"{result.by_chance:.2f} pass (mean of {result.settings.shuffles} shuffles; 95 % have at "
        f"most {result.by_chance_95:.0f})."
    )


def _firings(result: Detection) -> ResultTable:
    """One mark per prompt, █ where the feature fires; counts if the marks would not fit."""
    names = [result.target, *result.against]
    prompts: defaultdict[tuple[str, str], list[PromptFirings]] = defaultdict(list)
    for prompt in result.firings:
        prompts[prompt.set, prompt.split].append(prompt)
    columns = [[prompts[name, part] for part in ("discovery", "holdout")] for name in names]
    as_counts = sum(len(part) for parts in columns for part in parts) > _MAX_MARKS
    table = ResultTable(
        "prompts it fires on (discovery | held out)",
        text=("feature",),
        numbers=[cell(name) for name in names],
        optional=[cell(name) for name in result.against[::-1]],
    )
    for feature in _firing_rows(result):
        cells = [_marks(parts, feature, as_counts=as_counts) for parts in columns]
        table.add(str(feature), *cells)
    return table


def _firing_rows(result: Detection) -> list[Feature]:
    """Return all features of the detector, then the best that pass as far as there is room."""
    used = result.classifier.features
    best = [feature.feature for feature in result.features[:_TOP_FEATURES]]
    unique = dict.fromkeys([*used, *best])
    return list(unique)[: max(_FIRING_ROWS, len(used))]


def _marks(parts: Sequence[Sequence[PromptFirings]], feature: Feature, *, as_counts: bool) -> str:
    texts = []
    for prompts in parts:
        fires = [feature in prompt.fires for prompt in prompts]
        if as_counts:
            texts.append(f"{sum(fires)}/{len(fires)}")
        else:
            texts.append("".join("█" if fired else "·" for fired in fires))
    return " | ".join(texts)


def _detectors(result: Detection) -> ResultTable:
    detector = result.classifier
    table = ResultTable(
        f"detectors on held-out prompts, layer {detector.layer}",
        text=("detector", "tried on"),
        numbers=("F1", "95 % CI", "precision", "recall", "false alarms", "always-yes F1"),
        optional=("always-yes F1", "false alarms", "precision"),
    )
    names = ", ".join(map(str, detector.features)) or "none"
    rule = f"any of {names}" if len(detector.features) > 1 else names
    target = cell(result.target)
    table.add(rule, target, *_score_cells(detector.holdout))
    for name, scores in detector.baselines.items():
        table.add(name.replace("_", " "), target, *_score_cells(scores))
    for name, (rule_scores, others) in detector.transfer.items():
        table.end_section()
        expected = name not in detector.silent_on
        tried_on = cell(name) if expected else f"{cell(name)}{_NOT_EXPECTED}"
        table.add(rule, tried_on, *_score_cells(rule_scores))
        table.add("probe", tried_on, *_score_cells(others["probe"]))
    return table


def _score_cells(scores: Scores) -> Sequence[str]:
    ci = "-"
    if scores.f1_ci:
        low, high = scores.f1_ci
        ci = f"{low:.2f}-{high:.2f}"
    return (
        number(scores.f1, ".2f"),
        ci,
        percent(scores.precision),
        percent(scores.recall),
        percent(scores.false_positive_rate),
        number(scores.always_f1, ".2f"),
    )


def _measures(result: Detection) -> ResultTable:
    table = ResultTable(
        "features at the last position of each prompt",
        text=("set",),
        numbers=("features", "redundancy", "most shared with", "overlap"),
    )
    for name, measures in result.sets.items():
        nearest = max(measures.overlap, key=lambda other: measures.overlap[other], default=None)
        overlap = None if nearest is None else measures.overlap[nearest]
        table.add(
            cell(name),
            str(measures.features),
            f"{measures.redundancy:.2f}",
            cell(nearest or "-"),
            percent(overlap),
        )
    return table
