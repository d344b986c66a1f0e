"""Results as Markdown: one function a kind of table, each from records to text."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.results import Record, Results, figure, middle
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from benchmarks.subjects import Subject
    from benchmarks.tasks import Place

NONE = "–"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def spread(values: Sequence[float], style: str) -> str:
    """The median, and in brackets the least and the most where they differ as shown."""
    if not values:
        return NONE
    least, centre, most = (
        format(value, style) for value in (min(values), median(values), max(values))
    )
    return centre if least == most else f"{centre} ({least}–{most})"


def megabytes(records: list[Record], name: str) -> str:
    """A figure's median in MB."""
    value = middle(records, name)
    return NONE if value is None else f"{value / 1e6:,.0f}"


def ways(workload: Workload, results: Results, subject: "Subject", place: "Place") -> str:
    """Ways to compute features: speed, its share of what products allow, memory, agreement."""
    best = rates(results, subject.name)
    flop = place.shape.token_operations(place.layer)
    dtype = "float32" if subject.name == "float32" else "bfloat16"
    tasks = [task for task in subject.tasks if task.name != "rates"]
    device = place.device != "cpu"
    head = [
        f"{workload.title}, {sum(workload.lengths):,} tokens",
        "tokens/s",
        f"of the {dtype} rate",
    ]
    head += [
        *(["of the best rate"] if best[dtype] < max(best.values()) else []),
        "loading, s",
        "whole process, s",
    ]
    head += [
        "peak, MB",
        "not in files, MB",
        *(["on the device, MB"] if device else []),
        "features shared",
    ]
    rows = []
    for task in tasks:
        records, error = results.of(subject.name, task.name), results.error(subject.name, task.name)
        if not records:
            rows.append([task.title, error or "not measured", *[NONE] * (len(head) - 2)])
            continue
        speed = median(figure(records, "tokens_per_s"))
        row = [
            task.title,
            spread(figure(records, "tokens_per_s"), ",.0f"),
            _share(speed * flop, best[dtype]),
        ]
        row += (
            [_share(speed * flop, max(best.values()))] if best[dtype] < max(best.values()) else []
        )
        row += [spread(figure(records, "load_s"), ".1f"), spread(figure(records, "wall_s"), ".1f")]
        row += [megabytes(records, "peak_rss"), megabytes(records, "peak_anonymous")]
        row += [megabytes(records, "peak_device")] if device else []
        shared = middle(records, "shared")
        rows.append([*row, NONE if shared is None else f"{shared:.1%}"])
    return f"{table(head, rows)}\n\n{_rates_line(results, subject.name, flop)}"


def _share(done: float, rate: float) -> str:
    return f"{done / rate:.2f}" if rate else NONE


def rates(results: Results, subject: str) -> dict[str, float]:
    """The best path's median rate of each dtype in operations a second; 0 where none was measured."""
    best = {"bfloat16": 0.0, "float32": 0.0}
    for name, rate in _paths(results, subject).items():
        dtype = name.split(",")[0]
        best[dtype] = max(best[dtype], rate)
    return best


