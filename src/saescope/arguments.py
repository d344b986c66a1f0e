"""Ranges of numeric arguments: part of a field's type, checked before anything is loaded.

A range belongs to the field (`seed: Seed = 0`), so requests, settings and the command line refuse
the same values in the same words.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from typing import Annotated, Any, final, get_args, get_type_hints

from saescope.errors import ArgumentError


@final
@dataclass(frozen=True)
class Range:
    """Which numbers an argument takes: `low` to `high`, both included.

    >>> Range(1, 9).check("n_top", 0)
    Traceback (most recent call last):
    saescope.errors.ArgumentError: n_top must be at least 1, got 0
    """

    low: int | float
    high: int | float
    whole: bool = True
    "Whole numbers only."
    excludes_low: bool = False
    excludes_high: bool = False
    rule: str = ""
    "What the value must be, in words. Default: the end that it passes."

    def check(self, name: str, value: Any) -> None:
        """Raise ArgumentError unless the value, or each value of a tuple, lies in the range.

        None and words such as `all` are choices of their own and pass.
        """
        if value is None or isinstance(value, str):
            return
        if isinstance(value, tuple | list):
            for item in value:
                self.check(name, item)
            return
        expected = Integral if self.whole else Real
        if isinstance(value, bool) or not isinstance(value, expected):
            kind = "a whole number" if self.whole else "a number"
            raise ArgumentError(name, f"must be {kind}, got {value!r:.40}")
        problem = self._problem(value)
        if problem:
            raise ArgumentError(name, f"must {self.rule or problem}, got {show_number(value)}")

    def _problem(self, value: Any) -> str:
        """Return which end the value passes; NaN passes the lower one."""
        if not (value > self.low or (value == self.low and not self.excludes_low)):
            if self.excludes_low:
                return f"be greater than {show_number(self.low)}"
            return "be 0 or more" if self.low == 0 else f"be at least {show_number(self.low)}"
        if value > self.high or (value == self.high and self.excludes_high):
            return f"be at most {show_number(self.high)}"
        return ""


def show_number(value: Any) -> str:
    """Format a number as people write it; very long ones by their size."""
    if isinstance(value, Integral) and abs(int(value)) < 10**12:
        return str(value)
    if isinstance(value, Integral) and abs(int(value)) > 10**300:
        return "a number of hundreds of digits"
    return f"{float(value):g}"


# Numbers from here on are typing errors: no job of that size ends.
_MANY = 10**9
COUNT = Range(1, _MANY)
COUNT_OR_ZERO = Range(0, _MANY)
# torch and NumPy both take seeds of this size.
SEED = Range(0, 2**63 - 1)
LAYER = Range(0, 100_000)
SHARE = Range(0, 1, whole=False, rule="lie between 0 and 1")
PART = Range(0, 1, whole=False, excludes_low=True, excludes_high=True, rule="lie between 0 and 1")
STRENGTH = Range(-1e6, 1e6, whole=False, rule="be numbers below 1e6 in size")
TEMPERATURE = Range(0, 1e6, whole=False, rule="be 0 (greedy) or more")
SECONDS = Range(0, 1e6, whole=False, excludes_low=True)
RATIO = Range(1, 1e6, whole=False, excludes_low=True)

Count = Annotated[int, COUNT]
CountOrZero = Annotated[int, COUNT_OR_ZERO]
Seed = Annotated[int, SEED]
Layer = Annotated[int, LAYER]
Share = Annotated[float, SHARE]
Part = Annotated[float, PART]
Strength = Annotated[float, STRENGTH]
Temperature = Annotated[float, TEMPERATURE]
Seconds = Annotated[float, SECONDS]
Ratio = Annotated[float, RATIO]


def check_arguments(instance: Any) -> None:
    """Raise ArgumentError for the first field, also of nested dataclasses, outside its range."""
    ranges = ranges_of(type(instance))
    for field in fields(instance):
        value = getattr(instance, field.name)
        if is_dataclass(value):
            check_arguments(value)
        elif field.name in ranges:
            ranges[field.name].check(field.name, value)


def ranges_of(dataclass_type: type) -> dict[str, Range]:
    """Return the range of each field whose type names one."""
    found: dict[str, Range] = {}
    hints = get_type_hints(dataclass_type, include_extras=True)
    for field in fields(dataclass_type):
        for limits in _ranges(hints[field.name]):
            found[field.name] = limits
    return found


def _ranges(hint: Any) -> Iterator[Range]:
    """Yield the ranges in a type, also in `tuple[Layer, ...] | None`."""
    for part in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(part, Range):
            yield part
        else:
            yield from _ranges(part)
