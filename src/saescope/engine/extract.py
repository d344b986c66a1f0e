"""THE MAIN PATH: prompts → tokens → residual → sparse features → run on disk."""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    lm: LM, layers: Sequence[int], work: Plan, skip: frozenset[int] = frozenset()
) -> Iterator[tuple[int, dict[int, Float[Tensor, "n d_model"]]]]:
    """Residuals of every batch not in `skip`, batch by batch: rows in the batch's order, without padding."""
    for number, batch in enumerate(work.batches):
        if number in skip:
            continue
        tokens = lay_out(batch, work.rows, lm.device)
        with torch.inference_mode(), capture(lm, layers) as resid:
            lm.model(input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False)
        yield number, {layer: resid.pop(layer)[tokens.mask] for layer in layers}


def compute(
    lm: LM, saes: Sequence[TopKSae], work: Plan, skip: frozenset[int] = frozenset(), *, errors: bool = False
) -> Iterator[tuple[int, dict[int, tuple[LayerFeatures, PromptResids]]]]:
    """Features and residuals of every batch not in `skip`; with `errors` also what the decoder does not give back."""
    check_fit(lm, saes)
    for number, resid in residuals(lm, [sae.spec.layer for sae in saes], work, skip):
        lengths = [len(work.rows[prompt]) for prompt in work.order(number)]
        yield number, {sae.spec.layer: _layer(sae, resid.pop(sae.spec.layer), lengths, errors) for sae in saes}


def _layer(
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
        done = sum(sizes[n] for n in finished)
        for number, features in compute(lm, saes, work, frozenset(finished), errors=errors):
            writer.put(number, features)
            done += sizes[number]
            if progress:
                progress(done, sum(sizes))
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
