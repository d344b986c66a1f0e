"""The manifest of a run: read within limits, and checked before anything is taken from it.

A manifest holds a digest of its own content, so that an edit is noticed. A checksum is no
signature: whoever changes a run on purpose can compute it anew.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from saescope.errors import RunError
from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.regular_files import parse_json, read_bytes
from saescope.store import tables

MANIFEST = "manifest.json"
DIGEST = "digest"
SIZES = "bytes"
"Size of every table; with `DIGEST` since both are written."
SINKS_ACROSS_LAYERS = "sinks_across_layers"
"Whether a sink of one layer is one at all; earlier versions let each layer decide for itself."
_MOST_BYTES = 64 * 2**20
_MOST_FEATURES = 2**32  # ids are 32 bits wide
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TYPES: dict[str, type] = {
    "fingerprint": str,
    "job": dict,
    "command": dict,
    "inputs": dict,
    "tables": dict,
}
_OPTIONAL: dict[str, type] = {
    DIGEST: str,
    SIZES: dict,
    "sae_fit": dict,
    "special_tokens": list,
    "files": dict,
    "kernels": dict,
    SINKS_ACROSS_LAYERS: bool,
}
_JOB: Mapping[str, type] = {"dtype": str, "device": str, "batch_tokens": int, "errors": bool}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run's folder; raises RunError if there is none that can be read."""
    path = folder / MANIFEST
    try:
        manifest = parse_json(read_bytes(path, _MOST_BYTES))
    except FileNotFoundError as error:
        raise RunError(f"{folder} is not a run: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:  # ValueError: no JSON, or NUL in the path
        raise RunError(f"{path} cannot be read: {error}; recompute the run") from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path} is damaged: it is not an object; recompute the run")
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything in a manifest except its digest."""
    content = {key: value for key, value in manifest.items() if key != DIGEST}
    return _sha256_of(content)


def job_fingerprint(schema: int, job: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a job and the schema of its run."""
    return _sha256_of([schema, job])


def expected_tables(manifest: Mapping[str, Any]) -> list[str]:
    """Return the names of a run's tables."""
    layers = sorted(sae["layer"] for sae in manifest["job"]["saes"])
    by_layer = [name(n) for n in layers for name in (tables.features_name, tables.resid_name)]
    return [tables.PROMPTS_NAME, tables.TOKENS_NAME, *by_layer]


def manifest_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a manifest, such as `is damaged: it has no job`.

    If its form is wrong, its hashes are not computed.
    """
    schema = manifest.get("schema")
    if isinstance(schema, bool) or schema not in tables.READABLE_SCHEMAS:
        supported = ", ".join(map(str, tables.READABLE_SCHEMAS))
        yield f"has schema {schema!r} (supported: {supported})"
        return
    malformed = False
    for problem in _form_problems(manifest):
        malformed = True
        yield f"is damaged: {problem}"
    if malformed:
        return
    if DIGEST in manifest and manifest[DIGEST] != digest_of(manifest):
        yield f"was modified: its content does not match its {DIGEST}"
    if DIGEST not in manifest and SIZES in manifest:
        yield f"was modified: its {DIGEST} was removed"
    if manifest["fingerprint"] != job_fingerprint(schema, manifest["job"]):
        yield "was modified: its fingerprint does not match its job"


def _form_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    missing = sorted(_TYPES.keys() - manifest.keys())
    yield from (f"it has no {key}" for key in missing)
    yield from _type_problems(manifest, _TYPES | _OPTIONAL, "")
    if missing or not isinstance(manifest["job"], dict):
        return
    yield from _type_problems(manifest["job"], _JOB, "job.")
    spec_problems = [*specs_problems(manifest)]
    yield from spec_problems
    yield from _command_problems(manifest["command"])
    yield from _inputs_problems(manifest["inputs"])
    if not spec_problems:
        yield from _table_problems(manifest)


def _type_problems(
    values: Mapping[str, Any], types: Mapping[str, type], prefix: str
) -> Iterator[str]:
    for key, expected in types.items():
        value = values.get(key)
        if value is not None and not _is(value, expected):
            yield f"{prefix}{key} is {_shown(value)}, not {_NAMES[expected]}"


def specs_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the model and the SAEs of a run's job."""
    job = manifest.get("job")
    if not isinstance(job, dict):
        yield f"job is {_shown(job)}, not an object"
        return
    model, saes = job.get("model"), job.get("saes")
    problems = [*_fields_problems(model, ModelSpec, "job.model")]
    if not isinstance(saes, list) or not saes:
        yield from problems
        yield f"job.saes is {_shown(saes)}, not a list of SAEs"
        return
    for sae in saes:
        problems += _fields_problems(sae, SaeSpec, "job.saes")
    yield from problems
    if problems or not isinstance(model, dict):
        return
    layers = [sae["layer"] for sae in saes]
    if len(set(layers)) < len(layers):
        yield f"job.saes names a layer twice: {_shown(layers)}"
    for sae in saes:
        yield from _size_problems(sae, model)


