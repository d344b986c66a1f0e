"""Compute float32 logits from the last block's residuals, one chunk of the vocabulary at a time.

Only the final norm and the lm_head are needed, and the lm_head stays mapped from its file.
Logit post-processing (e.g. soft-capping) stays in transformers.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saescope.engine.anatomy import Anatomy
from saescope.engine.batches import lay_out
from saescope.engine.config import read_config
from saescope.engine.lm import LM
from saescope.engine.shards import Shards
from saescope.engine.stock import decoder_of, path_of, stock_model
from saescope.engine.stream import stream_blocks

_CHUNK_VALUES = 2**24  # lm_head values converted to float32 at a time


@final
class Logits:
    """Logits from the last block's residuals. Hook `norm` (the final norm) to change its output."""

    def __init__(self, shards: Shards, anatomy: Anatomy, device: torch.device) -> None:
        config = read_config(shards.files)
        model = stock_model(config, torch.float32)
        decoder = decoder_of(model)
        name = str(anatomy.head.norm)
        self.norm: nn.Module = decoder.get_submodule(name).to_empty(device=device)
        state = {
            key: shards.tensor(anatomy.names[f"{name}.{key}"][0]) for key in self.norm.state_dict()
        }
        self.norm.load_state_dict({key: tensor.float() for key, tensor in state.items()})
        stored = (anatomy.embedding if anatomy.tied else anatomy.head).stored[0]
        bias = stored.removesuffix("weight") + "bias"
        bias_tensor = shards.tensor(bias) if bias in shards.places else None
        head = _Head(shards.tensor(stored), bias_tensor, device)
        head_path = anatomy.head.name.removesuffix(".weight")
        model.set_submodule(_outside_head(path_of(decoder, model), head_path), _PassThrough())
        owner, _, leaf = head_path.rpartition(".")
        setattr(model.get_submodule(owner), leaf, head)
        self._model: Any = model.eval()

    @torch.inference_mode()
    def __call__(self, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Return logits in float32."""
        normed = self.norm(resid.float())
        logits: Tensor = self._model(inputs_embeds=normed[None], use_cache=False).logits[0]
        return logits


def _outside_head(decoder_path: str, head_path: str) -> str:
    """Return the outermost module that holds the decoder and not the lm_head."""
    parts = decoder_path.split(".")
    paths = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return next(path for path in paths if not head_path.startswith(f"{path}."))


class _PassThrough(nn.Module):
    """Replaces the decoder, and returns its input. OPT calls the decoder's own `decoder`."""

    @property
    def decoder(self) -> "_PassThrough":
        return self

    def forward(self, *_others: Any, inputs_embeds: Tensor, **_more: Any) -> "_Output":
        return _Output(inputs_embeds)


class _Output:
    """A decoder's output with only the normed last residuals; other attributes are None."""

    def __init__(self, normed: Tensor) -> None:
        self.last_hidden_state = normed

    def __getitem__(self, _index: int) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, _name: str) -> None:
        return None


class _Head(nn.Module):
    """A linear layer whose weight is converted to float32 one chunk at a time."""

    def __init__(self, weight: Tensor, bias: Tensor | None, device: torch.device) -> None:
        super().__init__()
        self._stored, self._bias, self._device = weight, bias, device

    def forward(self, normed: Tensor) -> Tensor:
        rows = max(1, _CHUNK_VALUES // self._stored.shape[1])
        chunks = []
        for weight in self._stored.split(rows):
            chunks.append(normed @ weight.to(self._device, torch.float32).T)
        logits = torch.cat(chunks, dim=-1)
        if self._bias is None:
            return logits
        return logits + self._bias.to(self._device, torch.float32)


def final_layer_residuals(lm: LM, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n d_model"]:
    """Return the last block's output for every token of every row; `lm` must be streamed.

    Rows of equal length form a batch, so no row is padded.
    """
    by_length: dict[int, list[int]] = {}
    for row_index, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(row_index)
    groups = list(by_length.values())
    batches = [lay_out([[row_index] for row_index in group], rows, lm.device) for group in groups]
    resid_of_row: dict[int, Tensor] = {}
    for output in stream_blocks(lm, [len(lm.blocks) - 1], batches):
        resids = output.resid.float().cpu()
        resid_of_row |= dict(zip(groups[output.batch], resids, strict=True))
    return torch.cat([resid_of_row[row_index] for row_index in range(len(rows))])
