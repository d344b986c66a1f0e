"""A safetensors file written chunk by chunk, so that transposing a tensor takes no second copy.

Format: github.com/huggingface/safetensors: the header's length, the header as JSON, the values.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_CHUNK_BYTES = 128 * 2**20
_ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file holds it: in float32, transposed or not."""

    tensor: Tensor
    transposed: bool = False

    @property
    def view(self) -> Tensor:
        """The tensor in the file's orientation."""
        if self.transposed:
            return self.tensor.T
        return self.tensor

    def chunks(self) -> Iterator[bytes]:
        """Yield the values in order, at most 128 MiB at a time."""
        row_bytes = 4 * self.view[0].numel()
        n_rows = max(1, _CHUNK_BYTES // max(1, row_bytes))
        for rows in self.view.split(n_rows):
            yield rows.to("cpu", torch.float32).contiguous().numpy().tobytes()


def write_safetensors(
    path: Path, tensors: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> None:
    """Write float32 tensors under their names; raises OSError if the disk fails."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, stored in tensors.items():
        end = start + 4 * stored.tensor.numel()
        shape = list(stored.view.shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for stored in tensors.values():
            file.writelines(stored.chunks())
