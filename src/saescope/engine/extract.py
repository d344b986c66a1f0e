"""THE MAIN PATH: prompts → tokens → residual → sparse features → run on disk."""

import platform
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from saescope.engine.lm import LM
from saescope.engine.residual import capture
from saescope.engine.sae import TopKSae
from saescope.engine.stream import streamed
from saescope.engine.tokens import Batch, TokenText, lay_out, plan_batches, tokenize
from saescope.errors import PromptError, SourceError
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.masking import Masking
from saescope.store.runs import Job, Run
from saescope.store.tables import LayerFeatures, PromptResids, id_type
from saescope.store.writer import RunWriter
from saescope.version import __version__

BATCH_TOKENS = 2048
Progress = Callable[[int, int], None]
Unit = tuple[int, int]  # a batch and a layer: what is computed, kept and resumed as one


@dataclass(frozen=True)
class Plan:
    """Tokenised prompts and the batches they are computed in."""

    rows: list[list[int]]
    batches: list[Batch]

    def order(self, number: int) -> list[int]:
        """The prompts of one batch in the order of its tokens."""
        return [prompt for row in self.batches[number] for prompt in row]


def plan(lm: LM, prompts: Sequence[Prompt], batch_tokens: int = BATCH_TOKENS) -> Plan:
    """Tokenise, and divide into batches of at most `batch_tokens` tokens."""
    if batch_tokens < 1:
        raise PromptError(f"--batch-tokens is {batch_tokens}: it must be at least 1")
    rows = tokenize(lm, prompts)
    return Plan(rows, plan_batches([len(row) for row in rows], batch_tokens, packed=lm.packs))


def check_fit(lm: LM, saes: Sequence[TopKSae]) -> None:
    """Raises SourceError unless every SAE reads this model's residuals at a layer it has."""
    if len({sae.spec.layer for sae in saes}) != len(saes):
        raise SourceError("two SAEs are of the same layer: give each layer once")
    for sae in saes:
        spec = sae.spec
        if spec.d_model != lm.spec.d_model:
            raise SourceError(
                f"SAE {spec.release} layer {spec.layer} reads residuals {spec.d_model} wide, "
                f"{lm.spec.repo} has {lm.spec.d_model}: they do not belong together"
            )
        if spec.layer >= len(lm.blocks):
            raise SourceError(f"layer {spec.layer} was not loaded: {lm.spec.repo} is cut after {len(lm.blocks) - 1}")


def residuals(
    lm: LM, layers: Sequence[int], work: Plan, done: Container[Unit] = (), spill: Path | None = None
) -> Iterator[tuple[int, int, Float[Tensor, "n d_model"]]]:
    """(batch, layer, residuals) of every unit that is not done: rows in the batch's order, without padding.

    Batch by batch, or layer by layer where the LM is streamed, its residuals kept in the folder `spill` if it is given.
    """
    wanted = {number: [n for n in layers if (number, n) not in done] for number in range(len(work.batches))}
    missing = [number for number, left in wanted.items() if left]
    if lm.streamed and missing:
        batches = [lay_out(work.batches[number], work.rows, lm.device) for number in missing]
        for layer, at, resid in streamed(lm, layers, batches, spill):
            if layer in wanted[missing[at]]:
                yield missing[at], layer, resid[batches[at].mask]
        return
    for number in missing:
        tokens = lay_out(work.batches[number], work.rows, lm.device)
        with torch.inference_mode(), capture(lm, wanted[number]) as caught:
            lm.model(input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False)
        for layer in wanted[number]:
            yield number, layer, caught.pop(layer)[tokens.mask]


def compute(
    lm: LM,
    saes: Sequence[TopKSae],
    work: Plan,
    done: Container[Unit] = (),
    *,
    errors: bool = False,
    spill: Path | None = None,
) -> Iterator[tuple[int, int, LayerFeatures, PromptResids]]:
    """(batch, layer, features, residuals by prompt) of every unit that is not done.

    With `errors` features say what the decoder does not give back.
    """
    check_fit(lm, saes)
    sae_of = {sae.spec.layer: sae for sae in saes}
    for number, layer, resid in residuals(lm, sorted(sae_of), work, done, spill):
        lengths = [len(work.rows[prompt]) for prompt in work.order(number)]
        yield number, layer, *_encode(sae_of[layer], resid, lengths, errors)


