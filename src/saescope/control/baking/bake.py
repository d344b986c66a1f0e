"""Edits put into weights: a checkpoint that stock transformers loads, said to be exact or not, and measured.

Read top to bottom: what may be baked, how (`methods.py`), the base model under the hook, the files (`surgery.py`),
the written checkpoint read again, and only then the folder gets its name.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from saescope.control.baking.anatomy_check import check_anatomy
from saescope.control.baking.bake_result import MANIFEST, BakeResult
from saescope.control.baking.biases import plan_biases
from saescope.control.baking.card import config_text, copied_files, describe, notes, readme, record
from saescope.control.baking.checkpoint_writer import (
    NewTensor,
    RoundingLoss,
    output_bytes,
    write_checkpoint,
)
from saescope.control.baking.distance import Distance, RecordedOutputs, distance, record_outputs
from saescope.control.baking.eligibility import (
    edit_vectors,
    nearest_bakeable,
    reads_another_layer,
    why_not_bakeable,
)
from saescope.control.baking.methods import (
    BakePlan,
    WeightUpdate,
    choose_method,
    plan_projection,
)
from saescope.control.baking.settings import BakeSettings, Method
from saescope.control.edits import Edit
from saescope.control.steer import steered
from saescope.engine.anatomy import Anatomy, read_anatomy
from saescope.engine.config import read_config
from saescope.engine.devices import Device
from saescope.engine.gains import norm_gains
from saescope.engine.lm import LM, load_lm
from saescope.engine.logits import Logits
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.engine.tokens import prompt_ids
from saescope.errors import EditError, PromptError, SourceError
from saescope.sources.checkpoint import CONFIG
from saescope.sources.files import Files, open_files
from saescope.sources.prompts import Prompt, bundled_prompts
from saescope.store.atomic import atomic_folder, refuse_existing, refuse_full_disk

_ADVICE = "steer it at run time, or bake its direction with --as project"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Job:
    """What is baked: the checkpoint, the SAEs, and the text to measure on (none where nothing is measured)."""

    files: Files
    anatomy: Anatomy
    shards: Shards
    saes: Sequence[Sae]
    text: Sequence[Prompt]
    device: Device
    progress: Progress

    def rows(self, lm: LM) -> list[list[int]]:
        """Token ids of the text."""
        if not self.text:
            raise PromptError(
                "there is no neutral text to measure on: give some, or measure nothing"
            )
        return [prompt_ids(lm, prompt) for prompt in self.text]


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

    Edits that depend on a feature's firing cannot be baked: with `convert` they become projections of the same
    directions, and the result is compared with them. Distances are over the tokens of `neutral` text, the bundled
    sentences when left out; none where an edit's condition is of another layer than its own. `progress` is called with
    what is being done, done and in all. Raises EditError, SourceError, PromptError or ResourceError, and then leaves
    nothing.
    """
    settings = settings or BakeSettings()
    settings.check()
    out = Path(out).expanduser()
    refuse_existing(out)
    files = open_files(str(model), offline=offline)
    text = bundled_prompts("neutral")[0].prompts if neutral is None else neutral
    wanted = [edit for edit in edits if not edit.is_noop]
    measure = settings.measure and not any(map(reads_another_layer, wanted))
    text = text if measure else ()
    job = _Job(
        files, read_anatomy(files), Shards.open(files), saes, text, device, progress or _quiet
    )
    if not wanted:
        raise EditError("nothing to bake: no edit changes anything")
    reason = next(
        (f"edit of {e.name}: {why}" for e in wanted if (why := why_not_bakeable(e))), None
    )
    if reason and settings.convert is None:
        raise EditError(f"{reason}; {_instead(job, wanted)}")
    plan = _plan(job, [nearest_bakeable(edit) for edit in wanted], settings.method)
    refuse_full_disk(
        out, output_bytes(job.shards, _new_tensors(job.anatomy, plan), _dropped(job.anatomy, plan))
    )
    before = _read_base(job, wanted, [] if reason else [plan]) if measure else {}
    with atomic_folder(out) as staging:
        rounding = _write_model(job, plan, staging)
        far = _compare(job, before, staging)
        baked = BakeResult(
            out=out,
            method=plan.method,
            exact=plan.exact and reason is None,
            hook="the edits as they are steered" if reason else plan.hook.description,
            why_not=reason or plan.why_not,
            edits=[describe(edit) for edit in wanted],
            converted=reason is not None,
            kl_hook_baked=far.get("steered" if reason else plan.hook.description),
            kl_steered_baked=far.get("steered"),
            kl_base_baked=far.get("base"),
            rounding=rounding,
            notes=notes(job.anatomy, wanted, saes),
            files=sorted([*(path.name for path in staging.iterdir()), "README.md", MANIFEST]),
        )
        _describe(job, baked, staging)
    return baked


