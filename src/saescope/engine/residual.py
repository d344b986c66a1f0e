"""Capture of the residual stream at hook points: the only file that registers hooks.

`resid_post` of layer L is the output of block L. Hooks are needed because the hidden states that
transformers returns differ at the last layer: the last entry is taken after the final norm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from threading import get_ident
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saescope.engine.contexts import OpenBlocks
from saescope.engine.lm import LM, SkippedNorm
from saescope.engine.pages import Pages, release_pages
from saescope.errors import SourceError

_CHECKED: WeakSet[nn.ModuleList] = WeakSet()
# The edits of all open `steered` contexts.
OPEN_EDITS: OpenBlocks[Any] = OpenBlocks("edits")


def edits_here(blocks: nn.ModuleList) -> list[Any]:
    """Return the edits of a model's blocks that apply to the running code, in opening order."""
    return [edits for edits in OPEN_EDITS.here() if edits.lm.blocks is blocks]


def lowest_edited_layer(lm: LM) -> int | None:
    """Return the lowest layer that edits change or read here; None if there are no edits."""
    layers: set[int] = set().union(*(edits.hooked_layers for edits in edits_here(lm.blocks)))
    return min(layers, default=None)


def is_edited(lm: LM) -> bool:
    """Whether a forward pass of an LM here would be edited."""
    return bool(edits_here(lm.blocks))


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that ignores the passes of other threads, which may use the same model."""
    thread = get_ident()

    @wraps(hook)
    def call(*args: Any, **kwargs: Any) -> Any:
        return hook(*args, **kwargs) if get_ident() == thread else None

    return call


@contextmanager
def capture(lm: LM, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the context, forward passes put each layer's output (batch, pos, d_model) into a dict.

    Memory-mapped weights are released after each block and after the embedding, so a pass never
    holds more than one block of them.
    """
    resid: dict[int, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(check_hook_points(lm))
        for layer in layers:
            keep = _in_this_thread(partial(_keep, resid, layer))
            stack.callback(lm.blocks[layer].register_forward_hook(keep).remove)
        embedding: Any = lm.model.get_input_embeddings()  # type: ignore[operator]
        for module, pages in zip(
            (embedding, *lm.blocks), (lm.embedding_pages, *lm.block_pages), strict=True
        ):
            if pages:
                stack.callback(module.register_forward_hook(partial(_release, pages)).remove)
        yield resid


@dataclass(frozen=True)
class Pass:
    """A decoder's forward pass: mask of real positions, number of past tokens, KV cache."""

    mask: Bool[Tensor, "batch pos"] | None
    n_past: int
    cache: Any


def intervene(
    handles: list[RemovableHandle],
    decoders: Sequence[nn.Module],
    blocks: Mapping[int, nn.Module],
    begin: Callable[[Pass], None],
    change: Callable[[int, Tensor], Tensor | None],
    end: Callable[[], None],
) -> None:
    """Let `begin` see every pass of the decoders, and `change` replace the outputs of blocks.

    Each pass ends with `end`, also if it raises. All three see the passes of all threads, until
    the handles that are added to `handles` are removed. This is not a context manager, because one
    whose exit is interrupted would leave its hooks behind.
    """
    for decoder in decoders:
        before, after = partial(_begin, begin), partial(_end, end)
        handles.append(decoder.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(decoder.register_forward_hook(after, always_call=True))
    for layer, block in blocks.items():
        handles.append(block.register_forward_hook(partial(_change, change, layer)))


def _begin(
    begin: Callable[[Pass], None],
    _decoder: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    inputs = args[0] if args else kwargs.get("input_ids")
    if inputs is None:
        inputs = kwargs["inputs_embeds"]
    n_past = int(cache.get_seq_length()) if cache is not None else 0
    begin(Pass(_real_positions(mask, n_past, inputs), n_past, cache))


def _end(end: Callable[[], None], _decoder: nn.Module, _inputs: Any, _output: Any) -> None:
    end()


def _real_positions(mask: Any, n_past: int, inputs: Tensor) -> Bool[Tensor, "batch pos"] | None:
    """Return which positions are not padding, from any mask format; None if unknown."""
    batch, n = inputs.shape[:2]
    if isinstance(mask, Mapping):  # one mask per attention type
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor):
        return None
    if mask.ndim == 2:  # covers past and current tokens; keep the current ones
        return mask[:, -n:].bool()
    if mask.ndim != 4 or mask.shape[-1] < n_past + n:
        return None
    queries = torch.arange(n, device=mask.device)
    diagonal = mask[:, 0, queries, n_past + queries]  # padding cannot attend to itself
    attends_to_itself = diagonal if diagonal.dtype == torch.bool else diagonal >= 0
    return attends_to_itself.expand(batch, n)


def _change(
    change: Callable[[int, Tensor], Tensor | None],
    layer: int,
    block: nn.Module,
    _inputs: Any,
    output: Any,
) -> Any:
    resid = _resid(output)
    if resid.ndim != 3:
        raise SourceError(
            f"{type(block).__name__} gives {tuple(resid.shape)}, not (batch, position, width): "
            "its residual cannot be edited"
        )
    changed = change(layer, resid)
    if changed is None:
        return None
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


@contextmanager
def replace_outputs(
    outputs: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]],
    inputs: Sequence[tuple[nn.Module, Callable[[Tensor], Tensor]]] = (),
) -> Iterator[None]:
    """Within the context, replace the outputs and the first inputs of modules, at every position.

    `steered` edits the residual after layers. This emulates weight changes, also inside blocks.
    """
    with ExitStack() as stack:
        for module, change in outputs:
            replace_output = _in_this_thread(partial(_replace_output, change))
            stack.callback(module.register_forward_hook(replace_output).remove)
        for module, change in inputs:
            replace_input = _in_this_thread(partial(_replace_input, change))
            stack.callback(module.register_forward_pre_hook(replace_input, with_kwargs=True).remove)
        yield


