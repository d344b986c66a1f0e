"""Read commands in manifests that were written before requests were typed."""

from collections.abc import Callable, Mapping
from typing import Any

Options = Mapping[str, Any]


def upgrade(verb: str, options: Options) -> dict[str, Any]:
    """Turn stored options into a request's values; raises KeyError for a verb that made no runs."""
    values = _UPGRADES[verb](options)
    inputs = {name: options[name] for name in ("layers", "offline") if name in options}
    if inputs:
        values["inputs"] = inputs
    return values


def _contrast(options: Options) -> dict[str, Any]:
    return {"settings": options["settings"]}


def _detect(options: Options) -> dict[str, Any]:
    return {
        "sets": "",
        "target": options["target"],
        "against": options.get("against"),
        "transfer": _transfer(options.get("transfer")),
        "settings": options["settings"],
    }


def _transfer(pairs: Mapping[str, list[str]] | None) -> list[str]:
    """Write each set and its partners as NAME:OTHER+OTHER."""
    texts = []
    for name, negatives in (pairs or {}).items():
        partners = "+".join(negatives)
        texts.append(f"{name}:{partners}" if partners else name)
    return texts


def _layers(options: Options) -> dict[str, Any]:
    return _renamed(options, masking="masking", seed="seed", feature="feature")


def _profile(options: Options) -> dict[str, Any]:
    return _renamed(options, masking="masking", n_samples="samples", seed="seed")


def _precision(options: Options) -> dict[str, Any]:
    return _renamed(options, masking="masking", against="reference")


def _fitness(options: Options) -> dict[str, Any]:
    return _renamed(options, base="base")


def _renamed(options: Options, **names: str) -> dict[str, Any]:
    """Return the options that are there, under today's names."""
    return {new: options[old] for old, new in names.items() if old in options}


_UPGRADES: Mapping[str, Callable[[Options], dict[str, Any]]] = {
    "contrast": _contrast,
    "detect": _detect,
    "fitness": _fitness,
    "layers": _layers,
    "precision": _precision,
    "profile": _profile,
}
