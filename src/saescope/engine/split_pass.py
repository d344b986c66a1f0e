"""Forward passes in two parts: the blocks up to a layer, then the blocks above it.

What the lower part computes does not depend on edits above it. So it can run once, and any number
of upper parts start from its output. The model's own forward pass runs both parts, with the
blocks that are not needed left out, so transformers itself computes masks, positions and all other
arguments of the blocks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock, get_ident
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saescope.engine.growing_cache import growing_cache, text_config
from saescope.engine.lm import LM
from saescope.engine.residual import OPEN_EDITS, replace_outputs
from saescope.engine.stock import blocks_of, decoder_of
from saescope.errors import SourceError

Forward = Callable[..., Any]
# Relative differences of logits that rounding explains, in float32 and in other dtypes.
ROUNDING = {True: 1e-4, False: 0.02}
_PROBE_TOKENS = 8
_CAN_SPLIT: WeakKeyDictionary[nn.ModuleList, dict[int, bool]] = WeakKeyDictionary()
# What the first block returns for one token: it says in which form blocks return a residual.
_FIRST_OUTPUTS: "WeakKeyDictionary[nn.ModuleList, LowerOutput]" = WeakKeyDictionary()
_LOCK = RLock()


@dataclass(frozen=True, eq=False)
class LowerOutput:
    """What the block of `layer` returned: its residual, in a tuple if the model expects one."""

    layer: int
    resid: Float[Tensor, "batch pos d_model"]
    in_tuple: bool

    def select(self, rows: Int[Tensor, "n"]) -> "LowerOutput":
        """Return the output of these rows; a row may occur several times."""
        return replace(self, resid=self.resid.index_select(0, rows))

    def as_returned(self, _forward: Forward, *_args: Any, **_kwargs: Any) -> Any:
        """Return the output as the block did, in place of its forward function."""
        return (self.resid,) if self.in_tuple else self.resid


def run_lower(lm: LM, layer: int, **inputs: Any) -> LowerOutput:
    """Return the output of the block of `layer`, without edits; blocks above it do not run.

    `inputs` are those of the whole model.
    """
    return OPEN_EDITS.run_outside(partial(_run_lower, lm, layer, inputs))


def _run_lower(lm: LM, layer: int, inputs: Mapping[str, Any]) -> LowerOutput:
    try:
        with _forwards_replaced(_blocks(lm)[layer : layer + 1], _finish):
            lm.whole(**inputs)
    except _LowerFinished as finished:
        output = finished.output
    else:
        raise SourceError(f"the forward pass of {lm.spec.repo} does not run layer {layer}")
    in_tuple = isinstance(output, tuple)
    return LowerOutput(layer, output[0] if in_tuple else output, in_tuple)


def _finish(forward: Forward, *args: Any, **kwargs: Any) -> None:
    raise _LowerFinished(forward(*args, **kwargs))


class _LowerFinished(Exception):
    """Ends a forward pass after its lower part; carries the last block's output."""

    def __init__(self, output: Any) -> None:
        self.output = output


@contextmanager
def starting_above(lm: LM, lower: LowerOutput) -> Iterator[None]:
    """Within the context, this thread's passes of the whole model start from a lower output.

    The block of its layer returns it, so edits of that layer apply to it.
    """
    with _forwards_replaced(_blocks(lm)[: lower.layer + 1], lower.as_returned):
        yield


