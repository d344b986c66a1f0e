"""What saescope is to reach beside the others, and what was measured: one line a goal."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.results import Results, figure, middle
from benchmarks.shapes import SHAPES
from benchmarks.tables import NONE, rates, table

Measured = Callable[[Mapping[str, Results]], float | None]
MAIN, LARGE = "qwen3-1.7b", "qwen3-8b"


@dataclass(frozen=True)
class Goal:
    """A figure and its bound, which is the most it may be unless `at_least`; without one, that it ends is enough."""

    title: str
    bound: float | None
    style: str
    measured: Measured
    at_least: bool = False

    def row(self, results: Mapping[str, Results]) -> list[str]:
        """Its line: what, wanted, measured, reached."""
        value = self.measured(results)
        if self.bound is None:
            wanted, reached = "that it ends", True
        else:
            wanted = f"{'at least' if self.at_least else 'at most'} {self.bound:{self.style}}"
            reached = value is not None and (
                value >= self.bound if self.at_least else value <= self.bound
            )
        if value is None:
            return [self.title, wanted, "not measured", NONE]
        return [self.title, wanted, format(value, self.style), "yes" if reached else "**no**"]


def goals_table(results: Mapping[str, Results]) -> str:
    """All goals, from the results of each shape."""
    return (
        table(["goal", "wanted", "measured", "reached"], [goal.row(results) for goal in GOALS])
        + "\n"
    )


def _value(shape: str, subject: str, task: str, name: str) -> Measured:
    return lambda results: (
        middle(results[shape].of(subject, task), name) if shape in results else None
    )


def _over(ours: Measured, theirs: Measured) -> Measured:
    def ratio(results: Mapping[str, Results]) -> float | None:
        above, below = ours(results), theirs(results)
        return above / below if above is not None and below else None

    return ratio


def _main(subject: str, task: str, name: str) -> Measured:
    return _value(MAIN, subject, task, name)


def _against(subject: str, task: str, other: str, name: str) -> Measured:
    return _over(_main(subject, task, name), _main(subject, other, name))


def _of_rate(subject: str, dtype: str) -> Measured:
    """The share of what the matrix products of a dtype would allow; the fastest of both where it is empty."""
    shape = SHAPES[MAIN]

    def rate(results: Mapping[str, Results]) -> float | None:
        best = rates(results[MAIN], subject) if MAIN in results else {}
        allowed = max((value for name, value in best.items() if dtype in name), default=0.0)
        return allowed / shape.token_operations(shape.middle) or None

    return _over(_main(subject, "saescope", "tokens_per_s"), rate)


def _steering(gate: str) -> Measured:
    def cost(results: Mapping[str, Results]) -> float | None:
        records = results[MAIN].of("steered", "steered") if MAIN in results else []
        pairs = zip(figure(records, "unsteered"), figure(records, gate), strict=True)
        costs = [100 * (plain / steered - 1) for plain, steered in pairs]
        return median(costs) if costs else None

    return cost


def _gigabytes(measured: Measured) -> Measured:
    return _over(measured, lambda _results: 1e9)


def _throughput(task: str) -> Measured:
    return _over(_main("bake", task, "bytes"), _main("bake", task, "wall_s"))


_TOKENS = "tokens_per_s"
GOALS = (
    Goal("60 short prompts: tokens/s, times the article's loop", 7, ".1f",
         _against("short", "saescope", "article", _TOKENS), True),
    Goal("60 short prompts: tokens/s, times one line of transformers", 1, ".2f",
         _against("short", "saescope", "transformers", _TOKENS), True),
    Goal("200 × 64 tokens: of what bfloat16 products allow", 0.9, ".2f", _of_rate("many", "bfloat16"), True),
    Goal("200 × 64 tokens: of what the fastest products allow", 0.9, ".2f", _of_rate("many", ""), True),
    Goal("float32, 24 × 64 tokens: times one line of transformers", 1.4, ".2f",
         _against("float32", "saescope", "transformers", _TOKENS), True),
    Goal("streamed, 200 × 64 tokens: peak memory, of one line of transformers", 0.45, ".2f",
         _against("many", "streamed", "transformers", "peak_rss")),
    Goal("streamed, 200 × 64 tokens: whole process, of one line of transformers", 1.15, ".2f",
         _against("many", "streamed", "transformers", "wall_s")),
    Goal("Qwen3-8B, one layer: peak not in files, GB", 4, ".2f",
         _gigabytes(_value(LARGE, "large", "one", "peak_anonymous"))),
    Goal("Qwen3-8B, one layer, inside a hard limit of 6 GB: seconds", None, ".0f",
         _value(LARGE, "large", "one limited", "wall_s")),
    Goal("Qwen3-8B, all 36 layers: peak, of one layer's", 1.5, ".2f",
         _over(_value(LARGE, "large", "all", "peak_rss"), _value(LARGE, "large", "one", "peak_rss"))),
    Goal("a shared prefix of 200 tokens: times the tokens/s", 3, ".1f",
         _over(_main("prefix", "prefix", "once"), _main("prefix", "prefix", "every")), True),
    Goal("encoding 512 × 65,536, float32: of the bare product", 1.05, ".2f",
         _over(_main("encode", "encode", "encode"), _main("encode", "encode", "matmul"))),
    Goal("`saescope --help`, s", 0.3, ".2f", _main("startup", "help", "wall_s")),
    Goal("`saescope contrast` on a stored run of one layer, s", 1.5, ".2f", _main("startup", "one", "wall_s")),
    Goal("decoding with 8 edits (gate relu): cost, %", 2, ".1f", _steering("relu")),
    Goal("`saescope bake`: peak not in files, GB", 3, ".2f", _gigabytes(_main("bake", "bake", "peak_anonymous"))),
    Goal("`saescope bake --no-measure`: of the speed of a copy", 1 / 3, ".2f",
         _over(_throughput("write"), _throughput("copy")), True),
)  # fmt: skip