def _write_model(job: _Job, plan: BakePlan, staging: Path) -> list[RoundingLoss]:
    """All that transformers loads, and what goes along."""
    new, drop = _new_tensors(job.anatomy, plan), _dropped(job.anatomy, plan)
    told = partial(job.progress, "writing")
    rounding = write_checkpoint(job.shards, staging, _changes(job.anatomy, plan), new, drop, told)
    (staging / CONFIG).write_text(config_text(job.files, plan), encoding="utf-8")
    for name in copied_files(job.files):
        shutil.copyfile(job.files.path(name), staging / name)
    return rounding


def _describe(job: _Job, baked: BakeResult, staging: Path) -> None:
    """The manifest and the model card."""
    whole = record(job.files, job.saes, baked, staging)
    manifest = json.dumps(whole, ensure_ascii=False, indent=1) + "\n"
    (staging / MANIFEST).write_text(manifest, encoding="utf-8")
    (staging / "README.md").write_text(readme(whole), encoding="utf-8")


def _dropped(anatomy: Anatomy, plan: BakePlan) -> tuple[str, ...]:
    """An lm_head that was stored beside the embedding it is tied to."""
    return anatomy.head.stored if plan.unties else ()


def _quiet(_what: str, _done: int, _all: int) -> None:
    pass


def _plan(job: _Job, edits: Sequence[Edit], method: Method | None) -> BakePlan:
    """The plan, once it is shown that every writer (and reader) it needs is known."""
    anatomy = job.anatomy
    bound = edit_vectors(edits, job.saes, n_layers=anatomy.n_layers, d_model=anatomy.d_model)
    chosen = choose_method(bound, method)
    if chosen == "bias":
        return plan_biases(anatomy, read_config(job.files), bound)
    reads = chosen in ("readers-above", "next-layer")
    gains = norm_gains(job.shards, anatomy, anatomy.norms(writes=True, reads=reads))
    lm = load_lm(job.files.source, [anatomy.last_kind], device=job.device, streamed=True)
    check_anatomy(lm, anatomy, gains, reads=reads)
    return plan_projection(chosen, anatomy, gains, bound, _embedding_scale(lm))


def _embedding_scale(lm: LM) -> float:
    """What token embeddings are multiplied by on their way to the residual (√d_model in Gemma)."""
    import torch

    embedding: Any = lm.decoder.get_input_embeddings()  # type: ignore[operator]
    ids = torch.arange(min(64, lm.vocab_size), device=lm.device)
    with torch.inference_mode():
        given, stored = embedding(ids).float(), embedding.weight[ids].float()
    scale = float(getattr(embedding, "scalar_embed_scale", 1.0))
    if (given - scale * stored).abs().max() > 0.02 * given.abs().max():
        raise SourceError(
            f"{lm.spec.repo}: its token embeddings are not what it stores, times a number"
        )
    return scale


