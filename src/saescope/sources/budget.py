"""Memory of a job in each way of running it, and which way fits a budget. Pure arithmetic, no I/O.

docs/numerics-and-memory.md derives every term. This is not in the engine because it is asked before
anything is fetched, and without torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from saescope.errors import ResourceError
from saescope.sources.machine import show_bytes

Mode = Literal["whole", "cut", "streamed"]
MODES: tuple[Mode, ...] = get_args(Mode)

# Python, torch, transformers and a tokenizer before any weights, and the libraries mapped for them:
# measured.
PROGRAM = 500 * 10**6
LIBRARIES = 175 * 10**6
# Bytes of the (tokens, d_sae) matrix that encoding a batch holds at once.
ENCODE_BLOCK = 64 * 2**20
# Matmuls of widened operands hold so many columns of their result and values of their weights.
_MATMUL_COLUMNS, _MATMUL_WEIGHTS = 2048, 4 * 2**20
# Reading one row of a mapped embedding maps this many bytes around it.
_BYTES_AROUND_ROW = 64 * 2**10


@dataclass(frozen=True)
class Footprint:
    """A process's peak memory: file-backed pages, which the kernel can drop, and the rest."""

    file_backed: int
    anonymous: int

    @property
    def total(self) -> int:
        """Both together: the resident set size."""
        return self.file_backed + self.anonymous


@dataclass(frozen=True)
class JobSizes:
    """Sizes of a job's parts in bytes, weights as stored."""

    embedding: int
    blocks: tuple[int, ...]
    """Blocks up to the last requested layer."""

    rest: int
    """What only the whole model has: the blocks above, the final norm, lm_head."""

    encoder: int
    n_saes: int
    activations: int
    """Activations of one batch within one block."""

    kept: int = 0
    """Residuals of one batch at one requested layer."""

    encode_block: int = ENCODE_BLOCK
    rows: int | None = None
    """Tokens of one batch, if known: rows of the embedding that it reads."""

    widening: float = 1.0
    """Bytes computed with per byte stored."""

    mapped: bool = True
    """Whether weights are used as stored, mapped from their files (CPU only)."""

    on_device: bool = False
    """Whether weights and encoders are copied to a GPU."""

    residuals: int = 0
    """Residuals kept in memory between blocks when streamed; 0 if they are kept in files."""


def footprint(sizes: JobSizes, mode: Mode) -> Footprint:
    """The peak memory of one way of running the job."""
    streamed = mode == "streamed"
    layers_at_once = 1 if streamed else sizes.n_saes
    work = PROGRAM + sizes.activations + sizes.encode_block + layers_at_once * sizes.kept
    if streamed:
        work += sizes.residuals
    if sizes.mapped:
        return Footprint(LIBRARIES + _mapped_weights(sizes, mode), work)
    copied = round(sizes.widening * _held_weights(sizes, mode))
    if sizes.on_device:
        copied += layers_at_once * sizes.encoder
    # Pages of the files are released as soon as the weights of a shard are converted or copied.
    source_pages = max(sizes.embedding, sizes.encoder, *sizes.blocks)
    return Footprint(LIBRARIES + source_pages, work + copied)


def _mapped_weights(sizes: JobSizes, mode: Mode) -> int:
    if mode == "whole":
        return _held_weights(sizes, mode) + sizes.encoder
    # Loading checks the encoders one by one and reads each whole, before any block is read. Later
    # only a part of one is resident.
    return max(_embedding_pages(sizes) + _largest_block(sizes), sizes.encoder)


def _held_weights(sizes: JobSizes, mode: Mode) -> int:
    """Weights of the model that are held together."""
    if mode == "streamed":
        return sizes.embedding + _largest_block(sizes)
    held = sizes.embedding + sum(sizes.blocks)
    if mode == "whole":
        held += sizes.rest
    return held


def _largest_block(sizes: JobSizes) -> int:
    return max(sizes.blocks, default=0)