def _encode(
    sae: TopKSae, resid: Float[Tensor, "n d_model"], lengths: Sequence[int], errors: bool
) -> tuple[LayerFeatures, PromptResids]:
    resid = resid.float()
    norms = resid.norm(dim=-1)
    if not torch.isfinite(norms).all():
        raise SourceError(
            f"the residual after layer {sae.spec.layer} is not finite: damaged weights, or a dtype too small for them"
        )
    sparse, border = sae.encode_with_border(resid)
    features = LayerFeatures(
        norms=norms.cpu().numpy(),
        acts=sparse.acts.cpu().numpy(),
        ids=sparse.ids.cpu().numpy().astype(id_type(sae.spec.d_sae)),
        border=border.cpu().numpy(),
        error=(resid - sae.decode(sparse)).norm(dim=-1).cpu().numpy() if errors else None,
    )
    return features, _by_prompt(resid, features.norms, lengths)


def _by_prompt(
    resid: Float[Tensor, "n d_model"], norms: npt.NDArray[np.float32], lengths: Sequence[int]
) -> PromptResids:
    """Each prompt's mean over the positions that its own norms let count, and its last residual."""
    rule = Masking()
    ends = np.cumsum(lengths)
    starts = ends - lengths
    parts = np.split(norms, ends[:-1])
    scored = [rule.apply(np.arange(n), part).scored for n, part in zip(lengths, parts, strict=True)]
    means = [
        resid[start:end][torch.from_numpy(rows).to(resid.device)].sum(0) / max(1, int(rows.sum()))
        for start, end, rows in zip(starts, ends, scored, strict=True)
    ]
    return PromptResids(
        positions=np.array([rows.sum() for rows in scored], np.int32),
        mean=torch.stack(means).cpu().numpy(),
        last=resid[torch.from_numpy(ends - 1).to(resid.device)].cpu().numpy(),
    )


def extract(
    lm: LM,
    saes: Sequence[TopKSae],
    sets: Sequence[PromptSet],
    out: str | Path,
    *,
    batch_tokens: int = BATCH_TOKENS,
    errors: bool = False,
    command: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Run:
    """Compute the features of all prompts and publish them as a run; the same job is never computed twice.

    With `errors` each token's reconstruction error is kept too, which needs SAEs with decoders. Interrupted, it keeps
    its finished batches and goes on from there. `command` is what the manifest says was asked; `progress` is called
    with tokens done and in all. Raises SourceError, PromptError, RunError or ResourceError, and then publishes nothing.
    """
    check_fit(lm, saes)
    prompts = [prompt for group in sets for prompt in group.prompts]
    writer = RunWriter(Path(out), job(lm, saes, sets, batch_tokens, errors=errors))
    if (run := writer.published()) is not None:
        return run
    work = plan(lm, prompts, batch_tokens)
    orders = [work.order(n) for n in range(len(work.batches))]
    sizes = [sum(len(work.rows[p]) for p in order) for order in orders]
    with writer.collecting() as finished:
        done = sum(sizes[number] for number, _ in finished)
        for number, layer, features, resid in compute(lm, saes, work, finished, errors=errors, spill=writer.spill):
            writer.put(number, layer, features, resid)
            done += sizes[number]
            if progress:
                progress(done, sum(sizes) * len(saes))
        text = TokenText(lm.tokenizer)
        tokens = [[(token, text(token)) for token in row] for row in work.rows]
        return writer.publish(sets, tokens, orders, _record(lm, saes, command))


def job(lm: LM, saes: Sequence[TopKSae], sets: Sequence[PromptSet], batch_tokens: int, *, errors: bool = False) -> Job:
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


def _record(lm: LM, saes: Sequence[TopKSae], command: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "command": command or {"verb": "extract", "options": {}},
        "inputs": {"model": lm.source, "saes": {str(sae.spec.layer): sae.source for sae in saes}},
        "saescope": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
