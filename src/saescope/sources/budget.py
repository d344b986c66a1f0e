"""How much memory a job takes in each way of running it, and which way fits a budget: pure arithmetic, no I/O.

docs/memory.md says where every term comes from. It lies in this room, not in the engine, because what a job will take
is asked before anything of it is fetched, and without torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from saescope.errors import ResourceError
from saescope.sources.machine import show_bytes

Mode = Literal["whole", "cut", "streamed"]
MODES: tuple[Mode, ...] = get_args(Mode)

# Python, torch, transformers and a tokenizer themselves, before any weights, and the libraries they are mapped from:
# measured, see docs/memory.md.
PROGRAM = 500 * 10**6
LIBRARIES = 175 * 10**6
# What encoding a batch holds of (tokens × d_sae) at once.
ENCODE_BLOCK = 64 * 2**20
# What a product of widened operands holds at once: columns of its result, values of its weights.
_PRODUCT_COLUMNS, _PRODUCT_WEIGHTS = 2048, 4 * 2**20
# A lookup in the embedding maps this much around the row where the file is cached.
_AROUND_A_ROW = 64 * 2**10


@dataclass(frozen=True)
class Footprint:
    """Memory of a process at its peak: what lies in files, which the kernel can drop and read again, and the rest."""

    file_backed: int
    anonymous: int

    @property
    def total(self) -> int:
        """Both together: what the process is seen to hold."""
        return self.file_backed + self.anonymous


@dataclass(frozen=True)
class JobSizes:
    """What the parts of a job take, in bytes as they lie in their files; `blocks` are those up to the last layer.

    `rest` is what only the whole model has: blocks above, final norm, lm_head. `activations` are those of one batch
    within a block, `kept` its residuals at one wanted layer, and `rows` the batch's tokens if that is known.
    `widening` is bytes computed for a byte stored. Weights are `mapped` where they are used as stored, on the CPU; with
    `on_device` encoders are copied too. `residuals` are kept in memory between blocks when streamed (0: in files).
    """

    embedding: int
    blocks: tuple[int, ...]
    rest: int
    encoder: int
    n_saes: int
    activations: int
    kept: int = 0
    encode_block: int = ENCODE_BLOCK
    rows: int | None = None
    widening: float = 1.0
    mapped: bool = True
    on_device: bool = False
    residuals: int = 0


def footprint(sizes: JobSizes, mode: Mode) -> Footprint:
    """The peak of one way of running the job."""
    at_once = (
        1 if mode == "streamed" else sizes.n_saes
    )  # layers whose residuals and encoders are held together
    work = PROGRAM + sizes.activations + sizes.encode_block + at_once * sizes.kept
    work += sizes.residuals if mode == "streamed" else 0
    encoders = at_once * sizes.encoder
    held_blocks = sum(sizes.blocks) if mode != "streamed" else max(sizes.blocks, default=0)
    rest = sizes.rest if mode == "whole" else 0
    if not sizes.mapped:
        held = round(sizes.widening * (sizes.embedding + held_blocks + rest))
        # The pages that weights are converted or copied from go when their shard is done.
        read = LIBRARIES + max(sizes.embedding, sizes.encoder, *sizes.blocks)
        return Footprint(read, work + held + (encoders if sizes.on_device else 0))
    if mode == "whole":
        return Footprint(LIBRARIES + sizes.embedding + held_blocks + rest + sizes.encoder, work)
    # Encoders are read whole, one by one, when they are checked: before any block. Later a part of one is held.
    weights = max(_touched(sizes) + max(sizes.blocks, default=0), sizes.encoder)
    return Footprint(LIBRARIES + weights, work)


def _touched(sizes: JobSizes) -> int:
    """Pages of the embedding that a batch's tokens can reach; all where their number is not known."""
    return (
        sizes.embedding if sizes.rows is None else min(sizes.embedding, sizes.rows * _AROUND_A_ROW)
    )


def footprints(sizes: JobSizes) -> Mapping[Mode, Footprint]:
    """The peak of every way of running the job."""
    return {mode: footprint(sizes, mode) for mode in MODES}


def choose_mode(sizes: JobSizes, budget: int, modes: Sequence[Mode] = MODES) -> Mode:
    """The first of `modes` that stays within `budget` bytes; raises ResourceError with what would fit.

    Where the budget cannot keep all mapped blocks cached, streamed is taken before the others. A job that only reads
    residuals asks for ("cut", "streamed"); "whole" is the model that can also generate.
    """
    taken = {mode: footprint(sizes, mode).total for mode in modes}
    within = [mode for mode in modes if taken[mode] <= budget]
    if within:
        return "streamed" if "streamed" in within and _read_again(sizes, budget) else within[0]
    least = min(taken, key=lambda mode: taken[mode])
    instead = "; or ".join(suggest_changes(sizes, budget, modes))
    raise ResourceError(
        f"the least memory this takes is {show_bytes(taken[least])} ({least}), the budget is {show_bytes(budget)}: "
        + instead
    )


def _read_again(sizes: JobSizes, budget: int) -> bool:
    """Whether mapped blocks cannot all stay cached: a cut model would read them again for every batch."""
    return sizes.mapped and sizes.embedding + sum(sizes.blocks) > budget


def suggest_changes(sizes: JobSizes, budget: int, modes: Sequence[Mode] = MODES) -> list[str]:
    """What to change so that the job stays within the budget, most useful first; the last is more memory."""
    lines = []
    stored = replace(sizes, widening=1.0, mapped=True)
    if not sizes.mapped and not sizes.on_device and _least(stored, modes) <= budget:
        lines.append(
            "compute in the dtype the weights are stored in (--dtype auto): they then stay in their files"
        )
    if room := _most(sizes.n_saes - 1, budget, modes, lambda n: replace(sizes, n_saes=n)):
        lines.append(f"ask for at most {room} of the {sizes.n_saes} layers at a time")
    if room := _most(
        len(sizes.blocks) - 1, budget, modes, lambda n: replace(sizes, blocks=sizes.blocks[:n])
    ):
        lines.append(f"ask for layers up to {room - 1}")
    if _least(replace(sizes, activations=sizes.activations // 8), modes) <= budget:
        lines.append("use an eighth of the --batch-tokens")
    return [*lines, f"allow --memory {-(-_least(sizes, modes) // 10**8) / 10:.1f}GB"]


def _most(n: int, budget: int, modes: Sequence[Mode], changed: Callable[[int], JobSizes]) -> int:
    """The largest number up to n whose job stays within the budget; 0 where none does."""
    return next((m for m in range(n, 0, -1) if _least(changed(m), modes) <= budget), 0)


def _least(sizes: JobSizes, modes: Sequence[Mode]) -> int:
    return min(footprint(sizes, mode).total for mode in modes)


def activation_bytes(tokens: int, d_model: int, mlp: int, attention: int, value: int) -> int:
    """Bytes a batch of this many tokens takes inside one block, and while its residuals are encoded.

    `attention` is the width of queries, keys and values together, `value` the bytes of a number. What linear layers
    widen bfloat16 into (engine/matmul_kernels.py) is in it.
    """
    inside = value * (3 * mlp + 4 * d_model + 2 * attention)
    in_float32 = 4 * 4 * d_model  # norms are taken, and residuals encoded, in float32
    widened = (
        4 * (tokens * (max(mlp, d_model, attention) + _PRODUCT_COLUMNS) + _PRODUCT_WEIGHTS)
        if value == 2
        else 0
    )
    return tokens * (inside + in_float32) + widened
