"""Write a checkpoint whose weights implement the edits.

Steps: 1 check that weights can express the edits (`eligibility.py`), 2 plan (`planning.py`),
3 write to a staging folder (`checkpoint_writer.py`), 4 record outputs of the base model and measure
(`measuring.py`, `stock.py`), and refuse a checkpoint far from its reference intervention, 5 rename
the folder to its final name. An interrupt of step 4 keeps the checkpoint if the plan is exact.

The reference intervention is the run-time change that a method stands for (`methods.py`). Results
and files call it `hook`. For converted edits, their `hook` is the edits as steered.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from saescope.control.baking.bake_plan import BakePlan
from saescope.control.baking.bake_result import MANIFEST, BakeResult, Distances
from saescope.control.baking.card import (
    build_manifest,
    config_text,
    describe_edit,
    model_card,
    notes,
    written_files,
)
from saescope.control.baking.checkpoint_writer import (
    CheckpointChanges,
    RoundingLoss,
    output_bytes,
    write_checkpoint,
)
from saescope.control.baking.companions import CARD, copy_companions
from saescope.control.baking.distance import distance
from saescope.control.baking.eligibility import (
    nearest_bakeable,
    reads_another_layer,
    why_not_bakeable,
)
from saescope.control.baking.measuring import (
    BakeInputs,
    Progress,
    measure,
    record_base,
    refuse_distant,
)
from saescope.control.baking.methods import acts_about_mean
from saescope.control.baking.planning import BaseCheckpoint, checkpoint_changes, make_plan
from saescope.control.baking.settings import BakeSettings
from saescope.control.baking.stock import StockReading
from saescope.control.edits import Edit
from saescope.control.measured_text import Measuring, extent, measured_part
from saescope.engine.devices import Device
from saescope.engine.sae import Sae
from saescope.errors import EditError, PromptError, SourceError
from saescope.sources.checkpoint import CONFIG
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.prompts import Prompt
from saescope.store.atomic import atomic_folder, refuse_existing, refuse_full_disk
from saescope.strict_json import to_json

# With measure=False, approximate methods are still checked, on this little text. Its KL is noisy:
# the distance may be up to _QUICK_TOLERANCE times what `refuse_distant` allows otherwise.
_QUICK_PROMPTS, _QUICK_CHARACTERS, _QUICK_TOLERANCE = 8, 30, 1.5
_QUICK = (
    f"Measured on the beginnings of {_QUICK_PROMPTS} sentences only, to check that the weights "
    "are close to their reference intervention; for reliable figures, bake with measuring on."
)
_CONSTANT_IN_EMBEDDING = ("every-write", "writers-up-to")
_MEAN_IN_EMBEDDING = (
    "The mean's part enters with the embedding, so layers below the edit's read it too, which the "
    "edit as steered does not do: see its distance."
)
_STREAMED_CONDITION = (
    "Nothing was measured: a condition reads another layer than its edit's, which a model that is "
    "streamed block by block cannot evaluate."
)


def bake(
    model: str | Path,
    saes: Sequence[Sae],
    edits: Sequence[Edit],
    out: str | Path,
    settings: BakeSettings | None = None,
    *,
    neutral: Sequence[Prompt] | None = None,
    device: Device = "auto",
    offline: bool = False,
    progress: Progress | None = None,
) -> BakeResult:
    """Write `model` with edits in its weights into the new folder `out`, atomically.

    Weights can express `project`, `readout_clamp` and `add`, without a scope or condition; any
    other edit raises EditError, or is replaced as `settings.convert` says. `skip_sinks` is ignored:
    weights also edit position 0 and sinks. The result's label is "exact" if the weights equal the
    method's reference intervention up to rounding. Every-write's reference acts at every write, not
    only after the edit's layer: `kl_steered_baked` measures the distance to the edit as steered.

    `neutral` is the text to measure on (default: the bundled sentences). Nothing is measured if a
    condition reads another layer than its edit's; `notes` then says so. `progress` is called with
    stage, done and total. Unless `settings.force`, raises EditError if transformers computes other
    outputs than saescope from either folder, or if the checkpoint's distance from its reference
    exceeds the reference's distance from the unedited model; for approximate methods also if it
    exceeds the steered edits' distance from that model. On any error no folder is left.

    >>> import tempfile
    >>> import saescope as ss
    >>> sae = ss.load_sae("saescope-tiny-sae", 2)
    >>> edit, settings = ss.Edit("2/5", "project"), ss.BakeSettings(measure=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = ss.bake("saescope-tiny", [sae], [edit], folder + "/baked", settings)
    >>> result.method, result.label
    ('every-write', 'exact')
    """
    settings = settings or BakeSettings()
    settings.check()
    out = Path(out).expanduser()
    refuse_existing(out)
    acting = [edit for edit in edits if not edit.is_noop]
    if not acting:
        raise EditError("nothing to bake: no edit changes anything")
    neutral_prompts: Sequence[Prompt] = ()
    if _is_measured(settings) and not any(reads_another_layer(edit) for edit in acting):
        neutral_prompts = measured_part(_neutral_prompts(neutral), settings.measure)
    base = BaseCheckpoint.open(model, device=device, offline=offline)
    inputs = BakeInputs(base, saes, acting, neutral_prompts, progress or _no_progress)
    return _bake(inputs, out, settings)


def _neutral_prompts(neutral: Sequence[Prompt] | None) -> Sequence[Prompt]:
    if neutral is None:
        return bundled_prompts("neutral")[0].prompts
    if not neutral:
        raise PromptError(
            "there is no neutral text to measure on: pass neutral=, or set measure=False"
        )
    return neutral


def _quick_prompts() -> list[Prompt]:
    """Return the beginnings of some bundled sentences, which any model has the context for."""
    prompts = bundled_prompts("neutral")[0].prompts[:_QUICK_PROMPTS]
    return [replace(prompt, text=str(prompt.text)[:_QUICK_CHARACTERS]) for prompt in prompts]


@dataclass(frozen=True)
class _Decision:
    """How the edits are baked."""

    plan: BakePlan
    changes: CheckpointChanges

    unbakeable_reason: str | None
    "Why weights cannot express the edits, if so: the plan then bakes the closest edits."


def _bake(inputs: BakeInputs, out: Path, settings: BakeSettings) -> BakeResult:
    decision = _decide(inputs, settings)
    quick = not _is_measured(settings) and not decision.plan.exact
    if quick and not any(reads_another_layer(edit) for edit in inputs.edits):
        inputs = replace(inputs, neutral_prompts=_quick_prompts())
    refuse_full_disk(out, output_bytes(inputs.base.shards, decision.changes))
    measuring = Measuring()
    with atomic_folder(out) as staging:
        rounding = _write_model(inputs, decision, staging)
        distances = _distances(inputs, decision, settings, staging, measuring)
        files = [*written_files(staging), CARD, MANIFEST]
        result = _result(inputs, decision, distances, rounding, out=out, files=sorted(files))
        result.notes.extend(_notes_on_measuring(inputs, settings, quick, measuring))
        if result.method in _CONSTANT_IN_EMBEDDING and acts_about_mean(inputs.edits):
            result.notes.append(_MEAN_IN_EMBEDDING)
        _write_descriptions(inputs, result, staging)
    measuring.end(out)
    return result


def _distances(
    inputs: BakeInputs,
    decision: _Decision,
    settings: BakeSettings,
    staging: Path,
    measuring: Measuring,
) -> Distances:
    """Measure what is written, and refuse it if it is too far from what it stands for.

    If measuring is interrupted, the checkpoint is kept if the plan is exact (that of converted
    edits may be, for the edits it bakes). An unchecked approximation is not kept.
    """
    if not inputs.neutral_prompts:
        return Distances(stock="nothing was measured")

    def run() -> Distances:
        before = record_base(inputs, [decision.plan])
        return measure(inputs, before, staging, with_transformers=_is_measured(settings))

    distances = measuring.run(run) if decision.plan.exact else run()
    if distances is None:
        return Distances(stock="measuring was interrupted")
    if not settings.force:
        tolerance = 1.0 if _is_measured(settings) else _QUICK_TOLERANCE
        refuse_distant(distances, decision.plan, tolerance=tolerance)
    return distances


def _notes_on_measuring(
    inputs: BakeInputs, settings: BakeSettings, quick: bool, measuring: Measuring
) -> Iterator[str]:
    """Say on how much text was measured, and why nothing was."""
    n = len(inputs.neutral_prompts)
    if measuring.interrupted:
        yield "Nothing was measured: measuring was interrupted."
    elif _is_measured(settings) and not n:
        yield _STREAMED_CONDITION
    elif quick and n:
        yield _QUICK
    elif extent(settings.measure) == "sample":
        yield f"Measured on a sample of {n} texts: measure='full' takes all."


def _is_measured(settings: BakeSettings) -> bool:
    """Whether distances are measured on neutral text."""
    return extent(settings.measure) != "none"


def _decide(inputs: BakeInputs, settings: BakeSettings) -> _Decision:
    """Plan the edits, or with `convert` the closest ones that weights can express."""
    reason = _unbakeable_reason(inputs.edits)
    if reason is not None and settings.convert is None:
        raise EditError(f"{reason}; {_advice(inputs)}")
    bakeable = [nearest_bakeable(edit) for edit in inputs.edits]
    plan = make_plan(inputs.base, inputs.saes, bakeable, settings.method)
    return _Decision(plan, checkpoint_changes(inputs.base.anatomy, plan), reason)


def _unbakeable_reason(edits: Sequence[Edit]) -> str | None:
    """Return why weights cannot express one of the edits, or None."""
    for edit in edits:
        reason = why_not_bakeable(edit)
        if reason is not None:
            return f"edit of {edit.name}: {reason}"
    return None


def _write_model(inputs: BakeInputs, decision: _Decision, staging: Path) -> list[RoundingLoss]:
    """Write the weights and the config; copy the other files."""
    files, progress = inputs.base.files, partial(inputs.progress, "writing")
    rounding = write_checkpoint(inputs.base.shards, staging, decision.changes, progress)
    (staging / CONFIG).write_text(config_text(files, decision.plan), encoding="utf-8")
    copy_companions(files, staging)
    return rounding


def _result(
    inputs: BakeInputs,
    decision: _Decision,
    distances: Distances,
    rounding: list[RoundingLoss],
    *,
    out: Path,
    files: list[str],
) -> BakeResult:
    plan = decision.plan
    converted = decision.unbakeable_reason is not None
    reference = plan.reference.description
    kl_reference, effect = distances.reference, distances.effect
    if converted:  # what counts is the distance from the requested edits, not from the baked ones
        reference = "the edits as they are steered"
        kl_reference, effect = distances.steered, distances.steered_effect
    stock = distances.stock
    # In field names, `hook` stands for this reference: of converted edits, the edits as steered.
    return BakeResult(
        out=out,
        method=plan.method,
        exact=plan.exact and not converted,
        hook=reference,
        why_not=decision.unbakeable_reason or plan.approximation_reason,
        edits=[describe_edit(edit) for edit in inputs.edits],
        converted=converted,
        kl_hook_baked=kl_reference,
        kl_steered_baked=distances.steered,
        kl_base_baked=distances.base,
        kl_base_hook=effect,
        judged_by_transformers=stock if isinstance(stock, StockReading) else None,
        not_judged=stock if isinstance(stock, str) else None,
        rounding=rounding,
        notes=notes(inputs.base.anatomy, inputs.edits, inputs.saes),
        files=files,
    )


def _write_descriptions(inputs: BakeInputs, result: BakeResult, staging: Path) -> None:
    """Write the manifest and the model card."""
    manifest = build_manifest(inputs.base.files, inputs.saes, result, staging)
    text = to_json(manifest, indent=1) + "\n"
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    (staging / CARD).write_text(model_card(manifest), encoding="utf-8")


def _advice(inputs: BakeInputs) -> str:
    """Suggest an alternative and its measured distance."""
    try:
        bakeable = [nearest_bakeable(edit) for edit in inputs.edits]
    except EditError as error:
        return str(error)
    advice = f"steer it at run time, or {_conversion(inputs.edits)}"
    if not inputs.neutral_prompts:
        return f"{advice} (its distance from the edit is not measured)"
    plans = [make_plan(inputs.base, inputs.saes, bakeable, None)]
    if plans[0].method == "every-write":
        with suppress(SourceError, EditError):  # norms that are not γ ⊙ h/rms(h)
            plans.append(make_plan(inputs.base, inputs.saes, bakeable, "readers-above"))
    outputs = record_base(inputs, plans)
    effect = distance(outputs.steered, outputs.unedited)
    distances = {
        method: distance(outputs.steered, reference)
        for method, reference in outputs.references.items()
    }
    method = min(distances, key=lambda method: distances[method].mean)
    closest = distances[method]
    return (
        f"{advice}. Closest on neutral text: method={method!r} with convert='project': KL "
        f"{closest.mean:.2g} nats per token (p99 {closest.p99:.2g}). For scale, the edit itself "
        f"moves the model by {effect.mean:.2g} (p99 {effect.p99:.2g})"
    )


def _conversion(edits: Sequence[Edit]) -> str:
    """Say what `convert` does to the first edit that weights cannot express."""
    edit = next(edit for edit in edits if why_not_bakeable(edit) is not None)
    if edit.op in ("scale", "clamp"):
        return "bake its direction with convert='project'"
    limits = {"scope": edit.scope != "all", "condition": edit.condition is not None}
    dropped = " and ".join(name for name, is_set in limits.items() if is_set)
    return f"bake the same {edit.op} without its {dropped}, with convert='project'"


def _no_progress(_stage: str, _done: int, _total: int) -> None:
    pass
