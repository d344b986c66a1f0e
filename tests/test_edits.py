"""Edits files read back as written; invalid ones are refused with the reason."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saescope.control.edits import Edit, EditSet, FeatureCondition, parse_edit
from saescope.control.edits_file import read_edits, write_edits
from saescope.errors import EditError
from saescope.sources.catalog import Feature

edits = st.tuples(
    st.tuples(st.integers(0, 99), st.integers(0, 200_000)),
    st.sampled_from(["add", "scale", "clamp", "readout_clamp", "project"]),
    st.floats(-1e6, 1e6) | st.integers(-10, 10),
    st.sampled_from(["relu", "topk"]),
    st.sampled_from(["all", "prefill", "decode", "last"]),
    st.booleans(),
    st.none() | st.tuples(st.integers(0, 200_000), st.floats(0, 1e6)),
)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
sizes = st.none() | st.integers(1, 200_000)


def edit_of(feature: tuple[int, int], op: str, strength: float, *options: Any) -> Edit:
    if op == "project":
        strength = min(1.0, abs(strength))
    gate, scope, skip_sinks, condition = options
    feature_condition = None
    if condition is not None:
        condition_id, above = condition
        feature_condition = FeatureCondition(Feature(feature[0] // 2, condition_id), above)
    return Edit(Feature(*feature), op, strength, gate, scope, skip_sinks, when=feature_condition)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, names, st.lists(edits, min_size=1, max_size=4), sizes, names)
def test_edits_are_read_back_as_written(
    tmp_path: Path,
    model: str,
    sae: str,
    rows: list[tuple[Any, ...]],
    size: int | None,
    comment: str,
) -> None:
    edit_set = EditSet(
        model,
        sae,
        tuple(edit_of(*row) for row in rows),
        size,
        size,
        size,
        {model: sae} if size else {},
    )
    write_edits(edit_set, tmp_path / "edits.toml", [comment])
    assert read_edits(tmp_path / "edits.toml") == edit_set


def test_example_of_the_documentation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "edits.toml"
    path.write_text(
        'model = "Qwen/Qwen3-8B-Base"\nsae = "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50"\n'
        '[[edit]]\nfeature = "17/23991"\nop = "scale"          # a comment\nstrength = -1.0\n'
        'gate = "relu"\nscope = "all"\nskip_sinks = true\n'
    )
    [edit] = read_edits(path).edits
    assert edit == Edit("17/23991", "scale", -1.0)
    assert edit.feature == Feature(17, 23991)


def test_conditions_are_read_from_words_and_from_files(tmp_path: Path) -> None:
    expected = Edit("17/23991", "scale", -2.0, "topk", when=FeatureCondition(Feature(3, 555), 2.5))
    assert parse_edit("17/23991 scale -2 topk when 3/555 > 2.5") == expected
    assert parse_edit("17/2 when 17/3").condition == FeatureCondition(Feature(17, 3))
    (tmp_path / "edits.toml").write_text(
        HEAD + '[[edit]]\nfeature = "17/23991"\nstrength = -2\ngate = "topk"\nwhen = "3/555 > 2.5"'
    )
    assert read_edits(tmp_path / "edits.toml").edits == (expected,)


HEAD = 'model = "m"\nsae = "s"\n'
WRONG = {
    "": "has no model",
    "model = 3\nsae = 's'\n[[edit]]\nfeature = '1/2'": "model is 3",
    HEAD: "has no [[edit]]",
    HEAD + "sae_files = 3": "sae_files is not a table",
    HEAD + "k = 'x'": "k is 'x', not a number",
    HEAD + "[[edit]]\nop = 'scale'": "edit 1: pass either a feature",
    HEAD + "[[edit]]\nfeature = '17-3'": "'17-3' is not LAYER/ID",
    HEAD + "[[edit]]\nfeature = '1/2'\nop = 'ablate'": "op 'ablate' is not one of add, scale",
    HEAD + "[[edit]]\nfeature = '1/2'\nscope = 'some'": "scope 'some'",
    HEAD + "[[edit]]\nfeature = '1/2'\nop = 'add'": "add needs a strength",
    HEAD + "[[edit]]\nfeature = '1/2'\nop = 'project'\nstrength = -1": "share between 0 and 1",
    HEAD + "[[edit]]\nfeature = '1/2'\nstrength = nan": "is not finite",
    HEAD + "[[edit]]\nfeature = '1/2'\nstrength = true": "strength True is not a number",
    HEAD + "[[edit]]\nfeature = '1/2'\nskip_sinks = 1": "skip_sinks 1 is not true or false",
    HEAD + "[[edit]]\nfeature = '1/2'\nstrenght = 1": "unknown key 'strenght'",
    HEAD + "[[edit]]\nfeature = '1/2'\nwhen = 3": "when 3 is not a condition",
    HEAD + "[[edit]]\nfeature = '1/2'\nwhen = '1/2 > x'": "condition '1/2 > x': expected 17/555",
    HEAD + "[[edit]]\nfeature = '1/2'\nwhen = '2/2'": "must read this layer or an earlier one",
    HEAD + "[[edit]]\nfeature = '1/2'\nlayer = 1": "a feature says its layer itself",
    HEAD + "[[edit]]\nfeature = '1/2'\ndirection = 'a.safetensors'": "pass either a feature",
    HEAD + "strength = 1\n[[edit]]\nfeature = '1/2'": "unknown key 'strength'",
    "model = ": "is no edits file",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "edits.toml"
    path.write_text(text)
    with pytest.raises(EditError) as caught:
        read_edits(path)
    assert WRONG[text] in str(caught.value) or WRONG[text] in str(caught.value.__cause__)
    assert str(path) in str(caught.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EditError, match="does not exist"):
        read_edits(tmp_path / "none.toml")
