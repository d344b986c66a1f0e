"""JSON that every parser reads: no NaN, no infinity; and JSON of unknown origin, read strictly."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """Return plain values as JSON; a number that is not finite becomes null.

    >>> to_json({"kl": float("nan"), "draws": 3})
    '{"kl": null, "draws": 3}'
    """
    return json.dumps(finite(value), ensure_ascii=ascii_only, allow_nan=False, indent=indent)


def finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def from_json(text: str) -> Any:
    """Read JSON of unknown origin; raises ValueError with a plain reason for what is no JSON.

    A key that occurs twice is refused too: it would lose one of its values.

    >>> from_json('{"text": "a", "text": "b"}')
    Traceback (most recent call last):
    ValueError: the key 'text' occurs twice
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        if "digits" in str(error):
            raise ValueError("a number in it has thousands of digits") from error
        raise


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.60} occurs twice")
    return values
