"""Steering: edits applied while a model runs, and removed without a trace on exit.

Only the layers that edits change or read are hooked, and only within a `with steered(...)` context.
If contexts are nested, the edits of each see the same residual, not each other's changes at that
layer, and the changes are summed. The hooks read the active edits from a ContextVar, so other
threads are unaffected. A receipt records what the edits did.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from saescope.control.active_edits import ActiveEdits, activate
from saescope.control.edited_pass import EditedPass
from saescope.control.edits import Edit
from saescope.control.positions import TargetPositions
from saescope.control.receipts import Receipt
from saescope.engine.lm import LM
from saescope.engine.residual import Pass, intervene, mark_edited
from saescope.engine.sae import Sae
from saescope.engine.stock import decoder_of

# The edits of every `steered` context that this thread or task is in, outermost first.
_ACTIVE: ContextVar[tuple[ActiveEdits, ...]] = ContextVar("active", default=())
# By the id of `lm.blocks`: a model loaded once may be in several LMs.
_HOOKS: dict[int, "_Hooks"] = {}
_LOCK = threading.Lock()


@contextmanager
def steered(
    lm: LM, saes: Sequence[Sae], edits: Sequence[Edit], *, random_directions: int | None = None
) -> Iterator[Receipt]:
    """Apply edits to every forward pass within the `with` context, and yield a receipt.

    Edits of features need the SAEs of their layers, loaded with decoders; edits of directions need
    none. Entering the context loads the rest of the model, so that it can generate, unless it is
    streamed. As a control, `random_directions`, a seed of random directions, makes every edit
    write along a random direction of the same length.
    Raises EditError, before anything changes, if an edit does not match these SAEs or this model.

    >>> import saescope as ss
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> [prompt] = ss.texts(["The red dog sleeps."])[0].prompts
    >>> with ss.steered(lm, [sae], [ss.Edit("2/5", "add", 3.0)]) as receipt:
    ...     features = ss.scan(lm, [sae], [prompt])
    >>> receipt.applied, receipt.steps, receipt.positions > 0
    (True, 1, True)
    """
    active = activate(lm, saes, edits, random_directions)
    _hook(lm, active.hooked_layers)
    token = _ACTIVE.set((*_ACTIVE.get(), active))
    try:
        with mark_edited(lm):
            yield active.receipt
    finally:
        _ACTIVE.reset(token)
        _unhook(lm, active.hooked_layers)


def _hook(lm: LM, layers: Iterable[int]) -> None:
    """Hook the decoder and these layers, unless another `steered` context has."""
    decoders = [lm.decoder]
    if lm.streamed is None:  # a streamed model cannot generate
        decoders.append(decoder_of(lm.whole))
    with _LOCK:
        _HOOKS.setdefault(id(lm.blocks), _Hooks(lm.blocks, decoders)).open(layers)


def _unhook(lm: LM, layers: Iterable[int]) -> None:
    with _LOCK:
        hooks = _HOOKS[id(lm.blocks)]
        hooks.close(layers)
        if not hooks.in_use:
            del _HOOKS[id(lm.blocks)]


@final
class _Hooks:
    """The hooks of one model, with the number of `steered` contexts that use each.

    A hook key is a layer, or None for the hook that runs before the decoder. In a thread or task
    without active edits, the hooks change nothing.
    """

    def __init__(self, blocks: nn.ModuleList, decoders: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._decoders = decoders
        self._registered: dict[int | None, ExitStack] = {}
        self._users: Counter[int | None] = Counter()
        self._local = threading.local()

    @property
    def in_use(self) -> bool:
        """Whether any `steered` context uses a hook."""
        return bool(self._registered)

    def open(self, layers: Iterable[int]) -> None:
        """Add one user of the decoder hook and of these layers."""
        for hook_key in (None, *layers):
            self._users[hook_key] += 1
            if hook_key not in self._registered:
                self._registered[hook_key] = self._register(hook_key)

    def close(self, layers: Iterable[int]) -> None:
        """Remove one user."""
        for hook_key in (None, *layers):
            self._users[hook_key] -= 1
            if not self._users[hook_key]:
                self._registered.pop(hook_key).close()

    def _register(self, hook_key: int | None) -> ExitStack:
        decoders, blocks = self._decoders, {}
        if hook_key is not None:
            decoders, blocks = [], {hook_key: self._blocks[hook_key]}
        stack = ExitStack()
        stack.enter_context(intervene(decoders, blocks, self._begin, self._change))
        return stack

    def _begin(self, forward: Pass) -> None:
        self._local.edited_pass = None
        active = [edits for edits in _ACTIVE.get() if edits.lm.blocks is self._blocks]
        positions = TargetPositions(forward)
        # Keys and values that were computed under other edits must not be continued under these.
        positions.check_cache(tuple(edits.key for edits in active if edits.key is not None))
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
