"""`project` edits as a LoRA in peft's format, which can be switched on and off.

The base model with the adapter is the model with the projection at every write. Every weight W that
writes to the residual gets B·A, with A = s·Vᵀ W and B = −U: this removes the share s of what W
writes along the directions. For a plain projection U = V, orthonormal directions; past a norm, see
`residual_map.py`. The constant of a projection about a mean is in A of the embedding. The rank is
the number of directions, and alpha = rank, so the scaling is 1.

The names in the files are those of one model class (`peft_format.py`): the result and the config
say of which. In another class an adapter would load and do nothing.

Embeddings get peft's embedding LoRA. It leaves a tied lm_head as it is, which is right: the edit
changes what is written to the residual, not what is read from it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saescope.control.baking.anatomy_check import check_anatomy, embedding_scale
from saescope.control.baking.bake_plan import BakePlan
from saescope.control.baking.distance import distance
from saescope.control.baking.eligibility import edit_vectors, why_not_bakeable
from saescope.control.baking.methods import plan_projection
from saescope.control.edits import Edit
from saescope.control.exports.adapter import LoraAdapter, adapted, compute_adapter
from saescope.control.exports.export_result import ExportResult, files_in
from saescope.control.exports.measuring import OutputRecorder, Progress, State
from saescope.control.exports.peft_format import PeftNames, peft_config, peft_names, peft_tensors
from saescope.control.exports.settings import ExportSettings
from saescope.control.exports.tensors import StoredTensor, write_safetensors
from saescope.control.measured_text import Measuring, extent
from saescope.control.steer import steered
from saescope.engine.anatomy import Anatomy, read_anatomy
from saescope.engine.gains import norm_gains
from saescope.engine.lm import load_lm
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.errors import EditError
from saescope.sources.files import Files, open_files
from saescope.store.atomic import atomic_folder, refuse_existing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EQUALS = "the projection at every write and position, in every layer whatever the edit names"


def export_lora(
    model: str | Path,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    out: str | Path,
    settings: ExportSettings | None = None,
    progress: Progress | None = None,
) -> ExportResult:
    """Write `project` edits as a LoRA of the model; `PeftModel.from_pretrained` loads the folder.

    `measured["model_class"]` is the class that the names are meant for. If `settings.measure` is
    on, `measured` holds the KL per token in nats to the model with the adapter: from the projection
    by hooks, from the edits as they are steered, from the base model, and from the adapter with the
    embedding if `settings.embedding` leaves it out. `component_left` is how large the component
    along the directions still is, as a share of what it is without the adapter.

    Raises EditError for edits that a LoRA cannot express, and ResourceError if `out` exists.

    >>> import tempfile
    >>> import saescope as ss
    >>> sae = ss.load_sae("saescope-tiny-sae", 2)
    >>> edit = ss.Edit("2/5", "project")
    >>> settings = ss.exports.ExportSettings(measure=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = ss.exports.lora("saescope-tiny", [sae], [edit], f"{folder}/lora", settings)
    >>> result.exact, result.measured["rank"]
    (True, 1)
    """
    settings = settings or ExportSettings()
    settings.check()
    out = Path(out).expanduser()
    refuse_existing(out)
    edits = [edit for edit in edits if not edit.is_noop]
    _check(edits)
    files = open_files(str(model), offline=settings.offline)
    base = _BaseModel(files, Shards.open(files), read_anatomy(files), settings)
    plan = _plan(base, saes, edits)
    complete = compute_adapter(base.shards, base.anatomy, plan)
    adapter = complete if settings.embedding else complete.without_embedding
    names = peft_names(files, adapter, settings.model_class)
    measured = _facts(plan, adapter, names)
    adapters, measuring = _Adapters(plan, complete, adapter), Measuring()
    with atomic_folder(out) as folder:
        _write(folder, files, adapter, names)
        if extent(settings.measure) != "none":
            measured |= measuring.run(lambda: _measure(base, adapters, saes, edits, progress)) or {}
    measuring.end(out)
    limits = _limits(plan, adapter, settings)
    return ExportResult("lora", out, files_in(out), not limits, EQUALS, limits, measured)


@dataclass(frozen=True)
class _BaseModel:
    """The model that is exported for, and the settings it is opened with."""

    files: Files
    shards: Shards
    anatomy: Anatomy
    settings: ExportSettings


def _check(edits: Sequence[Edit]) -> None:
    if not edits:
        raise EditError("there are no edits to export: none changes anything")
    for edit in edits:
        if edit.op == "add":
            raise EditError(
                f"edit of {edit.name}: a LoRA cannot add a constant: "
                "export a control vector (gguf), or steer it at run time"
            )
        reason = why_not_bakeable(edit)
        if reason is None and edit.op != "project":
            reason = f"{edit.op} moves the residual to a target, which a low rank cannot"
        if reason is not None:
            raise EditError(
                f"edit of {edit.name}: {reason}; "
                f'export its direction as "{edit.name} project 1", or steer it at run time'
            )


def _plan(base: _BaseModel, saes: Sequence[Sae], edits: Sequence[Edit]) -> BakePlan:
    """Plan the projection of every writer; raises SourceError if a writer is not known."""
    anatomy = base.anatomy
    bound = edit_vectors(edits, saes, n_layers=anatomy.n_layers, d_model=anatomy.d_model)
    norms = anatomy.norms(writes=True, reads=False)
    gains = norm_gains(base.shards, anatomy, norms)
    lm = load_lm(
        base.files.source,
        [anatomy.last_kind],
        device=base.settings.device,
        streamed=True,
    )
    check_anatomy(lm, anatomy, gains, reads=False)
    scale = embedding_scale(lm, anatomy)  # raises if a norm stands before block 0
    return plan_projection("every-write", anatomy, gains, bound, scale)


def _facts(plan: BakePlan, adapter: LoraAdapter, names: PeftNames) -> dict[str, Any]:
    return {
        "method": plan.method,
        "model_class": names.model_class.__name__,
        "opened_by": names.opened_by,
        "rank": adapter.rank,
        "writers": len(adapter.factors),
    }


def _write(folder: Path, files: Files, adapter: LoraAdapter, names: PeftNames) -> None:
    tensors = peft_tensors(adapter, names)
    stored = {name: StoredTensor(tensor) for name, tensor in tensors.items()}
    write_safetensors(folder / WEIGHTS, stored, {"format": "pt"})
    config = json.dumps(peft_config(files, adapter, names), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(config + "\n", encoding="utf-8")


def _limits(plan: BakePlan, adapter: LoraAdapter, settings: ExportSettings) -> tuple[str, ...]:
    """Say in what the adapter differs from the projection."""
    limits = []
    if not settings.embedding:
        distance = "measured below" if extent(settings.measure) != "none" else "not measured"
        constant = ", and the mean's part, which it would hold, is missing"
        missing = constant if _has_constant(plan) else ""
        limits.append(f"what the embedding writes along the directions stays{missing} ({distance})")
    if plan.approximation_reason:
        limits.append(plan.approximation_reason)
    if adapter.n_biases:
        limits.append(
            "a LoRA holds no biases: what "
            f"{adapter.n_biases} of them write along the directions stays"
        )
    return tuple(limits)


def _has_constant(plan: BakePlan) -> bool:
    return plan.reference.first_input is not None and plan.reference.first_input.k is not None


@dataclass(frozen=True)
class _Adapters:
    """The plan, its whole adapter, and the one that is written."""

    plan: BakePlan
    complete: LoraAdapter
    written: LoraAdapter


def _measure(
    base: _BaseModel,
    adapters: _Adapters,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    progress: Progress | None,
) -> dict[str, Any]:
    """Measure the KL to the adapter in float32, and the component left in each dtype."""
    recorder = OutputRecorder(base.shards, base.anatomy, base.settings)
    lm, plan, adapter = recorder.lm, adapters.plan, adapters.written
    states: list[State] = [adapted(lm, adapter), plan.reference, steered(lm, saes, edits), None]
    if adapter is not adapters.complete:
        states.append(adapted(lm, adapters.complete))
    with_adapter, with_hook, with_edits, without, *complete = recorder.record(states, progress)
    component_left = {"float32": _component_left(plan, without.resid, with_adapter.resid)}
    native = OutputRecorder(base.shards, base.anatomy, base.settings, dtype="auto")
    if native.lm.dtype is not lm.dtype:
        before = native.residuals()
        with adapted(native.lm, adapter):
            after = native.residuals()
        dtype = str(native.lm.dtype).removeprefix("torch.")
        component_left[dtype] = _component_left(plan, before, after)
    left_out = {}
    for with_embedding in complete:
        left_out["kl_complete_adapter"] = distance(with_embedding, with_adapter).to_dict()
    return left_out | {
        "kl_hook_adapter": distance(with_hook, with_adapter).to_dict(),
        "kl_steered_adapter": distance(with_edits, with_adapter).to_dict(),
        "kl_base_adapter": distance(without, with_adapter).to_dict(),
        "component_left": component_left,
    }


def _component_left(
    plan: BakePlan, before: Float[Tensor, "tokens d_model"], after: Float[Tensor, "tokens d_model"]
) -> float:
    """Return the size of the component along the directions, as a share of what it was before.

    Of a projection about the mean: of what differs from the mean's component.
    """
    assert plan.reference.first_input is not None
    Q = plan.reference.first_input.V.float()
    fixed = plan.reference.first_input.fixed_components.float()
    size_before = float((before.float() @ Q - fixed).norm(dim=-1).sum())
    size_after = float((after.float() @ Q - fixed).norm(dim=-1).sum())
    return size_after / max(size_before, 1e-30)
