"""Code that a checkpoint's folder asks for. It is never run; errors say what was asked."""

from collections.abc import Iterator
from typing import Any

from saescope.sources.files import Files
from saescope.sources.regular_files import read_json

# Files in which transformers looks for `auto_map`.
_CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)


def custom_code(files: Files, names: tuple[str, ...] = _CONFIGS) -> str | None:
    """Return a sentence about the code that the config files `names` ask for, None if they do not.

    The sentence continues an error about a file that could not be read without that code.
    """
    for name in names:
        if name not in files.names():
            continue
        references = sorted(set(_references(_read(files, name))))
        if references:
            return (
                f"{name} asks for custom code (auto_map: {', '.join(references[:3])}), and code "
                "from a checkpoint is never run: use a checkpoint that transformers reads without "
                "trust_remote_code, or a transformers version that has this architecture"
            )
    return None


def _read(files: Files, name: str) -> Any:
    try:
        return read_json(files.path(name))
    except (OSError, ValueError):
        return None  # whoever reads the file says that it is damaged


def _references(config: Any) -> Iterator[str]:
    """Yield the classes in `auto_map`: by name, or for tokenizers as a pair or an older list."""
    auto_map = config.get("auto_map") if isinstance(config, dict) else None
    values = list(auto_map.values()) if isinstance(auto_map, dict) else auto_map
    for value in values if isinstance(values, list) else []:
        for reference in value if isinstance(value, list) else [value]:
            if isinstance(reference, str):
                yield reference
