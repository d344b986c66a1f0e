"""A profile counts tokens and norms, shows words in their pieces, and warns of artefacts."""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from conftest import Pair
from saescope.analysis.pieces import Pieces, samples
from saescope.analysis.profile import profile
from saescope.analysis.stats import bootstrap_mean
from saescope.engine.extract import extract
from saescope.errors import ArgumentError, RunError
from saescope.sources.prompts import PromptSet, texts
from saescope.store.masking import Masking
from saescope.store.runs import Run
from saescope.surfaces.cli import run as run_cli
from saescope.surfaces.cli.profile import show_profile
from stored import write_run


def planned(
    out: Path, sets: Mapping[str, Sequence[Sequence[float]]], layers: Sequence[int] = (0,)
) -> Run:
    """A run whose prompts are lists of their tokens' norms."""
    norms = np.array(
        [norm for prompts in sets.values() for prompt in prompts for norm in prompt], np.float32
    )
    lengths = {name: [len(prompt) for prompt in prompts] for name, prompts in sets.items()}
    return write_run(
        out, lengths, {layer: np.ones((len(norms), 1), bool) for layer in layers}, norms
    )


# --- norms and sinks


def test_tokens_and_norms_by_hand(tmp_path: Path) -> None:
    # The 90 mid-sequence is a sink.
    norms = np.array([100, 1, 3, 200, 2, 300, 5, 5, 90, 5], np.float32)
    run = write_run(tmp_path / "run", {"a": [3, 2], "b": [5]}, {1: np.ones((10, 1), bool)}, norms)
    result = profile(run)
    assert (
        result.sets["a"].tokens,
        result.sets["a"].tokens_per_prompt,
        result.sets["a"].ratio,
    ) == (
        5,
        2.5,
        1.0,
    )
    assert (result.sets["b"].prompts, result.sets["b"].ratio) == (1, 2.0)
    a, b = result.sets["a"].layers[1], result.sets["b"].layers[1]
    assert (a.pos0_norm_mean, a.pos0_norm_median) == (150.0, 150.0)
    assert (a.later_norm_mean, a.later_norm_median, a.sinks) == (2.0, 2.0, 0)
    assert (b.later_norm_mean, b.sinks) == (5.0, 1)


def test_set_of_single_tokens_has_no_later_norm(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"a": [1, 1]}, {0: np.ones((2, 1), bool)})
    assert profile(run).sets["a"].layers[0].later_norm_mean is None


@pytest.mark.parametrize(("same", "warned"), [(12, True), (6, True), (5, False)])
def test_shared_first_token_is_warned_of(
    pair: Pair, tmp_path: Path, same: int, warned: bool
) -> None:
    lm, saes = pair.load(0)
    lines = [f"{'W' if n < same else chr(97 + n)}as yea ra {n}" for n in range(12)]
    run = extract(lm, saes, [PromptSet("hymn", texts(lines, "hymn")[0].prompts)], tmp_path / "run")
    warnings = profile(run).warnings
    assert len(warnings) == warned
    assert not warned or warnings[0].startswith(f"hymn: {same} of 12 prompts begin with 'W'")


