"""Steering: edits applied while a model runs, on and off at once, with a receipt of what they did.

Only edited layers are hooked, and only while a `steered` block is open. A hook does what the edits
of the calling context say, so nested blocks add up (all from the same residual) and threads do not
affect each other.
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
from saescope.engine.residual import Pass, edited, intervene
from saescope.engine.sae import Sae
from saescope.engine.whole import decoder_of

_ACTIVE: ContextVar[tuple[ActiveEdits, ...]] = ContextVar("active", default=())
_HOOKS: dict[int, "_Hooks"] = {}
_LOCK = threading.Lock()


@contextmanager
def steered(
    lm: LM, saes: Sequence[Sae], edits: Sequence[Edit], *, random_directions: int | None = None
) -> Iterator[Receipt]:
    """Within the block, every forward pass and generation of `lm` is edited; yields the receipt.

    Edits of features need the SAEs of their layers, loaded with decoders; edits of directions need
    none. As a control, `random_directions` (a seed) makes every edit write along a random direction
    of the same length. Raises EditError for an edit that does not belong to these SAEs or this
    model, before anything is changed.

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
        with edited(lm):
            yield active.receipt
    finally:
        _ACTIVE.reset(token)
        _unhook(lm, active.hooked_layers)


def _hook(lm: LM, layers: Iterable[int]) -> None:
    """Hook the model's passes and these layers, unless another block has done so."""
    decoders = [lm.decoder]
    if lm.streamed is None:  # a streamed model cannot generate
        decoders.append(decoder_of(lm.whole))
    with _LOCK:
        _HOOKS.setdefault(id(lm.blocks), _Hooks(lm.blocks, decoders)).open(layers)


def _unhook(lm: LM, layers: Iterable[int]) -> None:
    with _LOCK:
        hooks = _HOOKS[id(lm.blocks)]
        hooks.close(layers)
        if not hooks.needed:
            del _HOOKS[id(lm.blocks)]


@final
class _Hooks:
    """The hooks of one model that open blocks need; they do nothing if no edits are active.

    A site is a layer, or None for the beginning of each pass.
    """

    def __init__(self, blocks: nn.ModuleList, decoders: Sequence[nn.Module]) -> None:
        self._blocks = blocks
        self._decoders = decoders
        self._registered: dict[int | None, ExitStack] = {}
        self._users: Counter[int | None] = Counter()
        self._local = threading.local()

    @property
    def needed(self) -> bool:
        """Whether any open block needs a hook."""
        return bool(self._registered)

    def open(self, layers: Iterable[int]) -> None:
        """One more block needs passes and these layers."""
        for site in (None, *layers):
            self._users[site] += 1
            if site not in self._registered:
                self._registered[site] = self._register(site)

    def close(self, layers: Iterable[int]) -> None:
        """One block fewer needs them."""
        for site in (None, *layers):
            self._users[site] -= 1
            if not self._users[site]:
                self._registered.pop(site).close()

    def _register(self, site: int | None) -> ExitStack:
        decoders, blocks = self._decoders, {}
        if site is not None:
            decoders, blocks = [], {site: self._blocks[site]}
        stack = ExitStack()
        stack.enter_context(intervene(decoders, blocks, self._begin, self._change))
        return stack

    def _begin(self, forward: Pass) -> None:
        self._local.edited_pass = None
        active = [active for active in _ACTIVE.get() if active.lm.blocks is self._blocks]
        keys = tuple(one.key for one in active if one.key is not None)
        positions = TargetPositions(forward, keys)  # also refuses caches of other edits
        if active:
            self._local.edited_pass = EditedPass(active, positions)
        for one in active:
            one.receipt.steps += 1

    def _change(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"] | None:
        edited_pass: EditedPass | None = getattr(self._local, "edited_pass", None)
        if edited_pass is None:
            return None
        return edited_pass.change(layer, resid)
