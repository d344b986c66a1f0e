"""Render results as Markdown tables: one function per kind of subject."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import fill

from benchmarks.results import Record, Results, median_of, values
from benchmarks.subject import SubjectResults, Task
from benchmarks.workloads import Workload

NONE = "–"


def implementations(workload: Workload, measured: SubjectResults) -> str:
    """Implementations on one workload: speed, share of the matmul rate, memory, agreement."""
    subject, setup = measured.subject, measured.setup
    rates = fastest_rates(measured.results, subject.name)
    operations = setup.shape.token_operations(setup.layer)
    dtype = "float32" if subject.name == "float32" else "bfloat16"
    fastest = max(rates.values())

    columns = [
        _spread_column("tokens/s", "tokens_per_s", ",.0f"),
        _rate_column(f"share of the {dtype} rate", operations, rates[dtype]),
    ]
    if rates[dtype] < fastest:
        columns.append(_rate_column("share of the fastest rate", operations, fastest))
    columns += [
        _spread_column("load, s", "load_s", ".1f"),
        _spread_column("process, s", "wall_s", ".1f"),
        _megabytes_column("peak RSS, MB", "peak_rss"),
        _megabytes_column("anonymous, MB", "peak_anonymous"),
    ]
    if setup.device != "cpu":
        columns.append(_megabytes_column("device, MB", "peak_device"))
    columns.append(Column("same features", _shared_features))

    tasks = [task for task in subject.tasks if task.name != "rates"]
    title = f"{workload.title}, {sum(workload.lengths):,} tokens"
    rows = _table_of_tasks(measured, tasks, title, columns)
    return f"{rows}\n\n{_rates_line(measured.results, subject.name, operations)}"


def prefix(measured: SubjectResults) -> str:
    """A shared prefix run once, beside running it with every prompt."""
    records = measured.records("prefix")
    if not records:
        return _not_measured(measured)
    once, every = values(records, "once"), values(records, "every")
    tokens = median(values(records, "tokens"))
    shared = median(values(records, "shared"))
    difference = median(values(records, "resid_diff"))

    head = [f"60 prompts with a shared prefix of 200 tokens, {tokens:,.0f} tokens in all"]
    head += ["tokens/s", "speedup"]
    rows = [
        ["prefix run with every prompt", spread(every, ",.0f"), "1.0"],
        ["prefix run once", spread(once, ",.0f"), _ratio(once, every, ".1f")],
    ]
    agreement = f"{shared:.1%} of the top k features agree"
    after = f"{agreement}; the relative difference of residuals is {difference:.1e}."
    return f"{table(head, rows)}\n\n{after}"


def encoding(measured: SubjectResults) -> str:
    """Sae.encode beside the operations it consists of."""
    records = measured.records("encode")
    if not records:
        return _not_measured(measured)
    matmul = values(records, "matmul")
    titles = {
        "matmul": "matmul alone",
        "matmul and topk": "matmul, then torch.topk",
        "encode": "**Sae.encode**",
    }
    rows = []
    for name, title in titles.items():
        seconds = values(records, name)
        milliseconds = [1000 * value for value in seconds]
        rows.append([title, spread(milliseconds, ",.0f"), _ratio(seconds, matmul)])
    head = ["512 residuals, 4,096 to 65,536 features, float32", "ms", "relative to matmul"]
    memory = megabytes(records, "grown")
    return f"{table(head, rows)}\n\nPeak memory besides weights and residuals: {memory} MB."


def steering(measured: SubjectResults) -> str:
    """Decoding with and without edits."""
    records = measured.records("steered")
    if not records:
        return _not_measured(measured)
    unsteered = values(records, "unsteered")
    rows = [["without edits", spread(unsteered, ".2f"), NONE]]
    for name in ("relu", "topk"):
        steered = values(records, name)
        cost = spread(costs_in_percent(steered, unsteered), ".1f")
        rows.append([f"8 edits, gate {name}", spread(steered, ".2f"), f"{cost} %"])
    head = [f"greedy decoding, layer {measured.setup.layer}", "tokens/s", "cost per pair"]
    return table(head, rows)


def generation(measured: SubjectResults) -> str:
    """Greedy generation beside transformers' own, with the share of the same replies."""
    records = measured.records("generation")
    if not records:
        return _not_measured(measured)
    rows = []
    for dtype in ("bfloat16", "float32"):
        theirs, ours = (
            values(records, f"{dtype}, {name}") for name in ("transformers", "saescope")
        )
        same = median(values(records, f"{dtype}, same"))
        rows.append([f"transformers' `generate`, {dtype}", spread(theirs, ".2f"), NONE, NONE])
        rows.append(
            [f"**saescope**, {dtype}", spread(ours, ".2f"), _ratio(ours, theirs), f"{same:.0%}"]
        )
    head = ["32 prompts in one batch, 40 new tokens", "s", "relative", "same replies"]
    return table(head, rows)


