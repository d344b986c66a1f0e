"""JSON that every parser reads: no NaN, no infinity."""

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
