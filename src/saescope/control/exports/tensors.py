"""A safetensors file written piece by piece, so that a tensor need not be held to be stored in another order.

Format: github.com/huggingface/safetensors: length of the header, the header as JSON, the values one after another.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_BLOCK_BYTES = 128 * 2**20
_ALIGNMENT = 8


@dataclass(frozen=True)
class Stored:
    """A float32 tensor as it will be stored: `transposed` or as it is."""

    tensor: Tensor
    transposed: bool = False

    @property
    def shape(self) -> list[int]:
        """Its shape in the file."""
        return list(self.tensor.shape[::-1] if self.transposed else self.tensor.shape)

    def pieces(self) -> Iterator[bytes]:
        """Its values in order, no more than a block of them at a time."""
        view = self.tensor.T if self.transposed else self.tensor
        rows = max(1, _BLOCK_BYTES // (4 * max(1, view[0].numel())))
        for start in range(0, len(view), rows):
            yield view[start : start + rows].to("cpu", torch.float32).contiguous().numpy().tobytes()


def write_safetensors(
    path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]
) -> None:
    """Write float32 tensors under their names; raises OSError where the disk refuses."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, stored in tensors.items():
        start, end = end, end + 4 * stored.tensor.numel()
        header[name] = {"dtype": "F32", "shape": stored.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for stored in tensors.values():
            for piece in stored.pieces():
                file.write(piece)