def _replace_output(
    change: Callable[[Tensor], Tensor], _module: nn.Module, _inputs: Any, output: Any
) -> Any:
    changed = change(_resid(output))
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _replace_input(
    change: Callable[[Tensor], Tensor],
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}


@contextmanager
def map_output(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Within the context, a module's output is `change(input, output)`."""
    hook = _in_this_thread(lambda _module, inputs, output: change(inputs[0], output))
    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def swap_parameter(
    module: nn.Module, name: str, change: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Temporarily replace a parameter during each forward call."""
    originals: list[nn.Parameter] = []  # before each change that is not undone yet

    def before(_module: nn.Module, _inputs: Any) -> None:
        original = module.get_parameter(name)
        originals.append(original)
        setattr(module, name, nn.Parameter(change(original), requires_grad=False))

    def after(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        setattr(module, name, originals.pop())

    with ExitStack() as stack:
        # Removed last: an interrupted pass does not reach its own end.
        stack.callback(_restore, module, name, originals)
        stack.callback(module.register_forward_pre_hook(_in_this_thread(before)).remove)
        undo = _in_this_thread(after)
        stack.callback(module.register_forward_hook(undo, always_call=True).remove)
        yield


def _restore(module: nn.Module, name: str, originals: list[nn.Parameter]) -> None:
    if originals:
        setattr(module, name, originals[0])


@contextmanager
def check_hook_points(lm: LM) -> Iterator[None]:
    """Within the context, the LM's first pass raises SourceError if its hook points are wrong.

    A block's output must reach the next block unchanged: otherwise block outputs are not the
    residual stream. The final norm, which is not loaded, must not run before the last block. Costs
    one copy and one comparison per block, once per LM.
    """
    outputs: dict[int, Tensor] = {}
    for norm in _skipped_norms(lm):
        norm.uses = 0
    with ExitStack() as stack:
        for layer, block in enumerate(lm.blocks if lm.blocks not in _CHECKED else ()):
            compare = _in_this_thread(partial(_compare, lm, outputs, layer))
            remember = _in_this_thread(partial(_remember, lm, outputs, layer))
            stack.callback(block.register_forward_pre_hook(compare, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(remember).remove)
        yield
    if len(lm.blocks) - 1 in outputs:
        _CHECKED.add(lm.blocks)


def _compare(
    lm: LM,
    outputs: dict[int, Tensor],
    layer: int,
    _block: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    read = args[0] if args else kwargs.get("hidden_states")
    if any(norm.uses for norm in _skipped_norms(lm)):
        raise SourceError(
            f"architecture {type(lm.model).__name__} of {lm.spec.repo} is not supported: "
            f"its final norm also runs before layer {layer}"
        )
    if layer - 1 in outputs and not (isinstance(read, Tensor) and _same(read, outputs[layer - 1])):
        raise SourceError(
            f"architecture {type(lm.model).__name__} of {lm.spec.repo} is not supported: "
            f"the residual is changed between layers {layer - 1} and {layer}, "
            "so block outputs are not the residual stream"
        )


def _skipped_norms(lm: LM) -> list[SkippedNorm]:
    return [module for module in lm.model.children() if isinstance(module, SkippedNorm)]


def _remember(
    lm: LM, outputs: dict[int, Tensor], layer: int, _block: nn.Module, _inputs: Any, output: Any
) -> None:
    resid = _resid(output)
    if resid.ndim != 3 or resid.shape[-1] != lm.spec.d_model:
        raise SourceError(
            f"architecture {type(lm.model).__name__} of {lm.spec.repo} is not supported: "
            f"layer {layer} gives {tuple(resid.shape)}, not (batch, position, {lm.spec.d_model})"
        )
    outputs[layer] = resid.clone()  # a copy, to detect in-place changes
    outputs.pop(layer - 1, None)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _resid(output: Any) -> Tensor:
    """Return a block's output tensor; before transformers 5 it is the first item of a tuple."""
    resid: Tensor = output[0] if isinstance(output, tuple) else output
    return resid


def _keep(
    resid: dict[int, Tensor], layer: int, _block: nn.Module, _inputs: Any, output: Any
) -> None:
    resid[layer] = _resid(output)


def _release(pages: list[Pages], _block: nn.Module, _inputs: Any, _output: Any) -> None:
    release_pages(pages)
