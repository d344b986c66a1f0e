"""Figures as the page writes them, and Markdown around them."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_COLUMNS = 100


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share as percentage without its sign; `–` if it is not known."""
    if share is None:
        return "–"
    return f"{round(100 * share, digits) + 0.0:.{digits}f}"  # no -0


def share_ci(share: float | None, ci: Sequence[float]) -> str:
    """Return a share with its interval: `83 % (71-91)`."""
    return f"{percent(share)} % ({percent(ci[0])}-{percent(ci[1])})"


def number_ci(value: float, ci: Sequence[float]) -> str:
    """Return a number with its interval: `0.64 (0.60-0.68)`."""
    return f"{value:.2f} ({ci[0]:.2f} to {ci[1]:.2f})"


def nats(value: float | None) -> str:
    """Return KL per token in two digits; `–` if it was not measured."""
    if value is None:
        return "–"
    if 0 < abs(value) < 0.0001:
        return f"{value:.0e}"
    return f"{value:.2g}"


def listed(names: Iterable[object]) -> str:
    """Return `a`, `a and b` or `a, b and c`."""
    *first, last = map(str, names)
    return f"{', '.join(first)} and {last}" if first else last


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def command_block(commands: Sequence[str], why: str = "needs the models of scripts/real") -> str:
    """Return commands as a block that tests check and do not run."""
    lines = [line for command in commands for line in command.splitlines()]
    return "\n".join([f"<!-- not run: {why} -->", "```bash", *map(_fitted, lines), "```"])


def _fitted(line: str) -> str:
    """Return a line of a command; if it is too long, an option and its value on one each."""
    option, _, value = line.strip().partition(" ")
    if len(line) <= _COLUMNS or not option.startswith("--"):
        return line
    return f"    {option} \\\n    {value}"


def image(experiment: str, part: str, description: str) -> str:
    """Return a picture of an experiment."""
    return f"![{description}](images/real/{experiment}-{part}.svg)"


def paragraph(*sentences: str) -> str:
    """Return sentences as a paragraph of lines of at most 100 columns."""
    return "\n".join(_folded(sentences, _COLUMNS))


def quotation(*sentences: str) -> str:
    """Return sentences as a block quotation."""
    return "\n".join(f"> {line}" for line in _folded(sentences, _COLUMNS - 2))


def _folded(sentences: Sequence[str], width: int) -> list[str]:
    text = " ".join(" ".join(sentence.split()) for sentence in sentences if sentence)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def join(*parts: str) -> str:
    """Return parts of a section with empty lines between them."""
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def number(n: int) -> str:
    """Return a number up to ten as a word."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[n] if n < len(words) else f"{n:,}"


def best_key(values: Mapping[Any, float]) -> Any:
    """Return the key with the largest value."""
    return max(values, key=lambda key: values[key])
