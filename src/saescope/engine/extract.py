"""THE MAIN PATH: prompts → tokens → residual → sparse features → run on disk."""

import platform
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from saescope.engine.batches import BATCH_TOKENS, BatchPlan, lay_out, plan_batches
from saescope.engine.lm import LM
from saescope.engine.matmul_kernels import NATIVE, KernelMode, Kernels, choose_kernels
from saescope.engine.prefix import run_after, run_prefix
from saescope.engine.residual import capture, is_edited
from saescope.engine.sae import Sae, check_fit
from saescope.engine.stream import streamed
from saescope.engine.tokens import TokenText
from saescope.errors import SourceError
from saescope.sources.prompts import PromptSet, fingerprint
from saescope.store.masking import Masking
from saescope.store.runs import Job, Run
from saescope.store.tables import LayerFeatures, PromptResids, id_type
from saescope.store.writer import RunWriter
from saescope.version import __version__

Progress = Callable[[int, int], None]
Unit = tuple[int, int]  # a batch and a layer: what is computed, kept and resumed as one


def choose_batch_kernels(lm: LM, work: BatchPlan, asked: Kernels = NATIVE) -> Kernels:
    """The kernels that compute this work: those asked for, else the fastest, or torch's own where there is little."""
    dtypes = (str(lm.dtype).removeprefix("torch."), "float32")
    tokens = sum(len(work.rows[prompt]) for batch in work.batches for prompt in batch.prompts)
    operations = 2 * tokens * sum(p.numel() for p in lm.blocks.parameters() if p.ndim > 1)
    return choose_kernels(dtypes, lm.device.type, operations, asked)


def residuals(
    lm: LM,
    layers: Sequence[int],
    work: BatchPlan,
    done: Container[Unit] = (),
    spill: Path | None = None,
    kernels: Kernels = NATIVE,
) -> Iterator[tuple[int, int, Float[Tensor, "n d_model"]]]:
    """(batch, layer, residuals) of every unit that is not done: a shared prefix first, then the batch's prompts.

    Batch by batch, or layer by layer where the LM is streamed, its residuals kept in the folder `spill` if it is given.
    Linear layers are computed by `kernels`.
    """
    products = KernelMode(kernels)
    wanted = {
        number: [n for n in layers if (number, n) not in done]
        for number in range(len(work.batches))
    }
    missing = [number for number, left in wanted.items() if left]
    if lm.streamed is not None:
        yield from _streamed(lm, wanted, work, missing, spill, products)
        return
    known: tuple[list[int], Cache, dict[int, Tensor]] | None = None
    for number in missing:
        batch = work.batches[number]
        tokens = lay_out(batch.lines, work.suffixes(number), lm.device)
        head: dict[int, Tensor] = {}
        with torch.inference_mode(), products:
            if batch.prefix:
                shared = work.rows[batch.prompts[0]][: batch.prefix]
                if (
                    known is None
                    or known[0] != shared
                    or not set(wanted[number]) <= known[2].keys()
                ):
                    with capture(lm, wanted[number]) as caught:
                        cache = run_prefix(lm.model, torch.tensor(shared, device=lm.device))
                    known = shared, cache, {layer: resid[0] for layer, resid in caught.items()}
                head = known[2]
            with capture(lm, wanted[number]) as caught:
                if batch.prefix and known:
                    run_after(lm.model, known[1], tokens.ids)
                else:
                    lm.model(input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False)
        for layer in wanted[number]:
            own = caught.pop(layer)[tokens.mask]
            yield number, layer, torch.cat([head[layer], own]) if batch.prefix else own


def _streamed(
    lm: LM,
    wanted: Mapping[int, Sequence[int]],
    work: BatchPlan,
    missing: Sequence[int],
    spill: Path | None,
    products: KernelMode,
) -> Iterator[tuple[int, int, Float[Tensor, "n d_model"]]]:
    if not missing:
        return
    batches = [lay_out(work.batches[number].lines, work.rows, lm.device) for number in missing]
    layers = sorted({n for left in wanted.values() for n in left})
    for layer, at, resid in streamed(lm, layers, batches, spill, products):
        if layer in wanted[missing[at]]:
            yield missing[at], layer, resid[batches[at].mask]


def compute(
    lm: LM,
    saes: Sequence[Sae],
    work: BatchPlan,
    done: Container[Unit] = (),
    *,
    errors: bool = False,
    spill: Path | None = None,
    kernels: Kernels = NATIVE,
) -> Iterator[tuple[int, int, LayerFeatures, PromptResids]]:
    """(batch, layer, features, residuals by prompt) of every unit that is not done.

    With `errors` features say what the decoder does not give back. Linear layers and encoders use these `kernels`.
    """
    check_fit(lm, saes)
    sae_of = {sae.spec.layer: sae for sae in saes}
    products = KernelMode(kernels)
    for number, layer, resid in residuals(lm, sorted(sae_of), work, done, spill, kernels):
        with products:
            encoded = _encode(
                sae_of[layer], resid, work.lengths(number), work.source(number), errors
            )
        yield number, layer, *encoded


