"""THE MAIN PATH: prompts → tokens → residual → sparse features → run on disk."""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saescope.engine.lm import LM
from saescope.engine.residual import capture
from saescope.engine.sae import TopKSae
from saescope.engine.tokens import Batch, TokenText, lay_out, plan_batches, tokenize
from saescope.errors import PromptError, SourceError
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.runs import Job, LayerFeatures, Run, RunWriter
from saescope.store.tables import id_type
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


def compute(
    lm: LM, saes: Sequence[TopKSae], work: Plan, skip: frozenset[int] = frozenset()
) -> Iterator[tuple[int, dict[int, LayerFeatures]]]:
    """Features of every batch not in `skip`, batch by batch: rows in the batch's order, without padding."""
    check_fit(lm, saes)
    for number, batch in enumerate(work.batches):
        if number in skip:
            continue
        tokens = lay_out(batch, work.rows, lm.device)
        with torch.inference_mode(), capture(lm, [sae.spec.layer for sae in saes]) as resid:
            lm.model(input_ids=tokens.ids, position_ids=tokens.positions, use_cache=False)
        yield number, {sae.spec.layer: _encode(sae, resid.pop(sae.spec.layer)[tokens.mask]) for sae in saes}


def _encode(sae: TopKSae, resid: Float[Tensor, "n d_model"]) -> LayerFeatures:
    resid = resid.float()
    norms = resid.norm(dim=-1)
    if not torch.isfinite(norms).all():
        raise SourceError(
            f"the residual after layer {sae.spec.layer} is not finite: damaged weights, or a dtype too small for them"
        )
    sparse = sae.encode(resid)
    ids = sparse.ids.cpu().numpy().astype(id_type(sae.spec.d_sae))
    return LayerFeatures(norms.cpu().numpy(), sparse.acts.cpu().numpy(), ids)


def extract(
    lm: LM,
    saes: Sequence[TopKSae],
    sets: Sequence[PromptSet],
    out: str | Path,
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress | None = None,
) -> Run:
    """Compute the features of all prompts and publish them as a run; the same job is never computed twice.

    Interrupted, it keeps its finished batches and goes on from there. `progress` is called with tokens done and in
    all. Raises SourceError, PromptError, RunError or ResourceError, and then publishes nothing.
    """
    check_fit(lm, saes)
    prompts = [prompt for group in sets for prompt in group.prompts]
    writer = RunWriter(Path(out), job(lm, saes, sets, batch_tokens))
    if (run := writer.published()) is not None:
        return run
    work = plan(lm, prompts, batch_tokens)
    orders = [work.order(n) for n in range(len(work.batches))]
    sizes = [sum(len(work.rows[p]) for p in order) for order in orders]
    with writer.collecting() as finished:
        done = sum(sizes[n] for n in finished)
        for number, features in compute(lm, saes, work, frozenset(finished)):
            writer.put(number, features)
            done += sizes[number]
            if progress:
                progress(done, sum(sizes))
        text = TokenText(lm.tokenizer)
        tokens = [[(token, text(token)) for token in row] for row in work.rows]
        return writer.publish(sets, tokens, orders, _record())


def job(lm: LM, saes: Sequence[TopKSae], sets: Sequence[PromptSet], batch_tokens: int) -> Job:
    """What a run of these would hold; its fingerprint names the run."""
    return Job(
        model=lm.spec,
        saes=tuple(sorted((sae.spec for sae in saes), key=lambda spec: spec.layer)),
        prompts=fingerprint(sets),
        dtype=str(lm.dtype).removeprefix("torch."),
        device=lm.device.type,
        batch_tokens=batch_tokens,
        versions={name: metadata.version(name) for name in ("torch", "transformers", "tokenizers")},
    )


def _record() -> dict[str, Any]:
    return {
        "saescope": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
    }
