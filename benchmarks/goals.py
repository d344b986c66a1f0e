"""Performance goals: one row per goal, with its target and what was measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.results import Results, median_of, values
from benchmarks.shapes import LARGE, MAIN, SHAPES, SMALL
from benchmarks.tables import NONE, costs_in_percent, fastest_rates, table

ResultsByShape = Mapping[str, Results]
Figure = Callable[[ResultsByShape], float | None]


def goals_table(results: ResultsByShape) -> str:
    """All goals as a Markdown table."""
    head = ["goal", "target", "measured", "met"]
    return table(head, [goal.row(results) for goal in GOALS]) + "\n"


@dataclass(frozen=True)
class Goal:
    """A figure and its bound: a maximum, or a minimum if `at_least`; None: any value will do."""

    title: str
    bound: float | None
    style: str
    figure: Figure
    at_least: bool = False

    def row(self, results: ResultsByShape) -> list[str]:
        """Cells of its row: goal, target, measured, met."""
        value = self.figure(results)
        if value is None:
            return [self.title, self._target(), "not measured", NONE]
        met = "yes" if self._is_met(value) else "**no**"
        return [self.title, self._target(), format(value, self.style), met]

    def _target(self) -> str:
        if self.bound is None:
            return "completes"
        direction = "at least" if self.at_least else "at most"
        return f"{direction} {self.bound:{self.style}}"

    def _is_met(self, value: float) -> bool:
        if self.bound is None:
            return True
        return value >= self.bound if self.at_least else value <= self.bound


def _figure_of(shape: str, subject: str, task: str, name: str) -> Figure:
    def figure(results: ResultsByShape) -> float | None:
        if shape not in results:
            return None
        return median_of(results[shape].of(subject, task), name)

    return figure


def _main(subject: str, task: str, name: str) -> Figure:
    return _figure_of(MAIN, subject, task, name)


def _large(task: str, name: str) -> Figure:
    return _figure_of(LARGE, "large", task, name)


def _ratio(above: Figure, below: Figure) -> Figure:
    def ratio(results: ResultsByShape) -> float | None:
        numerator, denominator = above(results), below(results)
        if numerator is None or denominator is None:
            return None
        return numerator / denominator

    return ratio


def _against(subject: str, task: str, other: str, name: str) -> Figure:
    """A figure of one task relative to that of another."""
    return _ratio(_main(subject, task, name), _main(subject, other, name))


def _share_of_rate(subject: str, dtype: str) -> Figure:
    """The share of the fastest matmul rate of a dtype, or of any dtype if it is empty."""
    shape = SHAPES[MAIN]

    def tokens_per_s(results: ResultsByShape) -> float | None:
        if MAIN not in results:
            return None
        rates = fastest_rates(results[MAIN], subject)
        fastest = max((rate for name, rate in rates.items() if dtype in name), default=0.0)
        return fastest / shape.token_operations(shape.middle) or None

    return _ratio(_main(subject, "saescope", "tokens_per_s"), tokens_per_s)


def _steering_cost(gate: str) -> Figure:
    def cost(results: ResultsByShape) -> float | None:
        if MAIN not in results:
            return None
        records = results[MAIN].of("steered", "steered")
        costs = costs_in_percent(values(records, gate), values(records, "unsteered"))
        return median(costs) if costs else None

    return cost


def _generation(dtype: str) -> Figure:
    def seconds(name: str) -> Figure:
        return _figure_of(SMALL, "generation", "generation", f"{dtype}, {name}")

    return _ratio(seconds("saescope"), seconds("transformers"))


def _gigabytes(figure: Figure) -> Figure:
    return _ratio(figure, lambda _results: 1e9)


def _write_speed(task: str) -> Figure:
    return _ratio(_main("bake", task, "bytes"), _main("bake", task, "wall_s"))


_TOKENS = "tokens_per_s"
GOALS = (
    Goal(
        "60 short prompts: tokens/s relative to the article's loop",
        7,
        ".1f",
        _against("short", "saescope", "article", _TOKENS),
        at_least=True,
    ),
    Goal(
        "60 short prompts: tokens/s relative to cut transformers",
        1,
        ".2f",
        _against("short", "saescope", "transformers", _TOKENS),
        at_least=True,
    ),
    Goal(
        "200 × 64 tokens: share of the bfloat16 matmul rate",
        0.9,
        ".2f",
        _share_of_rate("many", "bfloat16"),
        at_least=True,
    ),
    Goal(
        "200 × 64 tokens: share of the fastest matmul rate",
        0.9,
        ".2f",
        _share_of_rate("many", ""),
        at_least=True,
    ),
    Goal(
        "float32, 24 × 64 tokens: tokens/s relative to cut transformers",
        1.4,
        ".2f",
        _against("float32", "saescope", "transformers", _TOKENS),
        at_least=True,
    ),
    Goal(
        "streamed, 200 × 64 tokens: peak RSS relative to cut transformers",
        0.45,
        ".2f",
        _against("many", "streamed", "transformers", "peak_rss"),
    ),
    Goal(
        "streamed, 200 × 64 tokens: process time relative to cut transformers",
        1.15,
        ".2f",
        _against("many", "streamed", "transformers", "wall_s"),
    ),
    Goal(
        "Qwen3-8B, one layer: peak anonymous memory, GB",
        4,
        ".2f",
        _gigabytes(_large("one", "peak_anonymous")),
    ),
    Goal(
        "Qwen3-8B, one layer, under a hard limit of 6 GB: seconds",
        None,
        ".0f",
        _large("one limited", "wall_s"),
    ),
    Goal(
        "Qwen3-8B, all 36 layers: peak RSS relative to one layer",
        1.5,
        ".2f",
        _ratio(_large("all", "peak_rss"), _large("one", "peak_rss")),
    ),
    Goal(
        "shared prefix of 200 tokens: speedup",
        3,
        ".1f",
        _ratio(_main("prefix", "prefix", "once"), _main("prefix", "prefix", "every")),
        at_least=True,
    ),
    Goal(
        "encoding 512 × 65,536, float32: time relative to the matmul alone",
        1.05,
        ".2f",
        _ratio(_main("encode", "encode", "encode"), _main("encode", "encode", "matmul")),
    ),
    Goal("`saescope --help`, s", 0.3, ".2f", _main("startup", "help", "wall_s")),
    Goal(
        "`saescope contrast` on a stored run of one layer, s",
        1.5,
        ".2f",
        _main("startup", "one", "wall_s"),
    ),
    Goal(
        "greedy generation of 32 prompts, bfloat16: time relative to transformers",
        1.05,
        ".2f",
        _generation("bfloat16"),
    ),
    Goal(
        "the same in float32",
        1.05,
        ".2f",
        _generation("float32"),
    ),
    Goal(
        "13 conditions on SmolLM2-135M: CPU time relative to transformers with hooks",
        0.5,
        ".2f",
        _ratio(
            _main("conditions", "conditions", "saescope"),
            _main("conditions", "conditions", "plain"),
        ),
    ),
    Goal("decoding with 8 edits (gate relu): cost, %", 2, ".1f", _steering_cost("relu")),
    Goal(
        "`saescope bake`: peak anonymous memory, GB",
        3,
        ".2f",
        _gigabytes(_main("bake", "bake", "peak_anonymous")),
    ),
    Goal(
        "`saescope bake --no-measure`: speed relative to a copy",
        1 / 3,
        ".2f",
        _ratio(_write_speed("write"), _write_speed("copy")),
        at_least=True,
    ),
)