def conditions(measured: SubjectResults) -> str:
    """The conditions of an evaluation beside transformers with hooks, on a real model."""
    records = measured.records("conditions")
    if not records:
        return _not_measured(measured)
    plain, ours = (values(records, name) for name in ("plain", "saescope"))
    same = median(values(records, "same"))
    n_conditions, prompts, texts = (
        int(median(values(records, name))) for name in ("conditions", "prompts", "texts")
    )
    rows = [
        ["transformers with hooks", spread(plain, ",.0f"), NONE, NONE],
        ["**saescope**", spread(ours, ",.0f"), _ratio(ours, plain), f"{same:.0%}"],
    ]
    title = f"{n_conditions} conditions, {prompts} prompts, {texts} texts, SmolLM2-135M"
    return table([title, "CPU s", "relative", "same replies"], rows)


def whole_processes(measured: SubjectResults) -> str:
    """Commands run from the shell."""
    columns = [
        _spread_column("s", "wall_s", ".2f"),
        _megabytes_column("peak RSS, MB", "peak_rss"),
    ]
    return _table_of_tasks(measured, measured.subject.tasks, "process", columns)


def baking(measured: SubjectResults) -> str:
    """A baked checkpoint beside a copy of the same bytes."""
    columns = [
        _spread_column("s", "wall_s", ".1f"),
        Column("MB/s", _write_speed),
        _megabytes_column("peak anonymous, MB", "peak_anonymous"),
    ]
    return _table_of_tasks(measured, measured.subject.tasks, "written to disk", columns)


def limited(measured: SubjectResults) -> str:
    """A large model's jobs, with and without a hard memory limit."""
    columns = [
        _spread_column("process, s", "wall_s", ".1f"),
        _megabytes_column("peak RSS, MB", "peak_rss"),
        _megabytes_column("anonymous, MB", "peak_anonymous"),
        _megabytes_column("mapped files, MB", "peak_file"),
        Column("charged to the limit, with page cache, MB", _charged_memory),
    ]
    title = f"60 prompts, {measured.setup.shape.name}"
    text = _table_of_tasks(measured, measured.subject.tasks, title, columns)

    notes = []
    one_layer = median_of(measured.records("one"), "peak_rss")
    all_layers = median_of(measured.records("all"), "peak_rss")
    if one_layer and all_layers:
        factor = f"{all_layers / one_layer:.2f}"
        notes.append(f"All layers need {factor} times the peak RSS of one layer.")
    records = measured.all_records()
    limits = {record.figures["limit"] for record in records if "limit" in record.figures}
    notes += [f"Limit: {name}." for name in sorted(limits)]
    return "\n\n".join([text, " ".join(notes)]) if notes else text


@dataclass(frozen=True)
class Column:
    """A column of a table with one row per task."""

    title: str
    cell: Callable[[list[Record]], str]


def _table_of_tasks(
    measured: SubjectResults, tasks: Sequence[Task], title: str, columns: Sequence[Column]
) -> str:
    """One row per task; the first cell of a task without records says why."""
    rows = []
    for task in tasks:
        records = measured.records(task.name)
        if records:
            cells = [column.cell(records) for column in columns]
        else:
            cells = [measured.reason(task.name)] + [NONE] * (len(columns) - 1)
        rows.append([task.title, *cells])
    return table([title, *(column.title for column in columns)], rows)


