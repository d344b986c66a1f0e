"""From the last block's residuals to logits, in float32, a piece of the vocabulary at a time.

Only the final norm and the lm_head are needed, and the lm_head stays mapped from its file.
Whatever else a causal LM does to its logits is done by transformers.
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
from saescope.engine.stream import stream_blocks
from saescope.engine.whole import causal_lm

_PIECE = 2**24  # values of the lm_head in float32 at a time


@final
class Logits:
    """A causal LM's logits of its last block's residuals; `norm` is its final norm, for hooks."""

    def __init__(self, shards: Shards, anatomy: Anatomy, device: torch.device) -> None:
        model = causal_lm(read_config(shards.files), torch.float32)
        decoder = getattr(model, model.base_model_prefix)
        name = str(anatomy.head.norm)
        self.norm: nn.Module = decoder.get_submodule(name).to_empty(device=device)
        state = {
            key: shards.tensor(f"{anatomy.prefix}{name}.{key}") for key in self.norm.state_dict()
        }
        self.norm.load_state_dict({key: tensor.float() for key, tensor in state.items()})
        stored = (anatomy.embedding if anatomy.tied else anatomy.head).stored[0]
        bias = stored.removesuffix("weight") + "bias"
        bias_tensor = shards.tensor(bias) if bias in shards.places else None
        head = _Head(shards.tensor(stored), bias_tensor, device)
        setattr(model, model.base_model_prefix, _PassThrough())
        owner, _, leaf = anatomy.head.name.removesuffix(".weight").rpartition(".")
        setattr(model.get_submodule(owner), leaf, head)
        self._model: Any = model.eval()

    @torch.inference_mode()
    def __call__(self, resid: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Logits in float32."""
        normed = self.norm(resid.float())
        logits: Tensor = self._model(inputs_embeds=normed[None], use_cache=False).logits[0]
        return logits


class _PassThrough(nn.Module):
    """Stands in for the decoder, and returns its input."""

    def forward(self, *_others: Any, inputs_embeds: Tensor, **_more: Any) -> "_Output":
        return _Output(inputs_embeds)


class _Output:
    """A decoder's output with nothing but its last residuals, normed; other attributes are None."""

    def __init__(self, normed: Tensor) -> None:
        self.last_hidden_state = normed

    def __getitem__(self, _place: int) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, _name: str) -> None:
        return None


class _Head(nn.Module):
    """A linear layer whose weight is converted a piece at a time."""

    def __init__(self, weight: Tensor, bias: Tensor | None, device: torch.device) -> None:
        super().__init__()
        self._stored, self._bias, self._device = weight, bias, device

    def forward(self, normed: Tensor) -> Tensor:
        rows = max(1, _PIECE // self._stored.shape[1])
        parts = [
            normed @ part.to(self._device, torch.float32).T for part in self._stored.split(rows)
        ]
        logits = torch.cat(parts, dim=-1)
        if self._bias is None:
            return logits
        return logits + self._bias.to(self._device, torch.float32)


def last_residuals(lm: LM, rows: Sequence[Sequence[int]]) -> Float[Tensor, "n d_model"]:
    """The last block's output for every token of every row, by a streamed LM.

    Rows of one length run together, so that none is padded.
    """
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(number)
    groups = list(by_length.values())
    batches = [lay_out([[number] for number in group], rows, lm.device) for group in groups]
    resid_of_row: dict[int, Tensor] = {}
    for output in stream_blocks(lm, [len(lm.blocks) - 1], batches):
        resids = output.resid.float().cpu()
        resid_of_row |= dict(zip(groups[output.batch], resids, strict=True))
    return torch.cat([resid_of_row[number] for number in range(len(rows))])
