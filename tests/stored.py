"""Runs made from planned firings, without a model: what the statistics should find is known."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saescope.sources.catalog import ModelSpec, SaeSpec
from saescope.sources.prompts import Prompt, PromptSet, fingerprint
from saescope.store.arrays import Bools, Float32s
from saescope.store.manifest import DIGEST, MANIFEST, SIZES, digest_of
from saescope.store.runs import Job, Run
from saescope.store.tables import LayerFeatures, PromptResids
from saescope.store.writer import RunWriter


def write_run(
    out: Path,
    lengths: Mapping[str, Sequence[int]],
    fires: Mapping[int, Bools],
    norms: Float32s | None = None,
    paired: bool = False,
    resids: Float32s | None = None,
    errors: Float32s | None = None,
    model: str = "planned",
    words: Sequence[str] = (),
) -> Run:
    """A run of sets with prompts of these lengths; token t fires f in layer n if fires[n][t, f].

    Every activation is 1 + id / d_sae; k is the largest number of features on any token. `resids`
    (prompts, d_model) are each prompt's mean and last residual, `errors` every token's
    reconstruction error; `words` are the tokens' texts, repeated.
    """
    sets = [_prompt_set(name, len(of_set), paired) for name, of_set in lengths.items()]
    prompt_lengths = [length for of_set in lengths.values() for length in of_set]
    tokens = [[(i, _text(words, i)) for i in range(length)] for length in prompt_lengths]
    if resids is None:
        resids = np.ones((len(tokens), 4), np.float32)
    if norms is None:
        norms = np.ones(sum(prompt_lengths), np.float32)
    positions = np.maximum(0, np.array(prompt_lengths) - 1).astype(np.int32)
    features = {layer: _features(of_layer, norms, errors) for layer, of_layer in fires.items()}
    saes = tuple(
        SaeSpec(
            "planned",
            None,
            layer,
            resids.shape[1],
            of_layer.shape[1],
            _k(of_layer),
            "topk",
            None,
            "",
        )
        for layer, of_layer in fires.items()
    )
    spec = ModelSpec(model, None, 36, resids.shape[1], "")
    job = Job(spec, saes, fingerprint(sets), "float32", "cpu", 1, errors is not None, {})
    writer = RunWriter(out, job)
    record = {"command": {"verb": "extract", "options": {}}, "inputs": {"model": model, "saes": {}}}
    with writer.collecting():
        for layer, layer_features in features.items():
            writer.put(0, layer, layer_features, PromptResids(positions, resids, resids))
        return writer.publish(sets, tokens, [list(range(len(tokens)))], record)


def edit_manifest(run: Path, change: Callable[[dict[str, Any]], object], sign: bool = True) -> None:
    """Change a run's manifest; `sign` renews its digest if there still is one."""
    path = run / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    if sign and DIGEST in manifest:
        manifest[DIGEST] = digest_of(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def sign_table(run: Path, name: str) -> None:
    """Write a changed table's hash and size into the manifest, as if it had been published so."""
    data = (run / name).read_bytes()

    def sign(manifest: dict[str, Any]) -> None:
        manifest["tables"][name] = hashlib.sha256(data).hexdigest()
        if SIZES in manifest:
            manifest[SIZES][name] = len(data)

    edit_manifest(run, sign)


def without(*keys: str) -> Callable[[dict[str, Any]], object]:
    """A change that makes a manifest of an earlier version: without these keys and its digest."""

    def remove(manifest: dict[str, Any]) -> None:
        for key in (*keys, DIGEST, SIZES):
            del manifest[key]

    return remove


def _prompt_set(name: str, n: int, paired: bool) -> PromptSet:
    prompts = [
        Prompt(f"{name}:{i}", name, f"{name} {i}", pair=str(i) if paired else None)
        for i in range(n)
    ]
    return PromptSet(name, tuple(prompts))


def _text(words: Sequence[str], i: int) -> str:
    return words[i % len(words)] if words else f"t{i}"


def _k(fires: Bools) -> int:
    return max(1, int(fires.sum(1).max()))


def _features(fires: Bools, norms: Float32s, errors: Float32s | None) -> LayerFeatures:
    ids = np.argsort(~fires, axis=1, kind="stable")[:, : _k(fires)]
    acts = np.where(np.take_along_axis(fires, ids, 1), 1 + ids / fires.shape[1], 0)
    strongest_first = np.argsort(-acts, axis=1, kind="stable")
    acts, ids = (np.take_along_axis(values, strongest_first, 1) for values in (acts, ids))
    next_pre_act = np.zeros(len(fires), np.float32)
    return LayerFeatures.of_rows(
        norms, acts.astype(np.float32), ids.astype(np.uint16), next_pre_act, errors
    )


def padded(features: LayerFeatures, k: int) -> tuple[Float32s, npt.NDArray[np.int64]]:
    """Activations and ids as rows of k, (tokens, k): 0 where fewer fire."""
    shape = (len(features.norms), k)
    acts, ids = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    for token, count in enumerate(features.counts.tolist()):
        entries = features.row(token)
        acts[token, :count] = features.acts[entries]
        ids[token, :count] = features.ids[entries]
    return acts, ids
