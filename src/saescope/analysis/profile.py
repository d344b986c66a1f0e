"""Tokens and norms of prompt sets: token efficiency, position 0 and the rest, sinks, cautions."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, final

import numpy as np

from saescope.analysis.cautions import Means, leading_tokens, many_sinks, position_0_drives
from saescope.analysis.pieces import Sample, shown_tokens
from saescope.analysis.token_figures import Paired, token_figures
from saescope.arguments import COUNT_OR_ZERO, SEED
from saescope.store.arrays import Floats
from saescope.store.masking import Masking
from saescope.store.run_positions import run_positions
from saescope.store.token_norms import TokenNorms
from saescope.table import Table

SAMPLES = 3


def profile(
    run: TokenNorms,
    masking: Masking | None = None,
    *,
    layers: Sequence[int] | None = None,
    n_samples: int = SAMPLES,
    seed: int = 0,
) -> "Profile":
    """Return tokens and norms of every set of a run, or of norms measured without an SAE.

    Default: all layers of the run. `n_samples` words per set are shown in their pieces; `seed`
    draws the bootstrap of the paired ratios. Raises PromptError for a negative `n_samples`,
    RunError for a layer that the run does not hold.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.bundled_prompts()[:2], f"{folder}/run")
    ...     sets = ss.profile(run).sets
    >>> min(profile.ratio for profile in sets.values())
    1.0
    """
    COUNT_OR_ZERO.check("n_samples", n_samples)
    SEED.check("seed", seed)
    masking = masking or Masking()
    numbers = tuple(dict.fromkeys(layers or run.layers))
    by_layer = [_profile_layer(run, masking, layer) for layer in numbers]
    sets = {}
    for name, figures in token_figures(run, n_samples, seed).items():
        norms = {layer.number: layer.norms[name] for layer in by_layer}
        sets[name] = SetProfile(**vars(figures), layers=norms)
    warnings = leading_tokens(run)
    for layer in by_layer:
        warnings += layer.warnings
    return Profile(
        run=None if run.path is None else str(run.path),
        sets=sets,
        sinks=_sinks(run, masking, numbers),
        warnings=warnings,
    )


@final
@dataclass(frozen=True, repr=False)
class Profile(Table):
    """The result of `profile`."""

    shown = "set layer prompts tokens tokens_per_prompt ratio later_norm_median sinks"

    run: str | None
    "None if it was measured without an SAE: then nothing is stored."

    sets: dict[str, "SetProfile"]
    sinks: list["Sink"]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-compatible dict that `saescope profile --json` prints."""
        return {
            "sets": {name: one.to_dict() for name, one in self.sets.items()},
            "sinks": [vars(sink) for sink in self.sinks],
            "warnings": self.warnings,
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per set and layer.

        `paired_ratio`, `paired_low` and `paired_high` are None if no pairs are shared.
        """
        return [
            {"set": name, **one.to_row(), "layer": n, **vars(norms)}
            for name, one in self.sets.items()
            for n, norms in one.layers.items()
        ]


@dataclass(frozen=True)
class SetProfile:
    """One set: the figures of its tokens (see `TokenFigures`), and its norms by layer."""

    prompts: int
    tokens: int
    tokens_per_prompt: float
    ratio: float
    paired: Paired | None
    bytes_per_token: float
    characters_per_token: float
    fragments: float
    samples: list[Sample]
    layers: dict[int, "LayerNorms"]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        layers = {str(n): vars(norms) for n, norms in self.layers.items()}
        return {**asdict(self), "layers": layers}

    def to_row(self) -> dict[str, Any]:
        """Return the figures of its tokens as columns of a table."""
        row = dict(vars(self))
        for name in ("paired", "samples", "layers"):
            del row[name]
        ratio = low = high = None
        if self.paired is not None:
            ratio = self.paired.ratio
            low, high = self.paired.ci or (None, None)
        return {**row, "paired_ratio": ratio, "paired_low": low, "paired_high": high}


@dataclass(frozen=True)
class LayerNorms:
    """One set's residual norms after one layer.

    Later positions leave out sinks, which `sinks` counts; `pos0_sinks` is the number of prompts
    whose first position is a sink.
    """

    pos0_norm_mean: float
    pos0_norm_median: float
    later_norm_mean: float | None
    later_norm_median: float | None
    with_pos0_norm_mean: float
    sinks: int
    pos0_sinks: int


@dataclass(frozen=True)
class Sink:
    """A position whose residual is far larger than the median.

    `layers` are those that show it: of the layers asked about, or else of the run's other ones.
    `layer` is the one of them where its `ratio` to the median norm is largest.
    """

    set: str
    prompt: str
    pos: int
    token: str
    layer: int
    norm: float
    ratio: float | None
    layers: tuple[int, ...]


@dataclass(frozen=True)
class _LayerProfile:
    """One layer's norms by set, and its warnings."""

    number: int
    norms: dict[str, LayerNorms]
    warnings: list[str]


def _profile_layer(run: TokenNorms, masking: Masking, number: int) -> _LayerProfile:
    values = run.norms(number)
    positions = run_positions(run, masking)
    sinks, shown = positions[number].sinks, positions.shown_by(number)
    is_later = run.token_pos > 0
    counted = is_later if masking.keep_sinks else is_later & ~sinks
    norms: dict[str, LayerNorms] = {}
    means: dict[str, Means] = {}  # of the sets whose position 0 can differ from another set's
    n_later, n_sinks = [], []
    for i, name in enumerate(run.sets):
        in_set = run.set_of_token == i
        first, later = values[in_set & ~is_later], values[in_set & counted]
        norms[name] = _norms(
            first.astype(np.float64),
            later.astype(np.float64),
            n_sinks=int((in_set & is_later & sinks).sum()),
            n_pos0_sinks=int((in_set & ~is_later & sinks).sum()),
        )
        later_text = in_set & is_later & run.is_text
        n_later.append(int(later_text.sum()))
        n_sinks.append(int(later_text[shown].sum()))
        begins_with_text = bool((in_set & ~is_later & run.is_text).any())
        of_set = norms[name]
        if of_set.later_norm_mean and begins_with_text:
            means[name] = Means(of_set.with_pos0_norm_mean, of_set.later_norm_mean)
    return _LayerProfile(
        number=number,
        norms=norms,
        warnings=[
            *position_0_drives(number, means),
            *many_sinks(number, run.sets, n_sinks, n_later),
        ],
    )


def _norms(first: Floats, later: Floats, n_sinks: int, n_pos0_sinks: int) -> LayerNorms:
    later_mean = later_median = None
    if len(later):
        later_mean, later_median = float(later.mean()), float(np.median(later))
    return LayerNorms(
        pos0_norm_mean=float(first.mean()),
        pos0_norm_median=float(np.median(first)),
        later_norm_mean=later_mean,
        later_norm_median=later_median,
        with_pos0_norm_mean=float(np.concatenate([first, later]).mean()),
        sinks=n_sinks,
        pos0_sinks=n_pos0_sinks,
    )


def _sinks(run: TokenNorms, masking: Masking, numbers: Sequence[int]) -> list[Sink]:
    """Return all sinks: those after position 0 first, then by how far they are above the median."""
    positions = run_positions(run, masking)
    deciding = run.layers if run.sinks_across_layers else numbers
    shown: defaultdict[int, list[_Shown]] = defaultdict(list)
    for layer in deciding:
        tokens = positions.shown_by(layer)
        if not len(tokens):
            continue
        values = run.magnitudes(layer).norms
        median = masking.median(run.token_pos, values)
        for token in tokens.tolist():
            norm = float(values[token])
            shown[token].append(_Shown(layer, norm, norm / median if median else None))
    sinks = []
    for token, everywhere in shown.items():
        here = [at for at in everywhere if at.layer in numbers]
        sinks.append(_sink(run, token, here or everywhere))

    def order(sink: Sink) -> tuple[Any, ...]:
        return sink.pos == 0, -(sink.ratio or np.inf), sink.prompt, sink.pos

    return sorted(sinks, key=order)


class _Shown(NamedTuple):
    """A layer that shows a sink: its norm there, and its ratio to the median norm."""

    layer: int
    norm: float
    ratio: float | None


def _sink(run: TokenNorms, token: int, shown: Sequence[_Shown]) -> Sink:
    furthest = max(shown, key=lambda at: at.ratio or np.inf)
    prompt = run.prompts[run.token_prompt[token]]
    return Sink(
        set=prompt.set,
        prompt=prompt.id,
        pos=int(run.token_pos[token]),
        token=_token_in_context(run, token),
        layer=furthest.layer,
        norm=furthest.norm,
        ratio=furthest.ratio,
        layers=tuple(at.layer for at in shown),
    )


def _token_in_context(run: TokenNorms, token: int) -> str:
    """Return the text of a token, with the whole character if it completes one."""
    stored = run.token_text[token]
    if "\\x" not in stored:
        return stored
    start = token - int(run.token_pos[token])
    texts = run.token_text[start : token + 1]
    is_text = run.is_text[start : token + 1].tolist()
    prompt = run.prompts[run.token_prompt[token]]
    return shown_tokens(texts, is_text, prompt.display_text)[-1]
