"""How wide the residuals are that an SAE reads, as far as its files say it without being loaded."""

from itertools import permutations
from pathlib import Path

from saescope.sources.file_parts import tensor_sizes

_ITEM_BYTES = (4, 2, 8)
_SIZES_TRIED = 12
_MOST_REST = 0.02  # of one step of d_model: 5 kB at 32,768 features


def widths_in_file(path: Path) -> tuple[int, ...]:
    """The two sides of an SAE's matrices, d_model and d_sae; empty if the file does not tell.

    An SAE has two matrices of one size and the two biases, whose sizes are the matrices' sides.
    Which is which is not said: an SAE may have fewer features than dimensions.
    """
    sizes = sorted(set(tensor_sizes(path)), reverse=True)[:_SIZES_TRIED]
    for item in _ITEM_BYTES:
        for matrix, one, other in permutations(sizes, 3):
            if one * other == matrix * item and one > other > 0:
                return one // item, other // item
    return ()


def width_of_size(file_bytes: int, d_sae: int) -> int | None:
    """d_model of a Qwen-Scope file with this number of features, from its number of bytes.

    Such a file holds `2 * d_sae * d_model + d_sae + d_model` float32 values and a few kilobytes
    around them. None if that leaves a rest: then the number of features is another one.
    """
    d_model, rest = divmod(file_bytes // 4 - d_sae, 2 * d_sae + 1)
    return d_model if 0 <= rest <= _MOST_REST * (2 * d_sae + 1) else None
