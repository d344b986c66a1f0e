"""Memory of a job in each way of running it, and which way fits a budget. Pure arithmetic, no I/O.

docs/numerics-and-memory.md derives every term and compares the sums with measured peaks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from saescope.errors import ResourceError
from saescope.sources.machine import show_bytes

Mode = Literal["whole", "cut", "streamed"]
MODES: tuple[Mode, ...] = get_args(Mode)

# Python, torch and transformers before any weights, and the libraries mapped for them: measured.
PROGRAM = 315 * 10**6
LIBRARIES = 260 * 10**6
# A fast tokenizer holds so many times the bytes of its tokenizer.json: measured.
TOKENIZER_FACTOR = 15
# Bytes of the (tokens, d_sae) matrix that encoding a batch holds at once.
ENCODE_BLOCK = 64 * 2**20
# Matmuls of widened operands hold so many columns of their result and values of their weights.
_MATMUL_COLUMNS, _MATMUL_WEIGHTS = 2048, 4 * 2**20
# Reading one row of a mapped embedding maps this many bytes around it.
_BYTES_AROUND_ROW = 64 * 2**10


@dataclass(frozen=True)
class Footprint:
    """A process's memory: file-backed pages, which the kernel can drop, and the rest."""

    file_backed: int
    anonymous: int

    @property
    def total(self) -> int:
        """Both together: the resident set size."""
        return self.file_backed + self.anonymous


@dataclass(frozen=True)
class WeightBytes:
    """How some weights are held: used as stored and mapped, or as copies in memory.

    Attributes:
        mapped: Weights used as they are stored.
        converted: Copies that only the requested dtype makes necessary; `stored` in their files.
        copied: Copies that every dtype makes necessary, such as experts joined to one tensor.
        source: Bytes of files that making the largest copy reads at a time.
    """

    mapped: int = 0
    converted: int = 0
    stored: int = 0
    copied: int = 0
    source: int = 0

    def __add__(self, other: "WeightBytes") -> "WeightBytes":
        """Return both together."""
        return WeightBytes(
            self.mapped + other.mapped,
            self.converted + other.converted,
            self.stored + other.stored,
            self.copied + other.copied,
            max(self.source, other.source),
        )

    @property
    def anonymous(self) -> int:
        """Bytes of all copies."""
        return self.converted + self.copied

    @property
    def total(self) -> int:
        """Bytes of all weights as they are held."""
        return self.mapped + self.anonymous

    def as_stored(self) -> "WeightBytes":
        """The same weights, computed in the dtype they are stored in."""
        return WeightBytes(self.mapped + self.stored, 0, 0, self.copied, self.source)


@dataclass(frozen=True)
class JobSizes:
    """Sizes of a job's parts in bytes."""

    embedding: WeightBytes
    """The embedding, and all else beside the blocks that runs before them."""

    blocks: tuple[WeightBytes, ...]
    """Blocks up to the last requested layer."""

    rest: WeightBytes
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

    tokenizer: int = 0
    packed_head: int = 0
    """The lm_head's copy in the layout of its matmul kernel, which some dtypes make."""

    on_device: bool = False
    """Whether weights and encoders are copied to a GPU."""

    residuals: int = 0
    """Residuals kept in memory between blocks when streamed; 0 if they are kept in files."""

    results: int = 0
    """Features and statistics of all prompts."""

    @property
    def loaded(self) -> WeightBytes:
        """Weights of the model up to the last requested layer."""
        return sum(self.blocks, self.embedding)


def footprint(sizes: JobSizes, mode: Mode) -> Footprint:
    """The peak memory of one way of running the job: that of its largest phase."""
    return max(_phases(sizes, mode), key=lambda phase: phase.total)


def _phases(sizes: JobSizes, mode: Mode) -> Iterator[Footprint]:
    """Yield the memory while the embedding is read, SAEs are checked, and batches are computed."""
    yield Footprint(LIBRARIES + sizes.embedding.source, PROGRAM + sizes.embedding.anonymous)
    program = PROGRAM + sizes.tokenizer
    # Loading checks the encoders one by one and reads each whole, before any block is computed.
    loaded = sizes.embedding if mode == "streamed" else sizes.loaded
    checked = sizes.n_saes * sizes.encoder if sizes.on_device else 0
    yield Footprint(LIBRARIES + sizes.encoder, program + loaded.anonymous + checked)
    yield _computing(sizes, mode, program)


def _computing(sizes: JobSizes, mode: Mode, program: int) -> Footprint:
    streamed = mode == "streamed"
    layers_at_once = 1 if streamed else sizes.n_saes
    # What a block computes with is given back before the batch's residuals are encoded.
    anonymous = program + max(sizes.activations, sizes.encode_block)
    anonymous += layers_at_once * sizes.kept + sizes.results
    if streamed:
        anonymous += sizes.residuals
    if sizes.on_device:
        anonymous += layers_at_once * sizes.encoder
    largest = max(sizes.blocks, key=lambda block: block.total, default=WeightBytes())
    if streamed:  # the next block is read while one computes
        held, file_backed = sizes.embedding + largest + largest, largest.mapped + largest.source
    else:
        held, file_backed = sizes.loaded, largest.mapped
    file_backed = max(file_backed, _embedding_pages(sizes))
    if mode == "whole":
        # The head's part of the model reads the embedding a second time.
        held += sizes.rest + sizes.embedding
        file_backed = sizes.loaded.mapped + sizes.rest.mapped + sizes.encoder
        anonymous += sizes.packed_head
    return Footprint(LIBRARIES + file_backed, anonymous + held.anonymous)


def _embedding_pages(sizes: JobSizes) -> int:
    """Pages of the embedding that one batch's tokens can touch."""
    if sizes.rows is None:
        return sizes.embedding.mapped
    return min(sizes.embedding.mapped, sizes.rows * _BYTES_AROUND_ROW)


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
    blocks_exceed_cache = sizes.loaded.mapped > budget
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
    stored = replace(
        sizes,
        embedding=sizes.embedding.as_stored(),
        blocks=tuple(block.as_stored() for block in sizes.blocks),
        rest=sizes.rest.as_stored(),
    )
    if stored != sizes and not sizes.on_device and fits(stored):
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


def activation_bytes(tokens: int, d_model: int, widths: int, widest: int, value: int) -> int:
    """Bytes that a batch takes inside one block, and while its residuals are encoded.

    `widths` is the sum of a block's widths inside, at both sides of its nonlinear parts, `widest`
    the largest of them, `value` the bytes of a number. What the engine's bfloat16 matmuls widen is
    included.
    """
    in_block = value * (widths + 4 * d_model)
    in_float32 = 2 * 4 * d_model  # norms and encoders compute in float32
    widened = 0
    if value == 2:
        columns = max(widest, d_model) + _MATMUL_COLUMNS
        widened = 4 * (tokens * columns + _MATMUL_WEIGHTS)
    return tokens * (in_block + in_float32) + widened