def _encode(
    sae: Sae,
    resid: Float[Tensor, "n d_model"],
    lengths: Sequence[int],
    source: Int[Tensor, "m"] | None,
    errors: bool,
) -> tuple[LayerFeatures, PromptResids]:
    """Features of the prompts' tokens, whose residuals are the rows `source` of `resid`, or its rows in order."""
    given, resid = resid, resid.float()
    norms = resid.norm(dim=-1)
    if not torch.isfinite(norms).all():
        raise SourceError(
            f"the residual after layer {sae.spec.layer} is not finite: damaged weights, or a dtype too small for them"
        )
    rows = np.arange(len(resid)) if source is None else source.numpy()
    features = LayerFeatures.joined(list(_blocks(sae, given, norms, errors))).take(rows)
    return features, _by_prompt(resid, rows, features.norms, lengths)


def _blocks(
    sae: Sae, resid: Float[Tensor, "n d_model"], norms: Float[Tensor, "n"], errors: bool
) -> Iterator[LayerFeatures]:
    """Features of the residuals block by block, so that no token's many make rows of another block longer."""
    start = 0
    for sparse, border in sae.encode_blocks(resid):
        rows = slice(start, start := start + len(border))
        error = (resid[rows].float() - sae.decode(sparse)).norm(dim=-1) if errors else None
        yield LayerFeatures.of_rows(
            norms=norms[rows].cpu().numpy(),
            acts=sparse.acts.cpu().numpy(),
            ids=sparse.ids.cpu().numpy().astype(id_type(sae.spec.d_sae)),
            next_pre_act=border.cpu().numpy(),
            error=None if error is None else error.cpu().numpy(),
        )


def _by_prompt(
    resid: Float[Tensor, "n d_model"],
    rows: npt.NDArray[np.int64],
    norms: npt.NDArray[np.float32],
    lengths: Sequence[int],
) -> PromptResids:
    """Each prompt's mean over the positions that its own norms let count, and its last residual."""
    rule = Masking()
    ends = np.cumsum(lengths)
    parts = list(zip(np.split(rows, ends[:-1]), np.split(norms, ends[:-1]), strict=True))
    scored = [own[rule.apply(np.arange(len(own)), of_prompt).scored] for own, of_prompt in parts]
    means = [
        resid[torch.from_numpy(own).to(resid.device)].sum(0) / max(1, len(own)) for own in scored
    ]
    last = torch.from_numpy(rows[ends - 1]).to(resid.device)
    return PromptResids(
        positions=np.array([len(own) for own in scored], np.int32),
        mean=torch.stack(means).cpu().numpy(),
        last=resid[last].cpu().numpy(),
    )


def extract(
    lm: LM,
    saes: Sequence[Sae],
    sets: Sequence[PromptSet],
    out: str | Path,
    *,
    batch_tokens: int = BATCH_TOKENS,
    errors: bool = False,
    command: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    kernels: Kernels = NATIVE,
) -> Run:
    """Compute the features of all prompts and publish them as a run; the same job is never computed twice.

    With `errors` each token's reconstruction error is kept too, which needs SAEs with decoders. Interrupted, it keeps
    its finished batches and goes on from there. `command` is what the manifest says was asked; `progress` is called
    with tokens done and in all. `kernels`, where given, are used instead of the fastest. Raises SourceError,
    PromptError, RunError or ResourceError, and then publishes nothing.
    """
    if is_edited(lm):
        raise SourceError(
            f"{lm.spec.repo} is steered here, a run is of the model as it is: extract outside the block"
        )
    check_fit(lm, saes)
    prompts = [prompt for group in sets for prompt in group.prompts]
    writer = RunWriter(Path(out), job(lm, saes, sets, batch_tokens, errors=errors))
    if (run := writer.published()) is not None:
        return run
    work = plan_batches(lm, prompts, batch_tokens)
    orders = [work.order(n) for n in range(len(work.batches))]
    sizes = [sum(work.lengths(n)) for n in range(len(work.batches))]
    with writer.collecting() as finished:
        # What is resumed goes on with the kernels it began with: others would differ in the last bits.
        used: Kernels = writer.remember("kernels", lambda: choose_batch_kernels(lm, work, kernels))
        done = sum(sizes[number] for number, _ in finished)
        units = compute(lm, saes, work, finished, errors=errors, spill=writer.spill, kernels=used)
        for number, layer, features, resid in units:
            writer.put(number, layer, features, resid)
            done += sizes[number]
            if progress:
                progress(done, sum(sizes) * len(saes))
        text = TokenText(lm.tokenizer)
        tokens = [[(token, text(token)) for token in row] for row in work.rows]
        return writer.publish(sets, tokens, orders, _record(lm, saes, command, used))


def job(
    lm: LM,
    saes: Sequence[Sae],
    sets: Sequence[PromptSet],
    batch_tokens: int,
    *,
    errors: bool = False,
) -> Job:
    """What a run of these would hold; its fingerprint names the run."""
    return Job(
        model=lm.spec,
        saes=tuple(sorted((sae.spec for sae in saes), key=lambda spec: spec.layer)),
        prompts=fingerprint(sets),
        dtype=str(lm.dtype).removeprefix("torch."),
        device=lm.device.type,
        batch_tokens=batch_tokens,
        errors=errors,
        versions={name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
    )


def _record(
    lm: LM, saes: Sequence[Sae], command: Mapping[str, Any] | None, kernels: Kernels
) -> dict[str, Any]:
    return {
        "command": command or {"verb": "extract", "options": {}},
        "inputs": {"model": lm.source, "saes": {str(sae.spec.layer): sae.source for sae in saes}},
        "saescope": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()}-{platform.release()}-{platform.machine()}",
        "threads": torch.get_num_threads(),
        "kernels": dict(kernels),
    }
