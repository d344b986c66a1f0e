"""Position 0 and sinks are found and left out by rule."""

import numpy as np

from saescope.store.masking import Masking

POS = np.array([0, 1, 2, 3, 0, 1, 2])


def test_sink_is_over_ten_medians_of_its_layer() -> None:
    norms = np.array([900.0, 10, 101, 10, 9, 11, 10])
    found = Masking().apply(POS, norms)
    assert found.sinks.tolist() == [True, False, True, False, False, False, False]
    assert found.scored.tolist() == [False, True, False, True, False, True, True]
    assert (found.masked_pos0, found.masked_sinks) == (2, 1)


def test_one_sink_among_two_tokens_does_not_hide_itself() -> None:
    found = Masking().apply(np.array([0, 1, 2]), np.array([9000.0, 9000.0, 100.0]))
    assert found.sinks.tolist() == [True, True, False]


def test_rules_can_be_switched_off() -> None:
    norms = np.array([900.0, 10, 101, 10, 9, 11, 10])
    assert Masking(keep_pos0=True, keep_sinks=True).apply(POS, norms).scored.all()
    assert Masking(keep_sinks=True).apply(POS, norms).scored.tolist() == [
        False,
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    assert Masking(sink_ratio=200.0).apply(POS, norms).masked_sinks == 0


def test_nothing_to_compare_with_is_no_sink() -> None:
    found = Masking().apply(np.array([0, 0]), np.array([5000.0, 1.0]))
    assert not found.sinks.any()
    assert not found.scored.any()
    assert found.masked_pos0 == 2


def test_only_the_end_of_each_prompt_counts() -> None:
    pos = np.array([0, 1, 2, 3, 0, 0, 1])  # prompts of four, one and two tokens
    norms = np.array([9000.0, 1.0, 1.0, 500.0, 9000.0, 9000.0, 1.0])
    found = Masking(last=2).apply(pos, norms)
    assert found.scored.tolist() == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
    ]  # the fourth token is a sink
    assert (found.masked_pos0, found.masked_sinks) == (3, 1)
    assert Masking(last=2, keep_pos0=True, keep_sinks=True).apply(pos, norms).scored.sum() == 5
