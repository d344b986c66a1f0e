"""What a run's report shows: its profile, its contrast, and the prompts of the best features."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

from saescope.analysis.contrast import (
    Contrast,
    ContrastSettings,
    FeatureContrast,
    SetContrast,
    contrast,
)
from saescope.analysis.examples import Example, Examples, TokenAct, examples
from saescope.analysis.profile import Profile, Sink, profile
from saescope.analysis.sentences import contrast_sentence
from saescope.analysis.separation import best_layer
from saescope.errors import PromptError
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.store.sae_fit import SaeFits

# These limits keep the report of many layers and sets small. It says where they cut something off.
MAX_SINKS = 40
_MAX_FEATURE_ROWS = 1500
_MAX_ROWS_PER_SET = 10
_MAX_PROMPTS = 60
_MAX_PROMPTS_PER_SET = 5
_MAX_TOKENS = 120


def gather(run: Run, settings: ContrastSettings | None = None) -> "ReportFindings":
    """Compute what a report of the run shows, with the settings of a contrast."""
    settings = settings or ContrastSettings()
    # A report looks for a confirmed feature among at least as many features as it has rows.
    settings = replace(settings, n_top=max(settings.n_top, _MAX_ROWS_PER_SET))
    profiled = profile(run, settings.masking)
    try:
        contrasted = contrast(run, settings)
    except PromptError as error:
        # The same run gives the same report wherever it lies, so its path is not in it.
        refusal = str(error).replace(str(run.path), "this run")
        return ReportFindings(run, settings, profiled, refusal=refusal)
    best = best_layer(contrasted)
    return ReportFindings(
        run,
        settings,
        profiled,
        contrast=contrasted,
        best_layer=best,
        best_features=_best_features(run, contrasted.layers[best].sets, settings.masking),
    )


@final
@dataclass(frozen=True)
class ReportFindings:
    """All findings of a run's report. `refusal` says why there is no contrast, if there is none."""

    run: Run
    settings: ContrastSettings
    profile: Profile
    refusal: str = ""
    contrast: Contrast | None = None
    best_layer: int | None = None
    best_features: tuple["BestFeature", ...] = ()

    @property
    def warnings(self) -> list[str]:
        """All warnings of the analyses, those of SAEs that do not fit first."""
        warnings = [*self.sae_fits.warnings, *self.profile.warnings]
        if self.contrast is not None:
            warnings += self.contrast.warnings
        return warnings

    @cached_property
    def sae_fits(self) -> SaeFits:
        """How well the SAE of every layer fits."""
        return self.run.sae_fits()

    @property
    def sentence(self) -> str:
        """The finding in one sentence."""
        if self.contrast is None:
            return "The sets of this run are not compared."
        return contrast_sentence(self.contrast)

    @property
    def rows_per_set(self) -> int:
        """How many features of each set and layer the report lists."""
        n_tables = len(self.run.layers) * len(self.run.sets)
        return max(1, min(_MAX_ROWS_PER_SET, _MAX_FEATURE_ROWS // n_tables))

    @property
    def paired_against(self) -> str | None:
        """The set that the others are compared with pair by pair, if the prompts are paired."""
        for one in self.profile.sets.values():
            if one.paired:
                return one.paired.against
        return None

    @property
    def masked_sinks(self) -> list[Sink]:
        """Return the sinks that are masked as sinks, not as position 0."""
        masking = self.settings.masking
        if masking.keep_sinks:
            return []
        return [sink for sink in self.profile.sinks if sink.pos > 0 or masking.keep_pos0]


@dataclass(frozen=True)
class BestFeature:
    """The best feature of one set, and excerpts of the prompts on which it is strongest."""

    set: str
    contrast: FeatureContrast
    examples: Examples
    excerpts: tuple["Excerpt", ...]


@dataclass(frozen=True)
class Excerpt:
    """The tokens of a prompt around the feature's strongest one, and how many are cut off."""

    example: Example
    tokens: tuple[TokenAct, ...]
    n_before: int
    n_after: int


def _best_features(
    run: Run, sets: Mapping[str, SetContrast], masking: Masking
) -> tuple[BestFeature, ...]:
    n_prompts = max(1, min(_MAX_PROMPTS_PER_SET, _MAX_PROMPTS // len(sets)))
    best_features = []
    for name in list(sets)[:_MAX_PROMPTS]:
        best = sets[name].best
        if best is None:
            continue
        shown = examples(run, best.feature, masking, n=n_prompts)
        excerpts = tuple(map(_excerpt, shown.examples))
        best_features.append(BestFeature(name, best, shown, excerpts))
    return tuple(best_features)


def _excerpt(example: Example) -> Excerpt:
    """Cut a long prompt to the tokens around the feature's strongest one."""
    n_tokens = len(example.tokens)
    start = _peak(example) - _MAX_TOKENS // 2
    start = max(0, min(start, n_tokens - _MAX_TOKENS))
    tokens = example.tokens[start : start + _MAX_TOKENS]
    return Excerpt(example, tokens, n_before=start, n_after=n_tokens - start - len(tokens))


def _peak(example: Example) -> int:
    """Return the index of the first scored token with the largest activation."""
    for index, token in enumerate(example.tokens):
        if token.masked is None and token.act == example.strongest:
            return index
    raise AssertionError("the strongest activation is at a scored token")