def _paths(results: Results, subject: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for record in results.of(subject, "rates"):
        for name, rate in record.figures["rates"].items():
            found.setdefault(name, []).append(rate)
    return {name: median(values) for name, values in found.items()}


def _rates_line(results: Results, subject: str, flop: float) -> str:
    """Which products were measured, and what a token takes."""
    paths = _paths(results, subject)
    if not paths:
        return "The rate of matrix products was not measured."
    by_rows: dict[str, dict[str, str]] = {}
    for name, rate in paths.items():
        dtype, path, rows = name.split(", ")
        by_rows.setdefault(f"{dtype}, {path}", {})[rows] = f"{rate / 1e9:,.0f} at {rows}"
    shown = "; ".join(f"{path} {', '.join(found.values())}" for path, found in by_rows.items())
    return f"A token takes {flop / 1e9:.2f} GFLOP. Matrix products of one block here, GFLOP/s: {shown}."


def prefix(results: Results, subject: "Subject", _place: "Place") -> str:
    """A shared prefix run once and with every prompt."""
    records = results.of(subject.name, "prefix")
    if not records:
        return _absent(results, subject)
    once, every = figure(records, "once"), figure(records, "every")
    tokens, shared, apart = (
        median(figure(records, name)) for name in ("tokens", "shared", "resid_diff")
    )
    rows = [
        ["with every prompt", spread(every, ",.0f"), "1.0"],
        ["run once", spread(once, ",.0f"), _ratio(once, every, ".1f")],
    ]
    after = f"Of the k features {shared:.1%} are the same; residuals are {apart:.1e} apart."
    return f"{table([f'200 tokens shared by 60 prompts, {tokens:,.0f} in all', 'tokens/s', 'times'], rows)}\n\n{after}"


def encoding(results: Results, subject: "Subject", _place: "Place") -> str:
    """Sae.encode beside what it is made of."""
    records = results.of(subject.name, "encode")
    if not records:
        return _absent(results, subject)
    product = figure(records, "matmul")
    names = {
        "matmul": "the bare matrix product",
        "matmul and topk": "and torch's top k of all of it",
        "encode": "**Sae.encode**",
    }
    rows = [
        [
            title,
            spread([1000 * s for s in figure(records, name)], ",.0f"),
            _ratio(figure(records, name), product),
        ]
        for name, title in names.items()
    ]
    grown = megabytes(records, "grown")
    head = ["512 residuals of 4,096 to 65,536 features, float32", "ms", "of the product"]
    return f"{table(head, rows)}\n\nMemory that encoding takes beside weights and residuals: {grown} MB."


def steering(results: Results, subject: "Subject", place: "Place") -> str:
    """Decoding with and without edits."""
    records = results.of(subject.name, "steered")
    if not records:
        return _absent(results, subject)
    plain = figure(records, "unsteered")
    names = {
        "unsteered": "without edits",
        "relu": "8 edits, gate relu",
        "topk": "8 edits, gate topk",
    }
    rows = [
        [title, spread(figure(records, name), ".2f"), _cost(figure(records, name), plain)]
        for name, title in names.items()
    ]
    return table(
        [f"greedy decoding, layer {place.layer}", "tokens/s", "cost: median of pairs"], rows
    )


def _cost(steered: Sequence[float], plain: Sequence[float]) -> str:
    """The share of time that edits add, turn by turn."""
    costs = [p / s - 1 for s, p in zip(steered, plain, strict=True)]
    return NONE if steered == plain else spread([100 * cost for cost in costs], ".1f") + " %"


def whole_processes(results: Results, subject: "Subject", _place: "Place") -> str:
    """Commands from the shell."""
    rows = []
    for task in subject.tasks:
        records = results.of(subject.name, task.name)
        seconds = (
            spread(figure(records, "wall_s"), ".2f")
            if records
            else _why(results, subject, task.name)
        )
        rows.append([task.title, seconds, megabytes(records, "peak_rss")])
    return table(["whole process", "s", "peak, MB"], rows)


def baking(results: Results, subject: "Subject", _place: "Place") -> str:
    """A baked checkpoint beside a copy of the same bytes."""
    rows = []
    for task in subject.tasks:
        records = results.of(subject.name, task.name)
        if not records:
            rows.append([task.title, _why(results, subject, task.name), NONE, NONE])
            continue
        speeds = [r.figures["bytes"] / r.figures["wall_s"] / 1e6 for r in records]
        memory = megabytes(records, "peak_anonymous")
        rows.append(
            [task.title, spread(figure(records, "wall_s"), ".1f"), spread(speeds, ",.0f"), memory]
        )
    return table(["to the disk", "s", "MB/s", "peak not in files, MB"], rows)


def limited(results: Results, subject: "Subject", place: "Place") -> str:
    """A large model's jobs, free and under a hard limit."""
    rows, names = [], set()
    for task in subject.tasks:
        records = results.of(subject.name, task.name)
        if not records:
            rows.append([task.title, _why(results, subject, task.name), *[NONE] * 4])
            continue
        names |= {r.figures["limit"] for r in records if "limit" in r.figures}
        memory = [megabytes(records, name) for name in ("peak_rss", "peak_anonymous", "peak_file")]
        charged = [r for r in records if r.figures.get("peak_limited") is not None]
        rows.append(
            [
                task.title,
                spread(figure(records, "wall_s"), ".1f"),
                *memory,
                megabytes(charged, "peak_limited"),
            ]
        )
    head = [
        f"60 prompts, {place.shape.name}",
        "whole process, s",
        "peak, MB",
        "not in files, MB",
        "in files, MB",
    ]
    text = table([*head, "charged to the limit, page cache included, MB"], rows)
    one, every = (middle(results.of(subject.name, name), "peak_rss") for name in ("one", "all"))
    after = [f"All layers against one: {every / one:.2f} times the peak."] if one and every else []
    after += [f"The limit: {name}." for name in sorted(names)]
    return text + ("\n\n" + " ".join(after) if after else "")


def _ratio(ours: Sequence[float], theirs: Sequence[float], style: str = ".2f") -> str:
    return format(median(ours) / median(theirs), style)


def _absent(results: Results, subject: "Subject") -> str:
    return f"{subject.name}: {_why(results, subject, subject.tasks[0].name)}"


def _why(results: Results, subject: "Subject", task: str) -> str:
    return results.error(subject.name, task) or "not measured"