def _fields_problems(values: Any, spec: type, where: str) -> Iterator[str]:
    """Yield what keeps `values` from being the fields of a ModelSpec or SaeSpec."""
    if not isinstance(values, dict):
        yield f"{where} is {_shown(values)}, not an object"
        return
    known = {field.name: field for field in fields(spec)}
    yield from (f"{where} has an unknown key {key!r}" for key in values.keys() - known.keys())
    for name, field in known.items():
        if name not in values:
            # Fields with a default came later: an earlier version did not write them.
            if name not in vars(spec):
                yield f"{where} has no {name}"
            continue
        value = values[name]
        optional = field.type in (int | None, str | None)
        expected = int if field.type in (int, int | None) else str
        if not (optional and value is None) and not _is(value, expected):
            yield f"{where}.{name} is {_shown(value)}, not {_NAMES[expected]}"


def _size_problems(sae: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    layer = sae["layer"]
    if not 0 <= layer < model["n_layers"]:
        yield f"job.saes has layer {layer}, the model has {model['n_layers']}"
    if sae["d_model"] != model["d_model"]:
        yield f"the SAE of layer {layer} has d_model {sae['d_model']}, not {model['d_model']}"
    if not 0 < sae["d_sae"] <= _MOST_FEATURES:
        yield f"the SAE of layer {layer} has d_sae {sae['d_sae']}"
    elif sae["k"] is not None and not 0 < sae["k"] <= sae["d_sae"]:
        yield f"the SAE of layer {layer} has k {sae['k']} of {sae['d_sae']} features"


def _command_problems(command: Any) -> Iterator[str]:
    if isinstance(command, dict) and not isinstance(command.get("verb"), str):
        yield f"command.verb is {_shown(command.get('verb'))}, not a string"


def _inputs_problems(inputs: Any) -> Iterator[str]:
    if not isinstance(inputs, dict):
        return
    if not isinstance(inputs.get("model"), str):
        yield f"inputs.model is {_shown(inputs.get('model'))}, not a string"
    saes = inputs.get("saes")
    if not isinstance(saes, dict) or not all(isinstance(source, str) for source in saes.values()):
        yield f"inputs.saes is {_shown(saes)}, not an object of strings"


def _table_problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    hashes, expected = manifest["tables"], set(expected_tables(manifest))
    if not isinstance(hashes, dict):
        return
    yield from (f"it lists no {name}" for name in sorted(expected - hashes.keys()))
    unknown = sorted(hashes.keys() - expected)
    yield from (f"it lists {_shown(name)}, which is no table of this run" for name in unknown)
    for name in sorted(hashes.keys() & expected):
        if not _is_sha256(hashes[name]):
            yield f"the SHA-256 of {name} is {_shown(hashes[name])}"
    sizes = manifest.get(SIZES)
    if isinstance(sizes, dict) and not (
        sizes.keys() == hashes.keys() and all(_is(size, int) for size in sizes.values())
    ):
        yield f"{SIZES} does not hold the size of every table"


def _is(value: Any, expected: type) -> bool:
    """Return whether a JSON value is of a type; true and false are no numbers."""
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _sha256_of(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(value: Any) -> str:
    """Return a short form of a value from the file."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


_NAMES: Mapping[Callable[..., Any], str] = {
    str: "a string",
    dict: "an object",
    list: "a list",
    int: "an integer",
    bool: "true or false",
}