@dataclass(frozen=True, eq=False)
class PromptRows:
    """What a prefill of the whole model reads, and which rows are equal.

    `distinct` are the first rows of each kind, `kinds` says of which kind every row is.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]
    distinct: Int[Tensor, "n"]
    kinds: Int[Tensor, "batch"]

    @property
    def inputs(self) -> dict[str, Any]:
        """Arguments of the whole model."""
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "use_cache": True,
        }


def prefill_split(lm: LM, layer: int, rows: PromptRows, cache: Any, lower_cache: Any) -> Any:
    """Return the whole model's output for `rows`, of which equal ones share the lower blocks.

    `cache` and `lower_cache` are empty; `cache` then holds the keys, values and states of all
    blocks.
    """
    once = {
        name: value[rows.distinct] if isinstance(value, Tensor) else value
        for name, value in rows.inputs.items()
    }
    lower = run_lower(lm, layer, **once, past_key_values=lower_cache)
    with starting_above(lm, lower.select(rows.kinds)):
        output = lm.whole(**rows.inputs, past_key_values=cache)
    for n in range(min(layer + 1, len(cache.layers))):
        lower_cache.layers[n].reorder_cache(rows.kinds)
        cache.layers[n] = lower_cache.layers[n]
    return output


def head_inputs(lm: LM, **inputs: Any) -> Float[Tensor, "batch pos d_model"]:
    """Return what the lm_head reads at every position, in a forward pass of the whole model."""
    kept: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        kept.append(hidden)
        return hidden[:1, -1:].contiguous()  # logits of all positions could fill the memory

    with replace_outputs((), inputs=[(_head(lm), keep)]):
        lm.whole(**inputs)
    return kept[0]


def head_logits(lm: LM, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
    """Return the logits of what the lm_head reads, as the model's own forward pass computes them.

    No block runs.
    """
    ids = torch.zeros(1, 1, dtype=torch.int64, device=lm.device)
    if lm.blocks not in _FIRST_OUTPUTS:
        _FIRST_OUTPUTS[lm.blocks] = run_lower(lm, 0, input_ids=ids, use_cache=False)
    passed_on = replace(_FIRST_OUTPUTS[lm.blocks], layer=lm.spec.n_layers - 1)
    at_head = [(_head(lm), lambda _: hidden[None])]
    with starting_above(lm, passed_on), replace_outputs((), inputs=at_head):
        output = OPEN_EDITS.run_outside(partial(lm.whole, input_ids=ids, use_cache=False))
    logits: Tensor = output.logits[0]
    return logits


def _head(lm: LM) -> nn.Module:
    head: nn.Module = lm.whole.get_output_embeddings()  # type: ignore[operator]
    return head


def _blocks(lm: LM) -> Sequence[nn.Module]:
    """Return the blocks of the whole model; a loaded LM may have fewer."""
    decoder: Any = decoder_of(lm.whole)
    return list(blocks_of(decoder, decoder.config)[1])


@contextmanager
def _forwards_replaced(blocks: Sequence[nn.Module], forward: Forward) -> Iterator[None]:
    """Within the context, this thread calls `forward` with a block's own one and its arguments.

    Other threads, which may generate with the same model, are not affected.
    """
    replaced: list[_ThreadForward] = []
    try:
        for block in blocks:
            replaced.append(_ThreadForward.enter(block, forward))
        yield
    finally:
        for thread_forward in replaced:
            thread_forward.leave()


@final
class _ThreadForward:
    """Stands for a block's forward function while some threads replace it."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._own: Forward = block.forward
        self._by_thread: dict[int, Forward] = {}

    @classmethod
    def enter(cls, block: nn.Module, forward: Forward) -> "_ThreadForward":
        """Replace a block's forward function in this thread."""
        with _LOCK:
            present = vars(block).get("forward")
            replaced = present if isinstance(present, cls) else cls(block)
            replaced._by_thread[get_ident()] = forward
            object.__setattr__(block, "forward", replaced)
            return replaced

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self._by_thread.get(get_ident())
        if forward is None:
            return self._own(*args, **kwargs)
        return forward(self._own, *args, **kwargs)

    def leave(self) -> None:
        """End the replacement in this thread; after the last one the block is as before."""
        with _LOCK:
            self._by_thread.pop(get_ident(), None)
            if not self._by_thread and vars(self._block).get("forward") is self:
                object.__delattr__(self._block, "forward")


def can_split(lm: LM, layer: int, row: Sequence[int]) -> bool:
    """Whether passes of this model may be split at a layer: measured once, on a few of these ids.

    An architecture whose upper blocks read more of the lower ones than the residual cannot.
    """
    known = _CAN_SPLIT.setdefault(lm.blocks, {})
    if layer not in known:
        known[layer] = bool(OPEN_EDITS.run_outside(partial(_splits, lm, layer, row)))
    return known[layer]


@torch.inference_mode()
def _splits(lm: LM, layer: int, row: Sequence[int]) -> bool:
    """Whether a split pass and the token after it have the logits of ordinary ones."""
    one = torch.tensor([list(row[:_PROBE_TOKENS])], device=lm.device)
    two, zeros = one.expand(2, -1), torch.zeros(2, dtype=torch.int64, device=lm.device)
    mask, positions = torch.ones_like(two), torch.arange(two.shape[1]).to(two).expand(2, -1)
    rows = PromptRows(two, mask, positions, distinct=zeros[:1], kinds=zeros)
    caches = [growing_cache(text_config(lm.whole)) for _ in range(3)]
    expected: Tensor = lm.whole(**rows.inputs, past_key_values=caches[0]).logits
    expected_next = _next_logits(lm, caches[0], two)
    try:
        output = prefill_split(lm, layer, rows, caches[1], caches[2])
        lower = run_lower(lm, layer, input_ids=one, use_cache=False).select(zeros)
        with starting_above(lm, lower):
            hidden = head_inputs(lm, input_ids=two, use_cache=False)
        logits = head_logits(lm, hidden.flatten(0, 1)).view_as(expected)
        following = _next_logits(lm, caches[1], two)
    except (AttributeError, LookupError, RuntimeError, SourceError, TypeError, ValueError):
        return False  # the upper part needs what the lower one did not leave
    pairs = ((logits, expected), (output.logits, expected), (following, expected_next))
    return all(_equal(lm, *pair) for pair in pairs)


def _next_logits(lm: LM, cache: Any, ids: Tensor) -> Tensor:
    """Return the logits after one more token."""
    mask = torch.ones(len(ids), ids.shape[1] + 1, dtype=torch.int64, device=ids.device)
    positions = torch.full_like(ids[:, :1], ids.shape[1])
    output = lm.whole(
        input_ids=ids[:, :1],
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )
    logits: Tensor = output.logits
    return logits


def _equal(lm: LM, logits: Tensor, expected: Tensor) -> bool:
    """Whether logits are equal up to rounding."""
    difference = (logits.float() - expected.float()).abs().max()
    return bool(difference <= ROUNDING[lm.dtype == torch.float32] * expected.float().abs().max())
