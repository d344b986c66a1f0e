"""Put edits into weights: a checkpoint for stock transformers, labelled exact or approximate.

Read top to bottom: which edits can be baked, how (`planning.py`), the outputs of the base model
under the hook, the files (`checkpoint_writer.py`), and the written checkpoint's own outputs. Only
then the folder gets its name.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saescope.control.baking.bake_result import MANIFEST, BakeResult, Distances
from saescope.control.baking.card import config_text, copied_files, describe_edit, model_card, notes
from saescope.control.baking.card import manifest as manifest_of
from saescope.control.baking.checkpoint_writer import (
    CheckpointChanges,
    RoundingLoss,
    output_bytes,
    write_checkpoint,
)
from saescope.control.baking.distance import RecordedOutputs, distance, record_outputs
from saescope.control.baking.eligibility import (
    nearest_bakeable,
    reads_another_layer,
    why_not_bakeable,
)
from saescope.control.baking.methods import BakePlan
from saescope.control.baking.planning import BaseCheckpoint, checkpoint_changes, make_plan
from saescope.control.baking.settings import BakeSettings, Method
from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine.devices import Device
from saescope.engine.lm import LM
from saescope.engine.logits import Logits
from saescope.engine.sae import Sae
from saescope.engine.tokens import prompt_ids
from saescope.errors import EditError, PromptError, SourceError
from saescope.sources.checkpoint import CONFIG
from saescope.sources.prompts import Prompt, bundled_prompts
from saescope.store.atomic import atomic_folder, refuse_existing, refuse_full_disk

Progress = Callable[[str, int, int], None]


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
    """Write `model` with edits in its weights into the new folder `out`, whole or not at all.

    Distances are measured on `neutral` text (default: the bundled sentences), unless a condition
    reads another layer than its edit's. `progress` is called with the stage, done and total. Raises
    EditError, SourceError, PromptError or ResourceError, and then leaves nothing.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import saescope as ss
    >>> sae = ss.load_sae("saescope-tiny-sae", 2)
    >>> settings = ss.BakeSettings(measure=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = Path(folder) / "baked"
    ...     result = ss.bake("saescope-tiny", [sae], [ss.Edit("2/5", "project")], out, settings)
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
    text: Sequence[Prompt] = ()
    if settings.measure and not any(reads_another_layer(edit) for edit in acting):
        text = bundled_prompts("neutral")[0].prompts if neutral is None else neutral
        if not text:
            raise PromptError(
                "there is no neutral text to measure on: give some, or do not measure"
            )
    base = BaseCheckpoint.open(model, device=device, offline=offline)
    return _bake(_Job(base, saes, acting, text, progress or _no_progress), out, settings)


@dataclass(frozen=True)
class _Job:
    """What is baked, and the text to measure on (empty: nothing is measured)."""

    base: BaseCheckpoint
    saes: Sequence[Sae]
    edits: Sequence[Edit]
    text: Sequence[Prompt]
    progress: Progress

    def rows(self, lm: LM) -> list[list[int]]:
        """Token ids of the text."""
        return [prompt_ids(lm, prompt) for prompt in self.text]


@dataclass(frozen=True)
class _Decision:
    """How the edits are baked; `obstacle` is why they themselves cannot be, if so."""

    plan: BakePlan
    changes: CheckpointChanges
    obstacle: str | None


def _bake(job: _Job, out: Path, settings: BakeSettings) -> BakeResult:
    decision = _decide(job, settings)
    refuse_full_disk(out, output_bytes(job.base.shards, decision.changes))
    before = None
    if job.text:
        plans = [decision.plan] if decision.obstacle is None else []
        before = _record_base(job, plans)
    with atomic_folder(out) as staging:
        rounding = _write_model(job, decision, staging)
        distances = Distances()
        if before is not None:
            distances = _measure(job, before, staging)
        files = [*(path.name for path in staging.iterdir()), "README.md", MANIFEST]
        result = _result(job, decision, distances, rounding, out=out, files=sorted(files))
        _write_descriptions(job, result, staging)
    return result


def _decide(job: _Job, settings: BakeSettings) -> _Decision:
    """Plan the edits, or with `convert` the closest ones that weights can represent."""
    obstacle = _obstacle(job.edits)
    if obstacle is not None and settings.convert is None:
        raise EditError(f"{obstacle}; {_advice(job)}")
    bakeable = [nearest_bakeable(edit) for edit in job.edits]
    plan = make_plan(job.base, job.saes, bakeable, settings.method)
    return _Decision(plan, checkpoint_changes(job.base.anatomy, plan), obstacle)


def _obstacle(edits: Sequence[Edit]) -> str | None:
    """Why weights cannot represent one of the edits."""
    for edit in edits:
        reason = why_not_bakeable(edit)
        if reason is not None:
            return f"edit of {edit.name}: {reason}"
    return None


def _write_model(job: _Job, decision: _Decision, staging: Path) -> list[RoundingLoss]:
    """Write all that transformers loads, and copy what belongs to it."""
    files, progress = job.base.files, partial(job.progress, "writing")
    rounding = write_checkpoint(job.base.shards, staging, decision.changes, progress)
    (staging / CONFIG).write_text(config_text(files, decision.plan), encoding="utf-8")
    for name in copied_files(files):
        shutil.copyfile(files.path(name), staging / name)
    return rounding


def _result(
    job: _Job,
    decision: _Decision,
    distances: Distances,
    rounding: list[RoundingLoss],
    *,
    out: Path,
    files: list[str],
) -> BakeResult:
    plan, obstacle = decision.plan, decision.obstacle
    converted = obstacle is not None
    return BakeResult(
        out=out,
        method=plan.method,
        exact=plan.exact and not converted,
        hook="the edits as they are steered" if converted else plan.hook.description,
        why_not=obstacle or plan.why_not,
        edits=[describe_edit(edit) for edit in job.edits],
        converted=converted,
        kl_hook_baked=distances.steered if converted else distances.hook,
        kl_steered_baked=distances.steered,
        kl_base_baked=distances.base,
        rounding=rounding,
        notes=notes(job.base.anatomy, job.edits, job.saes),
        files=files,
    )


def _write_descriptions(job: _Job, result: BakeResult, staging: Path) -> None:
    """Write the manifest and the model card."""
    manifest = manifest_of(job.base.files, job.saes, result, staging)
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    (staging / "README.md").write_text(model_card(manifest), encoding="utf-8")


@dataclass(frozen=True)
class _BaseOutputs:
    """The base model's outputs: unedited, with the edits as steered, and under methods' hooks."""

    unedited: RecordedOutputs
    steered: RecordedOutputs
    hooked: Mapping[Method, RecordedOutputs]


def _record_base(job: _Job, plans: Sequence[BakePlan]) -> _BaseOutputs:
    base = job.base
    lm = base.load_streamed()
    rows, logits = job.rows(lm), Logits(base.shards, base.anatomy, lm.device)
    states: list[Any] = [None, steered(lm, job.saes, job.edits), *(plan.hook for plan in plans)]
    outputs = []
    for state in states:
        outputs.append(record_outputs(lm, logits, rows, base.anatomy, state))
        job.progress("measuring", len(outputs), len(states))
    unedited, with_edits, *with_hooks = outputs
    methods = [plan.method for plan in plans]
    return _BaseOutputs(unedited, with_edits, dict(zip(methods, with_hooks, strict=True)))


def _measure(job: _Job, before: _BaseOutputs, staging: Path) -> Distances:
    """How far the written checkpoint, loaded again, is from the base model's outputs."""
    written = BaseCheckpoint.open(staging, device=job.base.device)
    lm = written.load_streamed()
    logits = Logits(written.shards, written.anatomy, lm.device)
    baked = record_outputs(lm, logits, job.rows(lm), written.anatomy)
    job.progress("comparing", 1, 1)
    hook = None
    for outputs in before.hooked.values():
        hook = distance(outputs, baked)
    return Distances(
        hook=hook,
        steered=distance(before.steered, baked),
        base=distance(before.unedited, baked),
    )


def _advice(job: _Job) -> str:
    """What can be done instead of baking these edits, and how close the closest of it is."""
    try:
        bakeable = [nearest_bakeable(edit) for edit in job.edits]
    except EditError as error:
        return str(error)
    advice = "steer it at run time, or bake its direction with convert='project'"
    if not job.text:
        return f"{advice}, which is not measured here"
    plans = [make_plan(job.base, job.saes, bakeable, None)]
    if plans[0].method == "every-write":
        with suppress(SourceError, EditError):  # norms that weights cannot read through
            plans.append(make_plan(job.base, job.saes, bakeable, "readers-above"))
    outputs = _record_base(job, plans)
    effect = distance(outputs.steered, outputs.unedited)
    distances = {
        method: distance(outputs.steered, hooked) for method, hooked in outputs.hooked.items()
    }
    method = min(distances, key=lambda method: distances[method].mean)
    closest = distances[method]
    return (
        f"{advice} and method={method!r}, which is {closest.mean:.2g} nats per token "
        f"(p99 {closest.p99:.2g}) from the edit on neutral text, where the edit is "
        f"{effect.mean:.2g} (p99 {effect.p99:.2g}) from the model"
    )


def _no_progress(_stage: str, _done: int, _total: int) -> None:
    pass
