"""Exports write edits, SAEs and runs as files that other programs load, and say what they equal."""

from typing import TYPE_CHECKING

from saescope.lazy import lazy_names

if TYPE_CHECKING:
    from saescope.control.exports.export_result import ExportResult
    from saescope.control.exports.gguf import export_gguf as gguf
    from saescope.control.exports.lens import LogitLens
    from saescope.control.exports.lora import export_lora as lora
    from saescope.control.exports.neuronpedia import export_neuronpedia as neuronpedia
    from saescope.control.exports.saelens import export_saelens as saelens
    from saescope.control.exports.settings import ExportSettings, NeuronpediaSettings

__all__ = [
    "ExportResult",
    "ExportSettings",
    "LogitLens",
    "NeuronpediaSettings",
    "gguf",
    "lora",
    "neuronpedia",
    "saelens",
]

_HOMES = {
    "control.exports.export_result": ("ExportResult",),
    "control.exports.gguf": ("gguf",),
    "control.exports.lens": ("LogitLens",),
    "control.exports.lora": ("lora",),
    "control.exports.neuronpedia": ("neuronpedia",),
    "control.exports.saelens": ("saelens",),
    "control.exports.settings": ("ExportSettings", "NeuronpediaSettings"),
}
_NAMES = {
    "gguf": "export_gguf",
    "lora": "export_lora",
    "neuronpedia": "export_neuronpedia",
    "saelens": "export_saelens",
}

__getattr__ = lazy_names("saescope.exports", _HOMES, names=_NAMES)


def __dir__() -> list[str]:
    return __all__
