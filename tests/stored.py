"""Runs made from planned firings, without a model: what the statistics should find is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.runs import Job, Run
from saescope.store.tables import LayerFeatures, PromptResids
from saescope.store.writer import RunWriter


def padded(found: LayerFeatures, k: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Activations and ids as rows of k, (tokens, k): 0 where fewer fire."""
    acts, ids = (
        np.zeros((len(found.norms), k), np.float32),
        np.zeros((len(found.norms), k), np.int64),
    )
    for token in range(len(found.norms)):
        own = found.row(token)
        acts[token, : found.counts[token]], ids[token, : found.counts[token]] = (
            found.acts[own],
            found.ids[own],
        )
    return acts, ids


def write_run(
    out: Path,
    lengths: Mapping[str, Sequence[int]],
    fires: Mapping[int, npt.NDArray[np.bool_]],
    norms: npt.NDArray[np.float32] | None = None,
    paired: bool = False,
    resids: npt.NDArray[np.float32] | None = None,
    errors: npt.NDArray[np.float32] | None = None,
    model: str = "planned",
    words: Sequence[str] = (),
) -> Run:
    """A run of sets with prompts of these lengths, where token t fires feature f in layer n if fires[n][t, f].

    Every activation is 1 + id / d_sae; k is the most that any token fires. `resids` (prompts, d_model) are each
    prompt's mean and last residual, `errors` every token's reconstruction error; `words` what tokens read, in turn.
    """
    sets = [
        PromptSet(
            name,
            tuple(
                Prompt(f"{name}:{i}", name, f"{name} {i}", pair=str(i) if paired else None)
                for i in range(len(n))
            ),
        )
        for name, n in lengths.items()
    ]
    tokens = [
        [(i, words[i % len(words)] if words else f"t{i}") for i in range(n)]
        for group in lengths.values()
        for n in group
    ]
    total = sum(map(len, tokens))
    vectors = resids if resids is not None else np.ones((len(tokens), 4), np.float32)
    counted = np.array([max(0, len(prompt) - 1) for prompt in tokens], np.int32)
    resid = PromptResids(counted, vectors, vectors)
    d_sae = next(iter(fires.values())).shape[1]
    features, saes = {}, []
    for layer, where in fires.items():
        k = max(1, int(where.sum(1).max()))
        ids = np.argsort(~where, axis=1, kind="stable")[:, :k]
        acts = np.where(np.take_along_axis(where, ids, 1), 1 + ids / d_sae, 0).astype(np.float32)
        values = norms if norms is not None else np.ones(total, np.float32)
        next_pre_act = np.zeros(total, np.float32)
        features[layer] = (
            LayerFeatures.of_rows(values, acts, ids.astype(np.uint16), next_pre_act, errors),
            resid,
        )
        saes.append(SaeSpec("planned", None, layer, vectors.shape[1], d_sae, k, "topk", None, ""))
    spec = ModelSpec(model, None, 9, vectors.shape[1], "")
    job = Job(spec, tuple(saes), fingerprint(sets), "float32", "cpu", 1, errors is not None, {})
    writer = RunWriter(out, job)
    record = {"command": {"verb": "extract", "options": {}}, "inputs": {"model": model, "saes": {}}}
    with writer.collecting():
        for layer, (found, prompts) in features.items():
            writer.put(0, layer, found, prompts)
        return writer.publish(sets, tokens, [list(range(len(tokens)))], record)