def _embedding_pages(sizes: JobSizes) -> int:
    """Pages of the embedding that one batch's tokens can touch."""
    if sizes.rows is None:
        return sizes.embedding
    return min(sizes.embedding, sizes.rows * _BYTES_AROUND_ROW)


def footprints(sizes: JobSizes) -> Mapping[Mode, Footprint]:
    """The peak memory of every way of running the job."""
    return {mode: footprint(sizes, mode) for mode in MODES}


def choose_mode(sizes: JobSizes, budget: int, modes: Sequence[Mode] = MODES) -> Mode:
    """The first of `modes` that fits `budget` bytes; raises ResourceError, with what would fit.

    `streamed` goes first if the budget cannot keep all mapped blocks cached, because a cut model
    would read them again for every batch. A job that only reads residuals passes ("cut",
    "streamed"); "whole" is the model that can also generate.
    """
    totals = {mode: footprint(sizes, mode).total for mode in modes}
    fitting = [mode for mode in modes if totals[mode] <= budget]
    blocks_exceed_cache = sizes.mapped and sizes.embedding + sum(sizes.blocks) > budget
    if blocks_exceed_cache and "streamed" in fitting:
        return "streamed"
    if fitting:
        return fitting[0]
    least = min(modes, key=totals.__getitem__)
    suggestions = "; or ".join(suggest_changes(sizes, budget, modes))
    raise ResourceError(
        f"the least memory this takes is {show_bytes(totals[least])} ({least}), "
        f"the budget is {show_bytes(budget)}: {suggestions}"
    )


def suggest_changes(sizes: JobSizes, budget: int, modes: Sequence[Mode] = MODES) -> list[str]:
    """Changes that make the job fit the budget, most useful first; the last one is more memory."""

    def fits(changed: JobSizes) -> bool:
        return _least_memory(changed, modes) <= budget

    suggestions = []
    stored = replace(sizes, widening=1.0, mapped=True)
    if not sizes.mapped and not sizes.on_device and fits(stored):
        suggestions.append(
            "compute in the dtype the weights are stored in (dtype auto): "
            "they then stay in their files"
        )
    saes = _largest(sizes.n_saes - 1, lambda n: fits(replace(sizes, n_saes=n)))
    if saes:
        suggestions.append(f"ask for at most {saes} of the {sizes.n_saes} layers at a time")
    blocks = _largest(
        len(sizes.blocks) - 1, lambda n: fits(replace(sizes, blocks=sizes.blocks[:n]))
    )
    if blocks:
        suggestions.append(f"ask for layers up to {blocks - 1}")
    if fits(replace(sizes, activations=sizes.activations // 8)):
        suggestions.append("use an eighth of the batch_tokens")
    tenths_of_gb = -(-_least_memory(sizes, modes) // 10**8)  # rounded up
    return [*suggestions, f"raise the memory budget to {tenths_of_gb / 10:.1f}GB"]


def _largest(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, or 0."""
    return next((n for n in range(limit, 0, -1) if fits(n)), 0)


def _least_memory(sizes: JobSizes, modes: Sequence[Mode]) -> int:
    return min(footprint(sizes, mode).total for mode in modes)


def activation_bytes(tokens: int, d_model: int, mlp: int, attention: int, value: int) -> int:
    """Bytes that a batch takes inside one block, and while its residuals are encoded.

    `attention` is the width of queries, keys and values together, `value` the bytes of a number.
    With bfloat16, what the engine's matmuls widen is included.
    """
    in_block = value * (3 * mlp + 4 * d_model + 2 * attention)
    in_float32 = 4 * 4 * d_model  # norms and encoders compute in float32
    widened = 0
    if value == 2:
        columns = max(mlp, d_model, attention) + _MATMUL_COLUMNS
        widened = 4 * (tokens * columns + _MATMUL_WEIGHTS)
    return tokens * (in_block + in_float32) + widened
