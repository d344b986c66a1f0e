"""Projections as a LoRA in peft's format: base + adapter is the model projected at every write, switched on and off.

Every weight that writes to the residual, W, gets B·A with A = s·Vᵀ W and B = −U: the share s of what it writes along
the directions is taken away. Of a plain projection U = V, orthonormal directions; past a norm see `maps.py`. The rank
is the number of directions; alpha = rank, so the scaling is 1. Embeddings get peft's embedding LoRA, which leaves an
lm_head that is tied to them as it is: what is read from the residual is not edited, only what is written.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.anatomy_check import check_anatomy
from saescope.control.baking.distance import distance
from saescope.control.baking.eligibility import edit_vectors, why_not_bakeable
from saescope.control.baking.methods import BakePlan, plan_projection
from saescope.control.edits import Edit
from saescope.control.exports.adapter import (
    Factors,
    Names,
    adapted,
    factors,
    names_of,
    peft_tensors,
)
from saescope.control.exports.export_result import ExportResult, files_in
from saescope.control.exports.measuring import Progress, Reader
from saescope.control.exports.settings import ExportSettings
from saescope.control.exports.tensors import Stored, write_safetensors
from saescope.control.steer import steered
from saescope.engine.anatomy import Anatomy, read_anatomy
from saescope.engine.devices import Device, DType
from saescope.engine.gains import norm_gains
from saescope.engine.lm import load_lm
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.errors import EditError
from saescope.sources.files import Files, open_files
from saescope.store.atomic import atomic_folder, refuse_existing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EQUALS = "the projection at every write of every layer, whichever layer the edit names, at every position"


def export_lora(
    model: str | Path,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    out: str | Path,
    settings: ExportSettings | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write `project` edits as a LoRA of `model` that peft loads; strengths are in it.

    With `settings.measure` the result says how far the adapter is from the projection by hooks, from the edits as they are
    steered and from the model without them: KL of every next token's distribution on neutral text. Raises EditError for edits that a LoRA cannot take over.
    """
    settings = settings or ExportSettings()
    out = Path(out).expanduser()
    refuse_existing(out)
    wanted = [edit for edit in edits if not edit.is_noop]
    _refuse(wanted)
    files = open_files(str(model), offline=settings.offline)
    anatomy, shards = read_anatomy(files), Shards.open(files)
    plan = _plan(files, anatomy, shards, wanted, saes, settings.device)
    made, missed = factors(anatomy, shards, plan)
    names = names_of(files, made)
    with atomic_folder(out) as folder:
        tensors = {name: Stored(tensor) for name, tensor in peft_tensors(made, names).items()}
        write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"})
        text = json.dumps(adapter_config(files, made, names), indent=2, ensure_ascii=False)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        measured: dict[str, Any] = {
            "method": plan.method,
            "rank": made[0].rank,
            "writers": len(made),
        }
        if settings.measure:
            read = partial(Reader, shards, anatomy, settings, progress)
            measured |= _measure(read, plan, made, wanted, saes)
    limits = [plan.why_not] if plan.why_not else []
    limits += (
        [f"biases are not in a LoRA, so what {missed} of them write along the directions stays"]
        if missed
        else []
    )
    return ExportResult("lora", out, files_in(out), not limits, EQUALS, tuple(limits), measured)


def adapter_config(files: Files, made: Sequence[Factors], names: Names) -> dict[str, Any]:
    """peft's config: every value that decides what is computed is said, none is left to a default."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": files.source,
        "revision": files.revision,
        "inference_mode": True,
        "r": made[0].rank,
        "lora_alpha": made[0].rank,
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "lora_bias": False,
        "bias": "none",
        "fan_in_fan_out": any(one.kind == "conv1d" for one in made),
        "target_modules": names.target_modules,
        "target_parameters": names.target_parameters or None,
        "modules_to_save": None,
    }


def _refuse(edits: Sequence[Edit]) -> None:
    if not edits:
        raise EditError("there are no edits to export: none changes anything")
    for edit in edits:
        if edit.op == "add":
            raise EditError(
                f"edit of {edit.name}: a LoRA has no place for a constant: use --format gguf, or steer it"
            )
        if (why := why_not_bakeable(edit)) is not None or edit.op != "project":
            why = why or f"{edit.op} moves the residual to a target, which a low rank cannot"
            raise EditError(
                f'edit of {edit.name}: {why}; export its direction as "{edit.name} project 1", or steer it at run time'
            )


def _plan(
    files: Files,
    anatomy: Anatomy,
    shards: Shards,
    edits: Sequence[Edit],
    saes: Sequence[Sae],
    device: Device,
) -> BakePlan:
    """How each writer is projected, once it is shown by numbers that every writer is known."""
    bound = edit_vectors(edits, saes, anatomy)
    gains = norm_gains(shards, anatomy, anatomy.norms(writes=True, reads=False))
    lm = load_lm(files.source, [anatomy.last_kind], device=device, streamed=True)
    check_anatomy(lm, anatomy, gains, reads=False)
    return plan_projection("every-write", anatomy, gains, bound)


def _measure(
    read: Callable[[DType], Reader],
    plan: BakePlan,
    made: Sequence[Factors],
    edits: Sequence[Edit],
    saes: Sequence[Sae],
) -> dict[str, Any]:
    """How far the adapter is from the hook, the edits and the base, and what is left of the component it takes away."""
    reader = read("float32")
    lm = reader.lm
    adapter, hook, edited, base = reader.read(
        [adapted(lm, made), plan.hook, steered(lm, saes, edits), None]
    )
    far = {"kl_hook_adapter": hook, "kl_steered_adapter": edited, "kl_base_adapter": base}
    left = {"float32": _left(plan, base.resid, adapter.resid)}
    own = read("auto")
    if own.lm.dtype is not lm.dtype:
        before = own.residuals()
        with adapted(own.lm, made):
            left[str(own.lm.dtype).removeprefix("torch.")] = _left(plan, before, own.residuals())
    return {
        **{name: distance(one, adapter).to_dict() for name, one in far.items()},
        "component_left": left,
    }


def _left(
    plan: BakePlan, before: Float[Tensor, "tokens d_model"], after: Float[Tensor, "tokens d_model"]
) -> float:
    """Size of the component along the directions in the last residuals, with the adapter as a share of without."""
    assert plan.hook.first is not None
    Q = plan.hook.first.V.float()
    without, within = (float((resid.float() @ Q).norm(dim=-1).sum()) for resid in (before, after))
    return within / max(without, 1e-30)
