"""Steering: edits applied while a model runs, and removed without a trace on exit.

The transformer's decoder and the layers that edits change or read are hooked, and only while a
`steered` context is open. If contexts are nested, the edits of each see the same residual, not each
other's changes at that layer, and the changes are summed. A receipt records what the edits did.

Which passes a context edits (`engine/contexts.py`):

- A context belongs to the thread or task that opened it, and to threads and tasks that started with
  a copy of its context variables (`asyncio.to_thread`, `asyncio.create_task`). Others are not
  affected.
- A context in a generator edits what the generator runs, wherever it is advanced. While the
  generator is suspended, its caller is not affected, unless the generator is a context manager.
- Contexts may be closed in any order, in any thread, or by garbage collection. A closed context
  edits nothing any more, and after the last one no hook is left.
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import final

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saescope.control.active_edits import ActiveEdits, activate
from saescope.control.edited_pass import EditedPass
from saescope.control.edits import Edit
from saescope.control.positions import TargetPositions
from saescope.control.receipts import Receipt
from saescope.engine.contexts import OpenBlock, holding_generator
from saescope.engine.lm import LM
from saescope.engine.residual import OPEN_EDITS, Pass, edits_here, intervene
from saescope.engine.sae import Sae
from saescope.engine.stock import decoder_of
from saescope.errors import EditError

# By the id of `lm.blocks`: a model loaded once may be in several LMs.
_HOOKS: dict[int, "_Hooks"] = {}


def steered(
    lm: LM, saes: Sequence[Sae], edits: Sequence[Edit], *, random_directions: int | None = None
) -> AbstractContextManager[Receipt]:
    """Apply edits to every forward pass within the `with` context, and yield a receipt.

    Edits of features need the SAEs of their layers, loaded with decoders; edits of directions need
    none. Entering the context loads the rest of the model, so that it can generate, unless it is
    streamed. `random_directions` is a seed, not a number of directions: as a control, every edit
    then writes along a random direction of the same length, drawn with this seed.
    Raises EditError, before anything changes, if an edit does not match these SAEs or this model.

    >>> import saescope as ss
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> [prompt] = ss.texts(["The red dog sleeps."])[0].prompts
    >>> with ss.steered(lm, [sae], [ss.Edit("2/5", "add", 3.0)]) as receipt:
    ...     features = ss.scan(lm, [sae], [prompt])
    >>> receipt.applied, receipt.steps, receipt.positions > 0
    (True, 1, True)
    """
    return SteeredBlock(lm, saes, edits, random_directions)


@final
class SteeredBlock:
    """What `with steered(...)` enters and leaves."""

    def __init__(
        self,
        lm: LM,
        saes: Sequence[Sae],
        edits: Sequence[Edit],
        random_directions: int | None,
        rows: range | None = None,
    ) -> None:
        self._lm = lm
        self._activate = partial(activate, lm, saes, edits, random_directions, rows)
        self._open: OpenBlock[ActiveEdits] | None = None

    def __enter__(self) -> Receipt:
        if self._open is not None:
            raise EditError("this steered context is open already: call steered() for another one")
        active = self._activate()
        self._open = OpenBlock(active, holding_generator())
        try:
            OPEN_EDITS.open(self._open)
            _update_hooks(self._lm)
        except BaseException:
            self._close()
            raise
        return active.receipt

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        # Nobody can close it any more: it was never left, or leaving it was interrupted.
        if getattr(self, "_open", None) is not None:
            self._close()

    def _close(self) -> None:
        block = self._open
        if block is None:
            return
        try:
            OPEN_EDITS.close(block)
            _update_hooks(self._lm)
        except BaseException:  # an interrupt: finish first
            OPEN_EDITS.close(block)
            _update_hooks(self._lm)
            raise
        finally:
            self._open = None


def _update_hooks(lm: LM) -> None:
    """Hook the decoder and the layers that open contexts of this model edit or read, no others."""
    with OPEN_EDITS.lock:
        hooks = _HOOKS.get(id(lm.blocks))
        if hooks is None:
            decoders = [lm.decoder]
            if lm.streamed is None:  # a streamed model cannot generate
                decoders.append(decoder_of(lm.whole))
            hooks = _HOOKS[id(lm.blocks)] = _Hooks(lm.blocks, decoders)
        hooks.update()
        if not hooks.in_use:
            _HOOKS.pop(id(lm.blocks), None)


@final
class _Hooks:
    """The hooks of one model: those that the open contexts of any thread need.

    A hook key is a layer, or None for the hooks around the decoder. In a thread or task without
    active edits, the hooks change nothing.
    """

    def __init__(self, blocks: nn.ModuleList, decoders: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._decoders = decoders
        self._registered: dict[int | None, list[RemovableHandle]] = {}
        self._local = threading.local()

    @property
    def in_use(self) -> bool:
        """Whether any hook is registered."""
        return bool(self._registered)

    def update(self) -> None:
        """Register the hooks that are needed now, and remove the others.

        Every step asks anew: between two steps, garbage collection may close a context.
        """
        while self._registered.keys() != (needed := self._needed()):
            for hook_key in self._registered.keys() - needed:
                for handle in self._registered[hook_key]:
                    handle.remove()
                del self._registered[hook_key]
                break
            else:
                self._register(next(iter(needed - self._registered.keys())))
        # `_end` does not run for a pass that an interrupt cut off: drop its tensors here.
        self._local.edited_pass = None

    def _needed(self) -> set[int | None]:
        active = [edits for edits in OPEN_EDITS.everywhere() if edits.lm.blocks is self._blocks]
        if not active:
            return set()
        return {None}.union(*(edits.hooked_layers for edits in active))

    def _register(self, hook_key: int | None) -> None:
        decoders, blocks = self._decoders, {}
        if hook_key is not None:
            decoders, blocks = [], {hook_key: self._blocks[hook_key]}
        handles = self._registered[hook_key] = []
        intervene(handles, decoders, blocks, self._begin, self._change, self._end)

    def _begin(self, forward: Pass) -> None:
        self._local.edited_pass = None
        active = edits_here(self._blocks)
        positions = TargetPositions(forward)
        # Keys and values that were computed under other edits must not be continued under these.
        keys = [(edits.key, edits.rows) for edits in active if edits.key is not None]
        positions.check_cache(tuple(keys))
        if active:
            self._local.edited_pass = EditedPass(active, positions)
        for edits in active:
            edits.receipt.steps += 1

    def _change(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"] | None:
        edited_pass: EditedPass | None = getattr(self._local, "edited_pass", None)
        if edited_pass is None:
            return None
        return edited_pass.change(layer, resid)

    def _end(self) -> None:
        self._local.edited_pass = None