def _spread_column(title: str, name: str, style: str) -> Column:
    return Column(title, lambda records: spread(values(records, name), style))


def _megabytes_column(title: str, name: str) -> Column:
    return Column(title, lambda records: megabytes(records, name))


def _rate_column(title: str, operations: float, rate: float) -> Column:
    """The share of a matmul rate that an implementation reaches."""

    def share(records: list[Record]) -> str:
        if not rate:
            return NONE
        reached = median(values(records, "tokens_per_s")) * operations
        return f"{reached / rate:.2f}"

    return Column(title, share)


def _shared_features(records: list[Record]) -> str:
    shared = median_of(records, "shared")
    return NONE if shared is None else f"{shared:.1%}"


def _write_speed(records: list[Record]) -> str:
    speeds = [r.figures["bytes"] / r.figures["wall_s"] / 1e6 for r in records]
    return spread(speeds, ",.0f")


def _charged_memory(records: list[Record]) -> str:
    charged = [record for record in records if record.figures.get("peak_limited") is not None]
    return megabytes(charged, "peak_limited")


def fastest_rates(results: Results, subject: str) -> dict[str, float]:
    """Operations per second of each dtype by its fastest matmul; 0 if it was not measured."""
    fastest = {"bfloat16": 0.0, "float32": 0.0}
    for name, rate in _matmul_rates(results, subject).items():
        dtype = name.split(",")[0]
        fastest[dtype] = max(fastest[dtype], rate)
    return fastest


def _matmul_rates(results: Results, subject: str) -> dict[str, float]:
    """The median rate of each measured `dtype, kernel, rows`."""
    measured: dict[str, list[float]] = {}
    for record in results.of(subject, "rates"):
        for name, rate in record.figures["rates"].items():
            measured.setdefault(name, []).append(rate)
    return {name: median(rates) for name, rates in measured.items()}


def _rates_line(results: Results, subject: str, operations: float) -> str:
    """The matmul rates, and the operations per token."""
    rates = _matmul_rates(results, subject)
    if not rates:
        return "The matmul rate was not measured."
    by_kernel: dict[str, list[str]] = {}
    for name, rate in rates.items():
        dtype, kernel, rows = name.split(", ")
        at_rows = f"{rate / 1e9:,.0f} at {rows}"
        by_kernel.setdefault(f"{dtype}, {kernel}", []).append(at_rows)
    shown = "; ".join(f"{kernel} {', '.join(at)}" for kernel, at in by_kernel.items())
    per_token = f"{operations / 1e9:.2f} GFLOP per token"
    text = f"{per_token}. Matmul rates of one block on this machine, GFLOP/s: {shown}."
    return wrap(text)


def costs_in_percent(steered: Sequence[float], unsteered: Sequence[float]) -> list[float]:
    """Percent of time that edits add in each pair of speeds."""
    pairs = zip(steered, unsteered, strict=True)
    return [100 * (plain / edited - 1) for edited, plain in pairs]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [_line(head), "|---" * len(head) + "|"]
    lines += [_line(row) for row in rows]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def wrap(text: str) -> str:
    """A paragraph in lines of at most 100 columns."""
    return fill(text, width=100, break_long_words=False, break_on_hyphens=False)


def spread(numbers: Sequence[float], style: str) -> str:
    """The median, with minimum and maximum in brackets unless all are formatted alike."""
    if not numbers:
        return NONE
    least, centre, most = (
        format(number, style) for number in (min(numbers), median(numbers), max(numbers))
    )
    return centre if least == most else f"{centre} ({least}–{most})"


def megabytes(records: list[Record], name: str) -> str:
    """The median of a figure in MB."""
    value = median_of(records, name)
    return NONE if value is None else f"{value / 1e6:,.0f}"


def _ratio(ours: Sequence[float], theirs: Sequence[float], style: str = ".2f") -> str:
    return format(median(ours) / median(theirs), style)


def _not_measured(measured: SubjectResults) -> str:
    subject = measured.subject
    return f"{subject.name}: {measured.reason(subject.tasks[0].name)}"
