"""A stored run as a Neuronpedia export: metadata, features and activations as JSON lines.

Layout and field names are those of SAEDashboard's converter, which Neuronpedia's import reads:

    {model}/{layer}-{set}/  release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl
                            features/batch-{n}.jsonl.gz  activations/batch-{n}.jsonl.gz

Features that fire on no scored position are left out, and activations on other positions are 0. The
same run gives the same bytes.
"""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from saescope.control.exports.export_result import ExportResult, files_in
from saescope.control.exports.firings import LayerFirings
from saescope.control.exports.logit_effect import Lens, LogitEffect
from saescope.control.exports.neuronpedia_rows import LayerRows, NeuronpediaIds
from saescope.control.exports.settings import NeuronpediaSettings
from saescope.store.atomic import atomic_folder
from saescope.store.runs import Run

EQUALS = "what the run holds: each feature's activations on its strongest prompts, to 3 decimals"
_NO_LENS = "the tokens that features raise and lower are left empty: no model was passed"
_BATCH = 256
_COMPRESSION = 5
Row = Mapping[str, Any]


def export_neuronpedia(
    run: Run,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    lens: Lens | None = None,
    settings: NeuronpediaSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ExportResult:
    """Write a run's features with their strongest prompts. Default: all layers.

    Pass `LogitLens(run)` as `lens` to add which tokens each feature raises and lowers.

    Raises RunError for a layer that the run does not hold, and ResourceError if `out` exists.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm, sae = ss.load_lm("saescope-tiny", [2]), ss.load_sae("saescope-tiny-sae", 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, [sae], ss.bundled_prompts()[:2], f"{folder}/run")
    ...     result = ss.exports.neuronpedia(run, f"{folder}/dashboards")
    >>> list(result.measured["features"])
    [2]
    """
    settings = settings or NeuronpediaSettings()
    settings.check()
    out = Path(out).expanduser()
    ids = NeuronpediaIds.of(run, settings)
    n_features = {}
    with atomic_folder(out) as folder:
        for layer in _check_layers(run, layers):
            rows = LayerRows(run, layer, ids, settings)
            layer_folder = folder / ids.model / ids.source(layer)
            n_features[layer] = _write_layer(layer_folder, rows, lens, progress)
    limits: tuple[str, ...] = ()
    if lens is None:
        limits = (_NO_LENS,)
    measured = {"features": n_features}
    return ExportResult("neuronpedia", out, files_in(out), True, EQUALS, limits, measured)


def _check_layers(run: Run, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        return list(run.layers)
    for layer in layers:
        run.check_layer(layer)
    return sorted(set(layers))


def _write_layer(
    folder: Path,
    rows: LayerRows,
    lens: Lens | None,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write the files of one layer; return its number of features."""
    for subfolder in ("features", "activations"):
        (folder / subfolder).mkdir(parents=True)
    firings = LayerFirings.of(rows.run, rows.layer, rows.settings.masking)
    for name, row in rows.metadata(firings.masked).items():
        _write(folder / f"{name}.jsonl", [row])
    n_done = 0
    for number, features in enumerate(_batches(firings.fired)):
        file = f"batch-{number}.jsonl.gz"
        batch = firings.of_features(features, rows.settings.n_examples, rows.settings.context)
        effects: Sequence[LogitEffect | None] = [None] * len(features)
        if lens:
            effects = lens(rows.layer, features)
        _write(folder / "features" / file, map(rows.feature, batch, effects))
        activations = (row for feature in batch for row in rows.activations(feature))
        _write(folder / "activations" / file, activations)
        n_done += len(features)
        if progress:
            progress(n_done, len(firings.fired))
    return n_done


def _batches(features: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(features), _BATCH):
        yield features[start : start + _BATCH]


def _write(path: Path, rows: Iterable[Row]) -> None:
    with path.open("wb") as file:
        if path.suffix != ".gz":
            file.writelines(map(_json_line, rows))
            return
        # Without a name and a time, the same rows give the same bytes.
        with gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as compressed:
            compressed.writelines(map(_json_line, rows))


def _json_line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
