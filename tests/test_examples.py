"""A feature's strongest prompts, token by token."""

from pathlib import Path

import numpy as np
import pytest

from saescope.analysis.examples import examples
from saescope.errors import ArgumentError, RunError
from saescope.sources.catalog import Feature
from saescope.store.masking import Masking
from saescope.store.runs import Run
from stored import write_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two sets of two prompts of four tokens; feature 1 fires at position 0, a sink, once more."""
    fires = np.zeros((16, 3), bool)
    fires[[0, 4, 8, 12], 1] = True
    fires[[6, 9], 1] = True
    fires[[1, 2, 3, 13], 2] = True
    norms = np.ones(16, np.float32)
    norms[[0, 6]] = 500
    return write_run(
        tmp_path / "run",
        {"a": [4, 4], "b": [4, 4]},
        {3: fires},
        norms=norms,
        words=["<", "b", "c", "d"],
    )


def test_masked_positions_make_no_example(run: Run) -> None:
    result = examples(run, Feature(3, 1))
    [example] = result.examples
    assert (result.fired, example.prompt, example.set) == (1, "b:0", "b")
    assert example.strongest == pytest.approx(1 + 1 / 3)
    assert [(t.text, t.pos, t.act > 0, t.masked) for t in example.tokens] == [
        ("<", 0, True, "position 0"),
        ("b", 1, True, None),
        ("c", 2, False, None),
        ("d", 3, False, None),
    ]


def test_what_counts_is_up_to_the_masking(run: Run) -> None:
    assert examples(run, Feature(3, 1), masking=Masking(keep_sinks=True)).fired == 2
    with_pos0 = examples(run, Feature(3, 1), masking=Masking(keep_pos0=True))
    assert with_pos0.fired == 3  # the first prompt's position 0 is a sink
    assert with_pos0.examples[0].prompt == "a:1"
    assert [t.masked for t in with_pos0.examples[0].tokens] == [None, None, "sink", None]


def test_examples_are_strongest_first_and_limited(run: Run) -> None:
    result = examples(run, Feature(3, 2), n=1)
    assert (result.fired, [e.prompt for e in result.examples]) == (2, ["a:0"])
    assert not examples(run, Feature(3, 0)).examples


def test_examples_are_a_table(run: Run) -> None:
    result = examples(run, Feature(3, 2))
    assert len(result.rows()) == 8
    assert result.to_dict()["feature"] == "3/2"
    assert result.to_dict()["examples"][0]["tokens"][1]["act"] == pytest.approx(1 + 2 / 3)
    assert "&lt;" in result._repr_html_()


def test_features_out_of_range_are_refused(run: Run) -> None:
    with pytest.raises(RunError, match=r"layer 3 has no feature 3 \(ids are 0-2\)"):
        examples(run, Feature(3, 3))
    with pytest.raises(RunError, match="layers 3, not 4"):
        examples(run, Feature(4, 0))
    with pytest.raises(ArgumentError, match="n must be at least 1, got 0"):
        examples(run, Feature(3, 0), n=0)
