"""Profile counts tokens and norms, and warns where position 0 shows a token."""

from pathlib import Path

import numpy as np
import pytest

from conftest import Pair
from saescope.analysis.profile import profile
from saescope.engine.extract import extract
from saescope.sources.prompts import PromptSet, texts
from stored import write_run


def test_tokens_and_norms_by_hand(tmp_path: Path) -> None:
    norms = np.array([100, 1, 3, 200, 2, 300, 5, 5, 90, 5], np.float32)  # the 90 mid-sequence is a sink
    run = write_run(tmp_path / "run", {"a": [3, 2], "b": [5]}, {1: np.ones((10, 1), bool)}, norms)
    found = profile(run)
    assert (found.sets["a"].tokens, found.sets["a"].tokens_per_prompt, found.sets["a"].ratio) == (5, 2.5, 1.0)
    assert (found.sets["b"].prompts, found.sets["b"].ratio) == (1, 2.0)
    a, b = found.sets["a"].layers[1], found.sets["b"].layers[1]
    assert (a.pos0_norm_mean, a.pos0_norm_median) == (150.0, 150.0)
    assert (a.later_norm_mean, a.later_norm_median, a.sinks) == (2.0, 2.0, 0)
    assert (b.later_norm_mean, b.sinks) == (5.0, 1)


def test_set_of_single_tokens_has_no_later_norm(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"a": [1, 1]}, {0: np.ones((2, 1), bool)})
    assert profile(run).sets["a"].layers[0].later_norm_mean is None


@pytest.mark.parametrize(("same", "warned"), [(12, True), (6, True), (5, False)])
def test_shared_first_token_is_warned_of(pair: Pair, tmp_path: Path, same: int, warned: bool) -> None:
    lm, saes = pair.load(0)
    lines = [f"{'W' if n < same else chr(97 + n)}as yea ra {n}" for n in range(12)]
    run = extract(lm, saes, [PromptSet("hymn", texts(lines, "hymn")[0].prompts)], tmp_path / "run")
    warnings = profile(run).warnings
    assert len(warnings) == warned
    assert not warned or warnings[0].startswith(f"hymn: {same} of 12 prompts begin with 'W'")
