"""The descriptive files of a baked checkpoint: config, manifest, and model card."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from saescope.control.about import about_name
from saescope.control.baking.bake_plan import BakePlan
from saescope.control.baking.bake_result import BakeResult
from saescope.control.edits import Edit
from saescope.engine.anatomy import Anatomy
from saescope.engine.sae import Sae
from saescope.sources.catalog import QWEN_SCOPE_NOTICE, parse_sae_name
from saescope.sources.checkpoint import CONFIG
from saescope.sources.files import Files
from saescope.sources.fingerprints import fingerprint
from saescope.version import __version__


def config_text(files: Files, plan: BakePlan) -> str:
    """Return the checkpoint's config.json with the plan's changes."""
    config = json.loads(files.path(CONFIG).read_text(encoding="utf-8"))
    decoder_config = config
    if isinstance(config.get("text_config"), dict):
        decoder_config = config["text_config"]
    if plan.untie_lm_head:
        config["tie_word_embeddings"] = decoder_config["tie_word_embeddings"] = False
    decoder_config.update(plan.flags)
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def describe_edit(edit: Edit) -> dict[str, Any]:
    """Return an edit as a JSON-compatible dict; a direction with its SHA-256."""
    row: dict[str, Any] = {
        "edit": edit.name,
        "layer": edit.layer,
        "op": edit.op,
        "strength": edit.amount,
        "gate": edit.gate,
        "scope": edit.scope,
        "skip_sinks": edit.skip_sinks,
    }
    if edit.op == "project":
        row["about"] = about_name(edit)
    if edit.about is not None:
        row["mean"] = edit.about.to_dict()
    if edit.condition is not None:
        row["when"] = str(edit.condition)
    if edit.direction is not None:
        row["sha256"] = hashlib.sha256(edit.direction.values.tobytes()).hexdigest()
    return row


def notes(anatomy: Anatomy, edits: Sequence[Edit], saes: Sequence[Sae]) -> list[str]:
    """Return what users of the checkpoint must know."""
    lines = []
    if any(edit.skip_sinks for edit in edits):
        lines.append(
            "Weights act at every position, including the first one and sinks, which steer skips."
        )
    if anatomy.has_other_inputs:
        lines.append(
            "Image and audio embeddings are not edited: the label and the distances hold for text."
        )
    if any(parse_sae_name(sae.spec.release.split("/")[-1]) for sae in saes):
        lines.append(QWEN_SCOPE_NOTICE)
    return lines


def build_manifest(
    files: Files, saes: Sequence[Sae], result: BakeResult, folder: Path
) -> dict[str, Any]:
    """Return the inputs, the result, and hashes of the files written into `folder`."""
    inputs = [
        name for name in sorted(files.names()) if name == CONFIG or name.endswith(".safetensors")
    ]
    libraries = ("torch", "transformers", "safetensors")
    return {
        "saescope": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": {
            "name": files.name,
            "source": files.source,
            "revision": files.revision,
            "files": {name: fingerprint(files.path(name)) for name in inputs},
        },
        "saes": [vars(sae.spec) for sae in saes],
        "bake": {key: value for key, value in result.to_dict().items() if key != "out"},
        "lost_to_rounding": {tensor.tensor: tensor.fraction_lost for tensor in result.rounding},
        "outputs": {name: fingerprint(folder / name) for name in written_files(folder)},
        "versions": {name: metadata.version(name) for name in libraries},
        "python": platform.python_version(),
    }


def written_files(folder: Path) -> list[str]:
    """Return the names of all files below a folder, with `/` between folders."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return the text of README.md, built from the manifest."""
    return "\n".join(_card_lines(manifest)) + "\n"


def _card_lines(manifest: Mapping[str, Any]) -> Iterator[str]:
    model, bake = manifest["model"], manifest["bake"]
    name, revision = str(model["name"]), model["revision"]
    label = "Exact up to rounding."
    if not bake["exact"]:
        label = f"Approximate: {bake['why_not']}."
    yield from ("---", "library_name: transformers")
    if revision is not None:
        yield from (f"base_model: {name}", "base_model_relation: finetune")
    title = f"# {name.rsplit('/', 1)[-1]}, with edits in its weights"
    yield from ("tags:", "- saescope", "---", title, "")
    source = f"{name} (revision {revision})" if revision else name
    yield (
        f"Made from {source} by saescope {manifest['saescope']}, method `{bake['method']}`. "
        "No weight was trained."
    )
    yield f"Compared with: {bake['hook']}. **{label}**"
    yield from ("", "| edit | op | strength | after layer |", "|---|---|---|---|")
    for edit in bake["edits"]:
        cell = edit["edit"].replace("|", "\\|")
        op = f"{edit['op']} about the mean" if edit.get("about") == "mean" else edit["op"]
        yield f"| {cell} | {op} | {edit['strength']:g} | {edit['layer']} |"
    yield from ("", "## Measured", *_distance_lines(bake), *_rounding_lines(bake), "")
    yield from (f"- {note}" for note in bake["notes"])
    yield from ("- The licence of the model it was made from applies.", "")
    yield "`saescope_bake.json` has the inputs with their hashes, all edits, and every figure."


def _distance_lines(bake: Mapping[str, Any]) -> Iterator[str]:
    labels = {
        "kl_hook_baked": "the reference intervention above",
        "kl_steered_baked": "the edits as steered",
        "kl_base_baked": "the model without edits",
    }
    if bake["converted"]:
        del labels["kl_hook_baked"]  # the reference is the edits as steered
    measured = {label: bake[key] for key, label in labels.items() if bake[key]}
    if not measured:
        yield "Nothing was measured."
        return
    tokens = next(iter(measured.values()))["tokens"]
    yield (f"KL of the next token in nats, on {tokens:,} tokens of neutral text, in float32:")
    yield from (
        "",
        "| from | mean | p95 | p99 | top-1 changes |",
        "|---|---|---|---|---|",
    )
    for label, kl in measured.items():
        figures = " | ".join(f"{kl[key]:.2g}" for key in ("mean", "p95", "p99"))
        yield f"| {label} | {figures} | {100 * kl['flips']:.2g} % |"
    judged = bake["judged_by_transformers"]
    if judged:
        yield ""
        yield (
            f"Judged by transformers' own `{judged['model_class']}` on {judged['tokens']} of these "
            f"tokens: {judged['kl_base_baked']:.2g} nats per token from the model without edits."
        )


def _rounding_lines(bake: Mapping[str, Any]) -> Iterator[str]:
    lost = bake["rounding"]
    if not lost:
        return
    yield ""
    yield (
        f"Rounding to the stored dtype lost {100 * lost['mean']:.2g} % of the intended change on "
        f"average over {bake['tensors_changed']} tensors (worst: {100 * lost['worst']:.2g} %, "
        f"{lost['tensor']})."
    )
