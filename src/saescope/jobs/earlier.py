"""Read commands in manifests that were written before requests were typed."""

from collections.abc import Callable, Mapping
from typing import Any

Options = Mapping[str, Any]


def upgrade(verb: str, options: Options) -> dict[str, Any]:
    """Turn stored options into a request's values; raises KeyError for a verb that made no runs."""
    return _UPGRADES[verb](options)


def _contrast(options: Options) -> dict[str, Any]:
    return {"settings": options["settings"], "inputs": _inputs(options)}


def _detect(options: Options) -> dict[str, Any]:
    return {
        "sets": "",
        "target": options["target"],
        "against": options["against"],
        "transfer": _transfer(options["transfer"]),
        "settings": options["settings"],
        "inputs": _inputs(options),
    }


def _transfer(pairs: Mapping[str, list[str]] | None) -> list[str]:
    """Write each set and its partners as NAME:OTHER+OTHER."""
    texts = []
    for name, negatives in (pairs or {}).items():
        partners = "+".join(negatives)
        texts.append(f"{name}:{partners}" if partners else name)
    return texts


def _layers(options: Options) -> dict[str, Any]:
    return {
        "masking": options["masking"],
        "seed": options["seed"],
        "feature": options["feature"],
        "inputs": {**_inputs(options), "offline": options["offline"]},
    }


def _profile(options: Options) -> dict[str, Any]:
    return {
        "masking": options["masking"],
        "samples": options["n_samples"],
        "seed": options["seed"],
        "inputs": _inputs(options),
    }


def _precision(options: Options) -> dict[str, Any]:
    return {"masking": options["masking"], "reference": options.get("against")}


def _fitness(options: Options) -> dict[str, Any]:
    return {"base": options.get("base")}


def _inputs(options: Options) -> dict[str, Any]:
    return {"layers": options["layers"]}


_UPGRADES: Mapping[str, Callable[[Options], dict[str, Any]]] = {
    "contrast": _contrast,
    "detect": _detect,
    "fitness": _fitness,
    "layers": _layers,
    "precision": _precision,
    "profile": _profile,
}
