"""Settings of a config that another tool wrote, checked by kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saescope.errors import SourceError

Config = Mapping[str, Any]
MAX_COUNT = 2**31
"Largest number of features, dimensions and the like that a config may state."


def flag(config: Config, key: str, default: bool = False) -> bool:
    """True or false; `default` if the setting is missing or null."""
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _invalid(key, value, "true or false")
    return value


def positive_int(config: Config, key: str) -> int:
    """A whole number of at least 1."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise _invalid(key, value, "a whole number of at least 1")
    return value


def positive_float(config: Config, key: str) -> float:
    """A positive, finite number."""
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise _invalid(key, value, "a positive number")
    return float(value)


def section(config: Config, key: str) -> Config:
    """An object within the config; empty if it is missing or null."""
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _invalid(key, value, "an object")
    return value


def _invalid(key: str, value: object, expected: str) -> SourceError:
    return SourceError(f"the SAE's config says {key} is {value!r:.40}: it must be {expected}")


def unsupported(path: Path, reason: str) -> SourceError:
    """The error for an SAE whose formula cannot be rewritten as z = W_enc·h + b_enc."""
    return SourceError(
        f"{path}: {reason}, which cannot be folded into an encoder: this SAE is not supported"
    )
