"""The prompts on which one feature is strongest, with its activation on each of their tokens."""

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from saescope.analysis.pieces import shown_tokens
from saescope.arguments import COUNT
from saescope.sources.catalog import Feature
from saescope.store.arrays import Bools, Floats
from saescope.store.masking import Masking
from saescope.store.run_positions import run_positions
from saescope.store.runs import Run
from saescope.table import Table


def examples(
    run: Run, feature: Feature, masking: Masking | None = None, *, n: int = 5
) -> "Examples":
    """Return the n prompts, of any set, with the feature's largest scored activations.

    Raises PromptError if n is below 1, RunError for a feature that the run does not hold.

    >>> import tempfile
    >>> import saescope as ss
    >>> lm = ss.load_lm("saescope-tiny", [2])
    >>> saes = [ss.load_sae("saescope-tiny-sae", 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = ss.extract(lm, saes, ss.texts(["hello", "good morning"]), f"{folder}/run")
    ...     feature = ss.Feature(2, int(run.features(2).ids[-1]))
    ...     len(ss.examples(run, feature, n=1).examples)
    1
    """
    COUNT.check("n", n)
    run.check_feature(feature)
    stored = run.features(feature.layer)
    masking = masking or Masking()
    acts = _FeatureActs(
        acts=stored.acts_of(feature.id).astype(np.float64),
        scored=run_positions(run, masking)[feature.layer].scored,
        candidates=masking.candidates(run.token_pos),
    )
    strongest = np.zeros(len(run.prompts))
    np.maximum.at(strongest, run.token_prompt[acts.scored], acts.acts[acts.scored])
    fired = int((strongest > 0).sum())
    ranked = np.argsort(-strongest, kind="stable")[: min(n, fired)]
    return Examples(
        run=str(run.path),
        feature=feature,
        fired=fired,
        examples=tuple(
            _example(run, prompt, float(strongest[prompt]), acts) for prompt in ranked.tolist()
        ),
    )


@final
@dataclass(frozen=True, repr=False)
class Examples(Table):
    """A feature's strongest prompts, strongest first, and on how many prompts it fires at all."""

    run: str
    feature: Feature
    fired: int
    examples: tuple["Example", ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {
            "feature": str(self.feature),
            "fired": self.fired,
            "examples": [example.to_dict() for example in self.examples],
            "run": self.run,
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row per token."""
        return [
            {"prompt": example.prompt, "set": example.set, **vars(token)}
            for example in self.examples
            for token in example.tokens
        ]


@dataclass(frozen=True)
class Example:
    """One prompt, and the feature's largest activation on its scored positions."""

    prompt: str
    set: str
    strongest: float
    tokens: tuple["TokenAct", ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-compatible dict."""
        return {**vars(self), "tokens": [dict(vars(token)) for token in self.tokens]}


@dataclass(frozen=True)
class TokenAct:
    """One token, the feature's activation (0 where it does not fire), and why it is masked.

    A character that several tokens hold is in the `text` of the last of them.
    """

    text: str
    pos: int
    act: float
    masked: str | None


@dataclass(frozen=True)
class _FeatureActs:
    """One feature over all tokens (tokens,); `candidates` would be scored if sinks were too."""

    acts: Floats
    scored: Bools
    candidates: Bools

    def masked(self, token: int) -> str | None:
        """Return why a token is masked; a sink at position 0 counts as position 0."""
        if self.scored[token]:
            return None
        return "sink" if self.candidates[token] else "position 0"


def _example(run: Run, prompt: int, strongest: float, acts: _FeatureActs) -> Example:
    source = run.prompts[prompt]
    indices = np.flatnonzero(run.token_prompt == prompt).tolist()
    stored = [run.token_text[token] for token in indices]
    texts = shown_tokens(stored, run.is_text[indices].tolist(), source.display_text)
    tokens = [
        TokenAct(
            text=text,
            pos=int(run.token_pos[token]),
            act=float(acts.acts[token]),
            masked=acts.masked(token),
        )
        for token, text in zip(indices, texts, strict=True)
    ]
    return Example(source.id, source.set, strongest, tuple(tokens))
