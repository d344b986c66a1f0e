"""Values of a config that somebody else wrote: asked for by kind, and refused in one line where they are another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saescope.errors import SourceError

Config = Mapping[str, Any]


def flag(config: Config, name: str, default: bool = False) -> bool:
    """True or false; raises SourceError for anything else. None and no entry are the default."""
    value = config.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise SourceError(
            f"the SAE's config says {name} is {value!r:.40}: it must be true or false"
        )
    return value


def whole(config: Config, name: str) -> int:
    """A number of at least 1; raises SourceError for anything else."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SourceError(
            f"the SAE's config says {name} is {value!r:.40}: it must be a whole number of at least 1"
        )
    return value


def number(config: Config, name: str) -> float:
    """A positive, finite number; raises SourceError for anything else."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        raise SourceError(
            f"the SAE's config says {name} is {value!r:.40}: it must be a positive number"
        )
    return float(value)


def part(config: Config, name: str) -> Config:
    """An object within the config, or an empty one; raises SourceError for anything else."""
    value = config.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SourceError(f"the SAE's config says {name} is {value!r:.40}: it must be an object")
    return value


def refuse(path: Path, what: str) -> SourceError:
    """The error for an SAE whose formula is another than z = W_enc·h + b_enc and the activation."""
    return SourceError(
        f"{path}: {what}, which cannot be folded into an encoder: this SAE is not supported"
    )
