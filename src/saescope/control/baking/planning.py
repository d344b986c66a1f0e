"""Plan a bake: choose the method, check the model's anatomy, and list the changed tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from saescope.control.baking.anatomy_check import bias_factor, check_anatomy, embedding_scale
from saescope.control.baking.bake_plan import BakePlan
from saescope.control.baking.biases import Factor, plan_biases
from saescope.control.baking.checkpoint_writer import CheckpointChanges, NewTensor
from saescope.control.baking.eligibility import edit_vectors
from saescope.control.baking.methods import choose_method, plan_projection
from saescope.control.baking.settings import Method
from saescope.control.edits import Edit
from saescope.engine.anatomy import Anatomy, read_anatomy
from saescope.engine.config import read_config
from saescope.engine.devices import Device
from saescope.engine.gains import norm_gains
from saescope.engine.lm import LM, load_lm
from saescope.engine.sae import Sae
from saescope.engine.shards import Shards
from saescope.sources.files import Files, open_files


@dataclass(frozen=True)
class BaseCheckpoint:
    """The checkpoint to edit: its files, its anatomy, and its memory-mapped tensors."""

    files: Files
    anatomy: Anatomy
    shards: Shards
    device: Device

    @classmethod
    def open(
        cls, model: str | Path, *, device: Device = "auto", offline: bool = False
    ) -> "BaseCheckpoint":
        """Open a folder or a hub id; raise SourceError for an unknown architecture."""
        files = open_files(str(model), offline=offline)
        return cls(files, read_anatomy(files), Shards.open(files), device)

    def load_streamed(self) -> LM:
        """Return the whole model in float32, streamed one block at a time."""
        last = self.anatomy.n_layers - 1
        return load_lm(
            self.files.source, [last], dtype="float32", device=self.device, streamed=True
        )


def make_plan(
    base: BaseCheckpoint, saes: Sequence[Sae], edits: Sequence[Edit], method: Method | None
) -> BakePlan:
    """Return the plan of the edits, by the default method of their op if `method` is None.

    Raises EditError if the method does not support the edits, and SourceError if unknown parameters
    write or read the residual.
    """
    anatomy = base.anatomy
    vectors = edit_vectors(edits, saes, n_layers=anatomy.n_layers, d_model=anatomy.d_model)
    method = choose_method(vectors, method)
    if method == "bias":
        return plan_biases(anatomy, read_config(base.files), vectors, _bias_factors(base))
    reads = method in ("readers-above", "next-layer")
    gains = norm_gains(base.shards, anatomy, anatomy.norms(writes=True, reads=reads))
    lm = load_lm(base.files.source, [anatomy.last_kind], device=base.device, streamed=True)
    check_anatomy(lm, anatomy, gains, reads=reads)
    scale = 1.0
    if method in ("every-write", "writers-up-to"):
        scale = embedding_scale(lm, anatomy)
    return plan_projection(method, anatomy, gains, vectors, scale)


def _bias_factors(base: BaseCheckpoint) -> Factor:
    """Return a function that runs the blocks whose biases a plan wants to use."""
    lm = base.load_streamed()

    def factor(module: str, alone: bool) -> float:
        return bias_factor(lm, base.anatomy, module, alone=alone)

    return factor


def checkpoint_changes(anatomy: Anatomy, plan: BakePlan) -> CheckpointChanges:
    """Return the changes of tensors; an lm_head that the plan unties becomes a new tensor."""
    embedding = anatomy.embedding.stored[0]
    biases = [
        NewTensor(name, embedding, shape=parameter.shape, values=parameter.values)
        for name, parameter in plan.new.items()
    ]
    if plan.untie_lm_head:
        head = NewTensor(
            _head_name(anatomy), same_shard_as=embedding, copy_of=embedding, update=plan.head
        )
        # Some checkpoints store a tied lm_head as well: drop that copy.
        return CheckpointChanges(plan.changes, [head, *biases], anatomy.head.stored)
    updates = dict(plan.changes)
    if plan.head is not None:
        updates[anatomy.head.stored[0]] = plan.head
    return CheckpointChanges(updates, biases)


def _head_name(anatomy: Anatomy) -> str:
    if anatomy.head.stored:
        return anatomy.head.stored[0]
    outer = "language_model."
    if anatomy.prefix.startswith(outer):
        return outer + anatomy.head.name
    return anatomy.head.name
