"""Position 0 and sinks are found and left out by rule."""

import numpy as np

from saescope.store.masking import Masking

POS = np.array([0, 1, 2, 3, 0, 1, 2])


def test_sink_is_over_ten_medians_of_its_layer() -> None:
    norms = np.array([900.0, 10, 101, 10, 9, 11, 10])
    masked = Masking().apply(POS, norms)
    assert masked.sinks.tolist() == [True, False, True, False, False, False, False]
    assert masked.scored.tolist() == [False, True, False, True, False, True, True]
    assert (masked.masked_pos0, masked.masked_sinks) == (2, 1)


def test_one_sink_among_two_tokens_does_not_hide_itself() -> None:
    masked = Masking().apply(np.array([0, 1, 2]), np.array([9000.0, 9000.0, 100.0]))
    assert masked.sinks.tolist() == [True, True, False]


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
    masked = Masking().apply(np.array([0, 0]), np.array([5000.0, 1.0]))
    assert not masked.sinks.any()
    assert not masked.scored.any()
    assert masked.masked_pos0 == 2


def test_only_the_end_of_each_prompt_counts() -> None:
    pos = np.array([0, 1, 2, 3, 0, 0, 1])  # prompts of four, one and two tokens
    norms = np.array([9000.0, 1.0, 1.0, 500.0, 9000.0, 9000.0, 1.0])
    masked = Masking(last=2).apply(pos, norms)
    # The fourth token is a sink.
    assert masked.scored.tolist() == [
        False,
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    assert (masked.masked_pos0, masked.masked_sinks) == (3, 1)
    assert Masking(last=2, keep_pos0=True, keep_sinks=True).apply(pos, norms).scored.sum() == 5