def test_means_and_medians_by_hand(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", {"a": [[10, 1, 3], [30, 8, 2], [80, 4]]})
    norms = profile(run).sets["a"].layers[0]
    assert (norms.pos0_norm_mean, norms.pos0_norm_median) == (40.0, 30.0)
    assert (norms.later_norm_mean, norms.later_norm_median) == (3.6, 3.0)
    assert norms.with_pos0_norm_mean == pytest.approx(138 / 8)


def test_sinks_are_listed_wherever_they_stand(tmp_path: Path) -> None:
    # The median over later positions is 5, so what is over 50 is a sink.
    run = planned(
        tmp_path / "run", {"a": [[100, 1, 3], [40, 2]], "b": [[300, 5, 5, 90, 5]]}, layers=(1, 4)
    )
    result = profile(run)
    assert [(s.set, s.prompt, s.pos, s.token, s.norm, s.ratio, s.layers) for s in result.sinks] == [
        ("b", "b:0", 3, "t3", 90.0, 18.0, (1, 4)),
        ("b", "b:0", 0, "t0", 300.0, 60.0, (1, 4)),
        ("a", "a:0", 0, "t0", 100.0, 20.0, (1, 4)),
    ]
    a, b = (result.sets[name].layers[4] for name in "ab")
    assert (a.pos0_sinks, a.sinks, b.pos0_sinks, b.sinks) == (1, 0, 1, 1)
    assert b.later_norm_mean == 5.0
    assert b.with_pos0_norm_mean == (300 + 5 + 5 + 5) / 4
    with_sinks = profile(run, Masking(keep_sinks=True), layers=[4])
    assert with_sinks.sets["b"].layers[4].later_norm_mean == (5 + 5 + 90 + 5) / 4
    assert len(with_sinks.sinks) == 3
    assert with_sinks.sinks[0].layers == (4,)


def test_layer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds layers 0, not 7"):
        profile(planned(tmp_path / "run", {"a": [[1, 1]]}), layers=[7])


def test_norms_of_zero_give_no_ratio(tmp_path: Path) -> None:
    result = profile(planned(tmp_path / "run", {"a": [[0, 0, 0, 2]]}, layers=[1]))
    assert [(sink.norm, sink.ratio) for sink in result.sinks] == [(2.0, None)]
    json.dumps(result.to_dict(), allow_nan=False)


# --- warnings


def warned(run: Run, word: str) -> list[str]:
    return [line for line in profile(run).warnings if word in line]


def leaning(later: float, length: int) -> dict[str, list[list[float]]]:
    """Two sets with equal first positions; one has a single later position per prompt, one more."""
    return {"short": [[8, 1], [8, 1]], "long": [[8, *[later] * length]] * 2}


def test_difference_due_to_position_0_is_warned_of(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", {**leaning(1, 9), "middle": [[8, 1, 1, 1]]})
    [line] = warned(run, "position 0 makes")
    assert (
        "short differ from long: mean norms 4.5 and 1.7 (2.65x) with it, 1 and 1 (1.00x) without it"
        in line
    )
    # Short and middle: 4.5 / 2.75; middle and long: 2.75 / 1.7.
    assert "in 2 more pairs of sets" in line
    assert line.endswith("compare means over later positions")


@pytest.mark.parametrize(("later", "length"), [(1, 1), (1.3, 9), (0.7, 9), (1, 2)])
def test_difference_without_position_0_is_not_warned_of(
    later: float, length: int, tmp_path: Path
) -> None:
    assert not warned(planned(tmp_path / "run", leaning(later, length)), "position 0 makes")


@pytest.mark.parametrize(("sinks", "fires"), [(3, True), (2, False)])
def test_many_sinks_are_warned_of(sinks: int, fires: bool, tmp_path: Path) -> None:
    with_sinks = [[1.0] + [50.0] * sinks + [1.0] * (60 - sinks)]
    run = planned(tmp_path / "run", {"a": [[1.0] * 41], "b": with_sinks}, layers=[1])
    lines = warned(run, "sinks")
    assert len(lines) == fires
    assert not fires or lines[0].startswith(
        "layer 1: 3.0 % of later positions are sinks (5.0 % in b)"
    )


# --- tokens


def test_paired_ratios_by_hand(tmp_path: Path) -> None:
    lengths = {"lean": [2, 4, 3], "other": [4, 6], "long": [9]}
    run = write_run(tmp_path / "run", lengths, {0: np.ones((28, 1), bool)}, paired=True)
    sets = profile(run).sets
    paired = sets["other"].paired
    assert paired is not None
    assert (paired.against, paired.pairs, paired.ratio) == ("lean", 2, 1.75)
    assert paired.ci == (1.5, 2.0)  # of two ratios, 1.5 and 2
    assert sets["other"].ratio == pytest.approx(5 / 3)
    assert sets["lean"].paired is not None
    assert sets["lean"].paired.ci == (1.0, 1.0)
    assert sets["long"].paired is not None
    assert (sets["long"].paired.ratio, sets["long"].paired.ci) == (4.5, None)


def test_sets_without_pairs_have_no_paired_ratio(tmp_path: Path) -> None:
    run = planned(tmp_path / "run", {"a": [[1, 1]], "b": [[1, 1]]})
    sets = profile(run).sets
    assert [set_profile.paired for set_profile in sets.values()] == [None, None]


def test_bootstrap_is_seeded_and_about_right() -> None:
    values = np.random.default_rng(1).normal(3, 1, 400)
    low, high = bootstrap_mean(values, seed=5)
    assert (low, high) == bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    low, high = bootstrap_mean(np.arange(3000.0) % 2)  # so many are resampled in parts
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 3000**0.5, rel=0.15)


def test_bytes_and_characters_by_hand(pair: Pair, tmp_path: Path) -> None:
    lm, saes = pair.load(0)
    run = extract(
        lm, saes, [PromptSet("s", texts(["日本", " the"], "s")[0].prompts)], tmp_path / "run"
    )
    set_profile = profile(run).sets["s"]  # six bytes, and ' t' 'he'
    assert (
        set_profile.tokens,
        set_profile.bytes_per_token,
        set_profile.characters_per_token,
        set_profile.fragments,
    ) == (
        8,
        10 / 8,
        6 / 8,
        6 / 8,
    )
    assert [(s.word, s.pieces, s.prompt, s.typical) for s in set_profile.samples] == [
        ("日本", (r"\xe6", r"\x97", r"\xa5", r"\xe6", r"\x9c", r"\xac"), "s:1", False),
        ("the", (" t", "he"), "s:2", True),
    ]


def stored(text: str, cuts: Sequence[int]) -> tuple[list[str], list[bytes]]:
    """A text cut into tokens, as a run stores them, and their bytes."""
    data = text.encode()
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    token_bytes = [data[a:b] for a, b in pairwise(ends)]
    return [token.decode("utf-8", "backslashreplace") for token in token_bytes], token_bytes


tricky = st.lists(
    st.sampled_from(
        ["a", "é", "日", "本", " ", "\\", "x", "e", "5", "\\xe5", "'", "ี", "1", "\u00e5"]
    )
).map("".join)


@given(
    text=tricky | st.text(st.characters(codec="utf-8")),
    cuts=st.lists(st.integers(0, 60), max_size=20),
)
def test_pieces_are_the_text_again(text: str, cuts: list[int]) -> None:
    tokens, token_bytes = stored(text, cuts)
    pieces = Pieces.of(tokens, text)
    assert list(pieces.data) == token_bytes
    assert pieces.text == text
    for word in pieces.words():
        assert word.text in text
        starts = [
            n for n in range(len(tokens)) if tuple(tokens[n : n + len(word.pieces)]) == word.pieces
        ]
        joined_tokens = [b"".join(token_bytes[n : n + len(word.pieces)]) for n in starts]
        assert any(word.text.encode() in joined for joined in joined_tokens)


def words(*prompts: tuple[list[str], str]) -> list[tuple[str, Pieces]]:
    return [(f"p{n}", Pieces.of(tokens, text)) for n, (tokens, text) in enumerate(prompts)]


def test_samples_are_the_hardest_words_and_a_typical_one() -> None:
    tokens = [
        "T",
        "qe",
        "i'q",
        "ua",
        " the",
        " cat",
        " s",
        "at",
        ",",
        " x",
        "y",
        "z",
        "w",
        " 1",
        "2",
    ]
    shown = samples(words((tokens, "Tqei'qua the cat sat, xyzw 12"), ([" the"], " the")), 3)
    assert [(s.word, s.pieces) for s in shown] == [
        ("Tqei'qua", ("T", "qe", "i'q", "ua")),
        ("xyzw", (" x", "y", "z", "w")),
        ("the", (" the",)),
    ]
    assert [s.typical for s in shown] == [False, False, True]


@pytest.mark.parametrize(("n", "count"), [(0, 0), (1, 1), (2, 2), (9, 4)])
def test_samples_are_limited_by_the_words(n: int, count: int) -> None:
    assert len(samples(words((["a ", "bb ", "c", "cc ", "d"], "a bb ccc d")), n)) == count


def test_text_without_words_has_no_samples(tmp_path: Path) -> None:
    assert samples(words((["1", " + ", "2"], "1 + 2")), 3) == []


def test_spaceless_scripts_are_shown_in_stretches_that_end_with_a_token() -> None:
    [(_, pieces)] = words(
        (["来年", r"\xe9", r"\xb3", r"\xa9", "が美", "しい", "。"], "来年鳩が美しい。")
    )
    assert [(w.text, len(w.pieces)) for w in pieces.words()] == [("来年鳩", 4), ("が美しい", 2)]


# --- what it looks like

SHAPES: dict[str, dict[str, list[list[float]]]] = {
    "one set": {"a": [[9, 1, 2]]},
    "one-token prompts": {"a": [[9], [9]], "b": [[8]]},
    "one of them without later positions": {"a": [[9], [9]], "b": [[8, 1]]},
    "forty sets": {f"set number {n}": [[9, 1, 1, 40]] for n in range(40)},
}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("width", [60, 160])
def test_no_shape_of_run_is_cut_in_the_table(shape: str, width: int, tmp_path: Path) -> None:
    result = profile(planned(tmp_path / "run", SHAPES[shape], layers=(0, 3)))
    console = Console(
        width=width, record=True, file=(tmp_path / "shown").open("w", encoding="utf-8")
    )
    show_profile(console, result)
    console.file.close()
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert all("…" not in line for line in lines)
    json.dumps(result.to_dict(), allow_nan=False)
    rows = result.rows()
    assert len(rows) == 2 * len(SHAPES[shape])
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert not any(isinstance(value, list | dict | tuple) for row in rows for value in row.values())
    assert result.to_arrow().num_rows == len(rows)


def test_command_limits_samples_and_layers(
    pair: Pair,
    sets_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def ask(*options: str) -> dict[str, Any]:
        arguments = [
            "--model",
            str(pair.model),
            "--sae",
            str(pair.sae),
            "--layers",
            "0,2",
            "--out",
            "run",
        ]
        assert run_cli(["profile", str(sets_folder), *arguments, "--json", *options]) == 0
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    sets = ask("--samples", "2")["sets"]
    two = {name: len(set_profile["samples"]) for name, set_profile in sets.items()}
    assert two == {"red": 2, "green": 2, "blue": 0}  # blue says numbers only
    sets = ask("--samples", "0")["sets"]
    assert not any(set_profile["samples"] for set_profile in sets.values())
    assert run_cli(["profile", "run", "--layers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "layer 2" in printed
    assert "layer 0" not in printed
    assert run_cli(["profile", "run", "--samples", "-1"]) == 2
    assert capsys.readouterr().err == "saescope: --samples must be 0 or more, got -1\n"
    with pytest.raises(ArgumentError, match="n_samples must be 0 or more, got -1"):
        profile(Run.open("run"), n_samples=-1)
