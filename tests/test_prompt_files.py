"""Prompt files as data sets hold them: other column names, arrays, labels, parts, dialects."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saescope.errors import PromptError
from saescope.sources.chats import Message
from saescope.sources.prompt_sets import read_prompts
from saescope.sources.prompts import Prompt


def write_lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def write_table(path: Path, rows: list[dict[str, Any]], metadata: Any = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path)
    return path


def prompts_of(path: Path) -> list[Prompt]:
    return [prompt for prompt_set in read_prompts(path) for prompt in prompt_set.prompts]


def texts_by_set(path: Path) -> dict[str, list[str]]:
    return {s.name: [prompt.display_text for prompt in s.prompts] for s in read_prompts(path)}


CHAT = (Message("user", "hi"), Message("assistant", "ho"))
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho", "weight": None}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"conversations": SHAREGPT},
        {"conversations": TURNS},
        {"messages": SHAREGPT},
        {"conversation": TURNS},
        {"prompt": TURNS},
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_chats_under_every_name(row: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    row = {"set": "a", **row}
    path = tmp_path / f"chats{suffix}"
    if suffix == ".parquet":
        write_table(path, [row])
    elif suffix == ".json":
        path.write_text(json.dumps([row], indent=2))
    else:
        write_lines(path, row)
    [prompt] = prompts_of(path)
    assert prompt.messages == CHAT


def test_sharegpt_rows_may_have_a_system_column(tmp_path: Path) -> None:
    row = {"set": "a", "system": "be brief", "conversations": SHAREGPT}
    [prompt] = prompts_of(write_lines(tmp_path / "a.jsonl", row))
    assert prompt.messages == (Message("system", "be brief"), *CHAT)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"from": "function_call", "value": "{}"}, "'function_call', which is no turn of a chat"),
        ({"from": "human", "value": None}, "`value` of a message is missing"),
        ({"role": "user"}, "`content` of a message is missing or null"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "missing or null"),
        ({"content": "hi"}, "no `role`"),
        ({"role": "user", "content": []}, "an empty list"),
        ({"role": "user", "content": 7}, "a int, not a string or text parts"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "a part of type 'image'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a part of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "no `text`"),
        ({"role": "user", "content": "x", "name": "\ud800"}, "surrogate"),
        ({"role": "user", "content": [{"text": "\ud800"}]}, "surrogate"),
        ("hi", "an object with `role` and `content`"),
    ],
)
def test_message_that_is_no_text_is_refused(message: Any, reason: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"set": "a", "messages": [message]})
    with pytest.raises(PromptError, match=f"{path}:1: .*{reason}"):
        read_prompts(path)


def test_null_keys_are_left_out_and_others_kept(tmp_path: Path) -> None:
    calls = [{"function": {"name": "add", "arguments": {"a": 1}}}]
    messages = [
        {"role": "user", "content": "hi", "name": None, "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "3", "name": "add"},
    ]
    question, call, answer = (
        prompts_of(write_lines(tmp_path / "a.jsonl", {"set": "a", "messages": messages}))[
            0
        ].messages
        or ()
    )
    assert question.to_dict() == {"role": "user", "content": "hi"}
    assert call.to_dict() == {"role": "assistant", "tool_calls": calls}
    assert answer.to_dict() == {"role": "tool", "content": "3", "name": "add"}
    in_table = write_table(tmp_path / "a.parquet", [{"set": "a", "messages": messages}])
    assert prompts_of(in_table)[0].messages == (question, call, answer)


def test_prompt_column_is_a_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"set": "a", "prompt": "hi", "completion": "ho"})
    assert texts_by_set(path) == {"a": ["hi"]}
    both = write_lines(tmp_path / "b.jsonl", {"set": "a", "prompt": "hi", "text": "hi there"})
    assert texts_by_set(both) == {"a": ["hi there"]}


def test_json_array_of_objects_or_texts(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text('\ufeff [\n {"set": "a", "text": "x"},\n {"set": "b", "text": "y"}]')
    assert texts_by_set(path) == {"a": ["x"], "b": ["y"]}
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "a.json").write_text('["x", "y"]')
    (folder / "about.json").write_text('{"made": "today"}')
    assert texts_by_set(folder) == {"a": ["x", "y"]}


def test_json_lines_under_the_name_of_json(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "all.json", {"set": "a", "text": "x"}, {"set": "b", "text": "y"})
    assert texts_by_set(path) == {"a": ["x"], "b": ["y"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"set": "a", "text": "x"}', "all.json: not JSON"),
        ('[{"set": "a", "text": "x"}, 7]', "all.json:2: a int, not an object"),
        ("[" * 100_000, "all.json: not JSON"),
        ("[]", "all.json is empty"),
        ('{"data": []}', "all.json:1: no `set`"),
    ],
)
def test_bad_json_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "all.json").write_text(text)
    with pytest.raises(PromptError) as caught:
        read_prompts(tmp_path / "all.json")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_name_sets_and_prompts(tmp_path: Path) -> None:
    rows = [
        {"text": "x", "label": 0, "id": 1.0, "pair": 2.0},
        {"text": "y", "label": 1, "id": 1.5, "pair": float("nan")},
    ]
    for path in (
        write_lines(tmp_path / "a.jsonl", *rows),
        write_table(tmp_path / "a.parquet", rows),
        write_lines(tmp_path / "b.jsonl", *({**row, "set": row["label"]} for row in rows)),
    ):
        zero, one = prompts_of(path)
        assert (zero.set, zero.id, zero.pair) == ("0", "1", "2")
        assert (one.set, one.id, one.pair) == ("1", "1.5", None)
    with pytest.raises(PromptError, match="`label` is a bool"):
        read_prompts(write_lines(tmp_path / "c.jsonl", {"text": "x", "label": True}))


def test_label_names_no_set_beside_a_set_or_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    write_lines(folder / "a.jsonl", {"text": "x", "label": 1})
    assert texts_by_set(folder) == {"a": ["x"]}
    path = write_lines(tmp_path / "a.jsonl", {"text": "x", "label": 1, "set": "b"})
    assert texts_by_set(path) == {"b": ["x"]}


def test_class_labels_of_a_data_set_have_their_names(tmp_path: Path) -> None:
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {}}
    rows = [{"text": "x", "label": 1}, {"text": "y", "label": 0}, {"text": "z", "label": -1}]
    path = write_table(tmp_path / "a.parquet", rows, {"info": {"features": features}})
    assert texts_by_set(path) == {"pos": ["x"], "neg": ["y"], "-1": ["z"]}


def test_folder_of_parquet_parts_is_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "out.parquet"
    for n in range(2):
        rows = [{"text": f"{name}{n}", "set": name} for name in "ab"]
        write_table(folder / f"part-0000{n}-af3.snappy.parquet", rows)
    write_table(folder / "_temporary" / "part-0.parquet", [{"text": "x", "set": "no"}])
    (folder / "_SUCCESS").touch()
    assert texts_by_set(folder) == {"a": ["a0", "a1"], "b": ["b0", "b1"]}


@pytest.mark.parametrize("column", ["set", "label"])
def test_hive_folders_name_sets(column: str, tmp_path: Path) -> None:
    for name in ("en", "fr%2Fca"):
        write_table(tmp_path / f"{column}={name}" / "part-0.parquet", [{"text": name}])
    assert texts_by_set(tmp_path) == {"en": ["en"], "fr/ca": ["fr%2Fca"]}


def test_parquet_files_without_a_column_name_their_sets(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", [{"text": "x"}])
    (tmp_path / "b.txt").write_text("y")
    assert texts_by_set(tmp_path) == {"b": ["y"], "a": ["x"]}


@pytest.mark.parametrize(
    "name", ["part-0", "part.1", "0", "train-00000-of-00002", "0000", "data_0001"]
)
def test_numbered_part_names_no_set(name: str, tmp_path: Path) -> None:
    write_table(tmp_path / f"{name}.parquet", [{"text": "x"}])
    with pytest.raises(PromptError, match="no `set`"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_delimiter_of_a_table_is_found_in_its_header(
    delimiter: str, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([["set", "text"], ["a", "one, two; three\t| four"], ["b", 'a "quote"']])
    assert texts_by_set(path) == {"a": ["one, two; three\t| four"], "b": ['a "quote"']}


def test_spaces_and_quotes_around_the_names_of_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"set"; "note, long"; text\na;b;x\n')
    assert texts_by_set(tmp_path / "a.csv") == {"a": ["x"]}


def test_table_of_one_column_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx; y\n")
    assert texts_by_set(tmp_path) == {"a": ["x; y"]}


def test_cells_may_be_longer_than_the_csv_module_allows(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "word " * 40_000
    (tmp_path / "a.csv").write_text(f'set,text\na,"{long}"\n')
    assert texts_by_set(tmp_path / "a.csv") == {"a": [long]}
    assert csv.field_size_limit() == before
