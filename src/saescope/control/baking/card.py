"""What a baked checkpoint says of itself: its config, its manifest, and the model card made of it."""

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from saescope.control.baking.bake_result import BakeResult
from saescope.control.baking.methods import BakePlan
from saescope.control.edits import Edit
from saescope.engine.anatomy import Anatomy
from saescope.engine.sae import Sae
from saescope.sources.catalog import QWEN_SCOPE_NOTICE, parse_sae_name
from saescope.sources.checkpoint import CONFIG, TOKENIZER_FILES
from saescope.sources.files import Files, fingerprint
from saescope.version import __version__

_ALSO = (
    "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE",
)  # fmt: skip


def copied_files(files: Files) -> list[str]:
    """Files of the checkpoint that go along as they are."""
    return [name for name in (*TOKENIZER_FILES, *_ALSO) if name in files.names()]


def config_text(files: Files, plan: BakePlan) -> str:
    """The checkpoint's config.json with what the plan changes of it."""
    path = files.path(CONFIG)
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    if plan.unties:
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    text.update(plan.flags)
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def describe(edit: Edit) -> dict[str, Any]:
    """An edit as plain values; of a direction its SHA-256 too."""
    own: dict[str, Any] = {
        "edit": edit.name,
        "layer": edit.layer,
        "op": edit.op,
        "strength": edit.amount,
    }
    own |= {"gate": edit.gate, "scope": edit.scope, "skip_sinks": edit.skip_sinks}
    if edit.condition is not None:
        own["when"] = str(edit.condition)
    if edit.direction is not None:
        own["sha256"] = hashlib.sha256(edit.direction.values.tobytes()).hexdigest()
    return own


def notes(anatomy: Anatomy, edits: Sequence[Edit], saes: Sequence[Sae]) -> list[str]:
    """What whoever uses the result must know."""
    found = []
    if any(edit.skip_sinks for edit in edits):
        found.append(
            "Weights act at every position: at the first one and at sinks too, which steering leaves alone."
        )
    if anatomy.has_other_inputs:
        found.append(
            "What images or sound write to the residual is not edited: labels and figures are of text."
        )
    if any(parse_sae_name(sae.spec.release.split("/")[-1]) for sae in saes):
        found.append(QWEN_SCOPE_NOTICE)
    return found


def record(files: Files, saes: Sequence[Sae], baked: BakeResult, staging: Path) -> dict[str, Any]:
    """The manifest: what went in, what was done, what was measured, and hashes of what came out."""
    inputs = [
        name for name in sorted(files.names()) if name == CONFIG or name.endswith(".safetensors")
    ]
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
        "bake": {key: value for key, value in baked.to_dict().items() if key != "out"},
        "lost_to_rounding": {one.tensor: one.lost for one in baked.rounding},
        "outputs": {path.name: fingerprint(path) for path in sorted(staging.iterdir())},
        "versions": {
            name: metadata.version(name) for name in ("torch", "transformers", "safetensors")
        },
        "python": platform.python_version(),
    }


def readme(of: Mapping[str, Any]) -> str:
    """The model card."""
    return "\n".join(_lines(of)) + "\n"


def _lines(of: Mapping[str, Any]) -> Iterator[str]:
    name, bake = str(of["model"]["name"]), of["bake"]
    yield from ("---", "library_name: transformers")
    if of["model"]["revision"] is not None:
        yield from (f"base_model: {name}", "base_model_relation: finetune")
    yield from (
        "tags:",
        "- saescope",
        "---",
        f"# {name.rsplit('/', 1)[-1]}, with edits in its weights",
        "",
    )
    yield f"Made from {name}{_at(of)} by saescope {of['saescope']}, method `{bake['method']}`. No weight was trained."
    yield f"Compared with: {bake['hook']}. **{_label(bake)}**"
    yield from ("", "| edit | op | strength | after layer |", "|---|---|---|---|")
    for edit in bake["edits"]:
        yield f"| {_cell(edit['edit'])} | {edit['op']} | {edit['strength']:g} | {edit['layer']} |"
    yield from ("", "## Measured", *_measured(bake), "")
    yield from (f"- {note}" for note in bake["notes"])
    yield from ("- The licence of the model it was made from applies.", "")
    yield "`saescope_bake.json` has the inputs with their hashes, all edits, and every figure."


def _at(of: Mapping[str, Any]) -> str:
    return f" (revision {of['model']['revision']})" if of["model"]["revision"] else ""


def _label(bake: Mapping[str, Any]) -> str:
    return "Exact but for rounding." if bake["exact"] else f"Approximate: {bake['why_not']}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _measured(bake: Mapping[str, Any]) -> Iterator[str]:
    far = (
        ("hook", "the hook above"),
        ("steered", "the edits as steered"),
        ("base", "the model without edits"),
    )
    found = [(words, one) for key, words in far if (one := bake[f"kl_{key}_baked"])]
    found = found[1:] if bake["converted"] else found  # the hook is the edits as steered
    if found:
        yield f"KL of the next token in nats, on {found[0][1]['tokens']:,} tokens of neutral text, in float32:"
        yield from (
            "",
            "| from | mean | p95 | p99 | likeliest token differs |",
            "|---|---|---|---|---|",
        )
        for words, one in found:
            figures = " | ".join(f"{one[key]:.2g}" for key in ("mean", "p95", "p99"))
            yield f"| {words} | {figures} | {100 * one['flips']:.2g} % |"
    else:
        yield "Nothing was measured."
    if bake["rounding"]:
        lost = bake["rounding"]
        yield ""
        yield (
            f"Of the change along the direction the stored dtype lost {100 * lost['mean']:.2g} %, on average over "
            f"{bake['tensors_changed']} tensors; {100 * lost['worst']:.2g} % in the worst ({lost['tensor']})."
        )