def _changes(anatomy: Anatomy, plan: BakePlan) -> Mapping[str, WeightUpdate]:
    """Changes of tensors that the checkpoint has, its own lm_head among them."""
    own_head = plan.head is not None and not plan.unties
    return {
        **plan.changes,
        **({anatomy.head.stored[0]: plan.head} if own_head and plan.head else {}),
    }


def _new_tensors(anatomy: Anatomy, plan: BakePlan) -> list[NewTensor]:
    """An lm_head of its own where the embedding was it, and biases."""
    beside = anatomy.embedding.stored[0]
    biases = [
        NewTensor(name, beside, shape=shape, values=values)
        for name, (shape, values) in plan.new.items()
    ]
    if not plan.unties:
        return biases
    outer = "language_model." if anatomy.prefix.startswith("language_model.") else ""
    name = anatomy.head.stored[0] if anatomy.head.stored else outer + anatomy.head.name
    return [NewTensor(name, beside, copied=beside, change=plan.head), *biases]


def _read_base(
    job: _Job, wanted: Sequence[Edit], plans: Sequence[BakePlan]
) -> dict[str, RecordedOutputs]:
    """The unedited model, with the edits as they are steered, and with each plan's hook, by its words."""
    lm = load_lm(
        job.files.source,
        [job.anatomy.n_layers - 1],
        dtype="float32",
        device=job.device,
        streamed=True,
    )
    rows, logits = job.rows(lm), Logits(job.shards, job.anatomy, lm.device)
    ways: dict[str, Any] = {"base": None, "steered": steered(lm, job.saes, wanted)}
    ways |= {plan.hook.description: plan.hook for plan in plans}
    found = {}
    for number, (name, way) in enumerate(ways.items()):
        found[name] = record_outputs(lm, logits, rows, job.anatomy, way)
        job.progress("measuring", number + 1, len(ways))
    return found


def _compare(
    job: _Job, before: Mapping[str, RecordedOutputs], staging: Path
) -> dict[str, Distance]:
    """How far the written checkpoint, loaded again, is from each reading of the base."""
    if not before:
        return {}
    files = open_files(str(staging))
    anatomy = read_anatomy(files)
    lm = load_lm(staging, [anatomy.n_layers - 1], dtype="float32", device=job.device, streamed=True)
    baked = record_outputs(
        lm, Logits(Shards.open(files), anatomy, lm.device), job.rows(lm), anatomy
    )
    job.progress("comparing", 1, 1)
    return {name: distance(one, baked) for name, one in before.items()}


def _instead(job: _Job, wanted: Sequence[Edit]) -> str:
    """What can be done instead of baking these edits, and how far the nearest of it is from them."""
    try:
        others = [nearest_bakeable(edit) for edit in wanted]
    except EditError as error:
        return str(error)
    if not job.text:
        return f"{_ADVICE}, which is not measured here"
    far, method, effect = _nearest_method(job, wanted, others)
    return (
        f"{_ADVICE} --method {method}, which is {far.mean:.2g} nats a token (p99 {far.p99:.2g}) from the edit on "
        f"neutral text, where the edit is {effect.mean:.2g} (p99 {effect.p99:.2g}) from the model"
    )


def _nearest_method(
    job: _Job, wanted: Sequence[Edit], others: Sequence[Edit]
) -> tuple[Distance, Method, Distance]:
    """Which exact method of the other edits is nearest to the wanted ones, how near, and how far those go."""
    plans = [_plan(job, others, None)]
    if plans[0].method == "every-write":
        with suppress(SourceError, EditError):  # norms that weights cannot read through
            plans.append(_plan(job, others, "readers-above"))
    ways = _read_base(job, wanted, plans)
    edit = ways.pop("steered")
    effect = distance(edit, ways.pop("base"))
    far = {plan.method: distance(edit, ways[plan.hook.description]) for plan in plans}
    method = min(far, key=lambda name: far[name].mean)
    return far[method], method, effect
