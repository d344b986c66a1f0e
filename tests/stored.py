"""Runs made from planned firings, without a model: what the statistics should find is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.runs import Job, LayerFeatures, Run, RunWriter


def write_run(
    out: Path,
    lengths: Mapping[str, Sequence[int]],
    fires: Mapping[int, npt.NDArray[np.bool_]],
    norms: npt.NDArray[np.float32] | None = None,
    paired: bool = False,
) -> Run:
    """A run of sets with prompts of these lengths, where token t fires feature f in layer n if fires[n][t, f].

    Every activation is 1 + id / d_sae; k is the most that any token fires.
    """
    sets = [
        PromptSet(
            name,
            tuple(Prompt(f"{name}:{i}", name, f"{name} {i}", pair=str(i) if paired else None) for i in range(len(n))),
        )
        for name, n in lengths.items()
    ]
    tokens = [[(i, f"t{i}") for i in range(n)] for group in lengths.values() for n in group]
    total = sum(map(len, tokens))
    d_sae = next(iter(fires.values())).shape[1]
    features, saes = {}, []
    for layer, where in fires.items():
        k = max(1, int(where.sum(1).max()))
        ids = np.argsort(~where, axis=1, kind="stable")[:, :k]
        acts = np.where(np.take_along_axis(where, ids, 1), 1 + ids / d_sae, 0).astype(np.float32)
        values = norms if norms is not None else np.ones(total, np.float32)
        features[layer] = LayerFeatures(values, acts, ids.astype(np.uint16))
        saes.append(SaeSpec("planned", None, layer, 4, d_sae, k, "topk", None, ""))
    writer = RunWriter(
        out, Job(ModelSpec("planned", None, 9, 4, ""), tuple(saes), fingerprint(sets), "float32", "cpu", 1, {})
    )
    with writer.collecting():
        writer.put(0, features)
        return writer.publish(sets, tokens, [list(range(len(tokens)))], {})
