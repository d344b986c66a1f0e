"""Prompt sets of every file format; unusable rows are refused with file and line."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saescope.errors import PromptError
from saescope.sources.chats import Message
from saescope.sources.prompt_sets import bundled_prompts, read_lines, read_prompts
from saescope.sources.prompts import Prompt, PromptSet, fingerprint, texts
from saescope.sources.splits import split_prompts

ROWS: list[dict[str, Any]] = [
    {"text": "hello", "set": "en", "id": "a", "pair": "greet", "split": "discovery"},
    {"text": "bonjour", "set": "fr", "id": "b", "pair": "greet", "split": "holdout"},
    {"messages": [{"role": "user", "content": "salut\n!"}], "set": "fr", "id": "c"},
]
SETS = (
    PromptSet("en", (Prompt("a", "en", text="hello", pair="greet", split="discovery"),)),
    PromptSet(
        "fr",
        (
            Prompt("b", "fr", text="bonjour", pair="greet", split="holdout"),
            Prompt("c", "fr", messages=(Message("user", "salut\n!"),)),
        ),
    ),
)


def write(path: Path, *rows: Any) -> Path:
    """A .jsonl of these rows; strings are written as they are."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8"
    )
    return path


def to_csv(path: Path) -> Path:
    chat = json.dumps(ROWS[2]["messages"]).replace('"', '""')
    path.write_text(
        "text,messages,set,id,pair,split\n"
        "hello,,en,a,greet,discovery\n"
        "bonjour,,fr,b,greet,holdout\n"
        f',"{chat}",fr,c,,\n',
        encoding="utf-8",
    )
    return path


def to_parquet(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    pq.write_table(
        pa.Table.from_pylist([dict.fromkeys(rows[-1] | rows[0]) | row for row in rows]), path
    )
    return path


def to_folder(path: Path) -> Path:
    path.mkdir()
    for name in ("en", "fr"):
        write(
            path / f"{name}.jsonl",
            *({k: v for k, v in r.items() if k != "set"} for r in ROWS if r["set"] == name),
        )
    return path


FORMS = {
    "one.jsonl": lambda path: write(path, *ROWS),
    "one.csv": to_csv,
    "one.parquet": to_parquet,
    "folder": to_folder,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_sets(form: str, tmp_path: Path) -> None:
    assert read_prompts(FORMS[form](tmp_path / form)) == SETS


def test_folder_of_text_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes("\ufeffeins\r\n\r\n  \nzwei ド\r\n".encode())
    write(
        tmp_path / "a.jsonl",
        "\ufeff" + json.dumps({"text": "one"}),
        "",
        {"text": "two", "set": "other"},
    )
    (tmp_path / "README.md").write_text("not a set")
    (tmp_path / ".hidden.txt").write_text("not a set either")
    a, other, b = read_prompts(str(tmp_path))
    assert [(s.name, [p.text for p in s.prompts]) for s in (a, other, b)] == [
        ("a", ["one"]),
        ("other", ["two"]),
        ("b", ["eins", "zwei ド"]),
    ]
    assert [p.id for p in b.prompts] == ["b:1", "b:4"]


def test_csv_cells_may_hold_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "one.csv"
    path.write_bytes('\ufefftext,set\r\n"first\n\nthird, ""quoted""",a\r\n\r\nplain,b\r\n'.encode())
    assert [p.text for s in read_prompts(path) for p in s.prompts] == [
        'first\n\nthird, "quoted"',
        "plain",
    ]


def test_ids_and_pairs_may_be_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", {"text": "x", "set": "a", "id": 7, "pair": 0})
    [[prompt]] = [s.prompts for s in read_prompts(path)]
    assert (prompt.id, prompt.pair) == ("7", "0")
    table = to_parquet(tmp_path / "one.parquet", [{"text": "x", "set": "a", "id": 7, "pair": 0}])
    assert read_prompts(table) == read_prompts(path)


@pytest.mark.parametrize(
    ("word", "split"), [("train", "discovery"), ("test", "holdout"), ("validation", "holdout")]
)
def test_split_accepts_common_names(word: str, split: str, tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", {"text": "x", "set": "a", "split": word})
    assert read_prompts(path)[0].prompts[0].split == split


GOOD = {"text": "fine", "set": "a"}
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": ("{text: 1}", "not JSON"),
    "deeply nested": ("[" * 100_000, "not JSON"),
    "number too long": ('{"id": ' + "9" * 5000 + "}", "not JSON"),
    "no object": ("[1]", "a list, not an object"),
    "both": (
        {"text": "x", "messages": [{"role": "user", "content": "x"}], "set": "a"},
        "either `text` or `messages`",
    ),
    "neither": ({"set": "a"}, "either `text` or `messages`"),
    "empty text": ({"text": " \n", "set": "a"}, "text is empty"),
    "text no string": ({"text": 3, "set": "a"}, "`text` is a int"),
    "unknown split": ({"text": "x", "set": "a", "split": "maybe"}, "'maybe'"),
    "no set": ({"text": "x"}, "no `set`"),
    "surrogate": ('{"text": "\\ud800", "set": "a"}', "surrogate"),
    "surrogate in a chat": (
        '{"messages": [{"role": "user", "content": "\\udc00"}], "set": "a"}',
        "surrogate",
    ),
    "no messages": ({"messages": [], "set": "a"}, "non-empty list"),
    "message without content": (
        {"messages": [{"role": "user"}], "set": "a"},
        "`content` of a message is missing",
    ),
    "message null": ({"messages": [{"role": "user", "content": None}], "set": "a"}, "null"),
    "id true": ({"text": "x", "set": "a", "id": True}, "`id` is a bool"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_is_refused_with_file_and_line(case: str, tmp_path: Path) -> None:
    row, reason = BAD_ROWS[case]
    path = write(tmp_path / "one.jsonl", GOOD, "", row)
    with pytest.raises(PromptError, match=reason) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:3: ")


BAD_BYTES: dict[str, tuple[str, bytes, str]] = {
    "bad UTF-8": ("a.txt", b"fine\nbad \xff\n", "a.txt:2: not UTF-8"),
    "bad UTF-8 in CSV": ("a.csv", b"text,set\nx,a\nb\xe9d,a\n", "a.csv:3: not UTF-8"),
    "UTF-16": ("a.txt", "fine".encode("utf-16"), "a.txt:1: not UTF-8"),
    "UTF-16 without mark": ("a.txt", "fine".encode("utf-16-le"), "a.txt:1: has a NUL"),
    "too few cells": ("a.csv", b"text,set\nx,a\nx\n", "a.csv:3: has not as many cells"),
    "too many cells": ("a.csv", b"text,set\nx,a,b\n", "a.csv:2: has not as many cells"),
    "open quote": ("a.csv", b'text,set\nx,a\n"x,a\n', "a.csv:3: not CSV"),
    "messages no JSON": ("a.csv", b"messages,set\nhi,a\n", "a.csv:2: `messages` is not JSON"),
    "header only": ("a.csv", b"text,set\n", "a.csv is empty"),
    "empty CSV": ("a.csv", b"", "a.csv is empty"),
    "empty text": ("a.txt", b"\xef\xbb\xbf\r\n \n", "a.txt is empty"),
    "empty JSON lines": ("a.jsonl", b"\n", "a.jsonl is empty"),
    "damaged Parquet": (
        "a.parquet",
        b"PAR1 no, not really PAR1",
        "a.parquet: not a readable Parquet file",
    ),
    "empty Parquet": ("a.parquet", b"", "a.parquet: not a readable Parquet file"),
    "unknown kind": ("a.xlsx", b"x", "a.xlsx: unsupported file type: use"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_file_is_refused_with_file_and_line(case: str, tmp_path: Path) -> None:
    name, data, reason = BAD_BYTES[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PromptError) as caught:
        read_prompts(tmp_path if name.endswith(".txt") else tmp_path / name)
    assert reason in str(caught.value)


def test_truncated_parquet_is_refused(tmp_path: Path) -> None:
    path = to_parquet(tmp_path / "one.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(PromptError, match=r"one\.parquet: not a readable Parquet file"):
        read_prompts(path)


def test_bad_parquet_row_is_refused_with_its_number(tmp_path: Path) -> None:
    path = to_parquet(tmp_path / "one.parquet", [GOOD, {"text": "", "set": "a"}])
    with pytest.raises(PromptError, match=r"one\.parquet:2: the text is empty"):
        read_prompts(path)


@pytest.mark.parametrize("same_file", [True, False])
def test_duplicate_ids_are_refused(same_file: bool, tmp_path: Path) -> None:
    write(
        tmp_path / "sets/a.jsonl",
        {"text": "x", "id": "7"},
        {"text": "y", "id": "7" if same_file else "8"},
    )
    write(tmp_path / "sets/b.jsonl", {"text": "z", "id": "9" if same_file else "7"})
    with pytest.raises(PromptError, match="'7' occurs twice"):
        read_prompts(tmp_path / "sets")


def test_two_files_of_one_set_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    write(tmp_path / "a.jsonl", {"text": "x"})
    with pytest.raises(PromptError, match="'a'"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "no.txt", "no.jsonl"])
def test_missing_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=f"{name} does not exist"):
        read_prompts(tmp_path / name)


def test_folder_without_sets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(PromptError, match=r"no NAME\.txt"):
        read_prompts(tmp_path)


@pytest.mark.parametrize("name", ["set.txt", "set.jsonl"])
def test_unreadable_path_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()  # unreadable for root too
    with pytest.raises(PromptError, match=f"cannot read .*{name}"):
        read_prompts(tmp_path)


def names(sets: Iterable[PromptSet]) -> list[str]:
    return [prompt_set.name for prompt_set in sets]


def test_bundled_sets_have_names() -> None:
    assert read_prompts("languages") == bundled_prompts() == bundled_prompts("languages")
    assert read_prompts("conlangs") == bundled_prompts("conlangs")
    assert not {*names(bundled_prompts())} & {*names(bundled_prompts("conlangs"))}
    with pytest.raises(PromptError, match="unknown bundle 'klingon': choose languages or"):
        bundled_prompts("klingon")


def test_plus_joins_bundles_and_paths(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    jsonl = write(tmp_path / "more.jsonl", {"text": "y", "set": "b"})
    assert read_prompts("languages+conlangs") == (*bundled_prompts(), *bundled_prompts("conlangs"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("x")
    sets = read_prompts(f"conlangs+{tmp_path / 'folder'}+{jsonl}")
    assert names(sets) == [*names(bundled_prompts("conlangs")), "a", "b"]
    assert read_prompts(f"{jsonl}+{tmp_path / 'folder'}") == sets[-2:][::-1]


def test_plus_may_stand_in_the_name_of_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "c++"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    assert names(read_prompts(folder)) == ["a"]
    assert (
        names(read_prompts(f"{folder}+conlangs"))[0]
        == names(read_prompts(f"conlangs+{folder}"))[-1]
        == "a"
    )


@pytest.mark.parametrize(
    ("sets", "reason"),
    [
        ("languages+", r"'\+' must join two sources"),
        ("+languages", r"'\+' must join two sources"),
        ("languages++conlangs", r"'\+' must join two sources"),
        ("languages+nothing", "nothing does not exist: .* or 'languages' or 'conlangs' or .*$"),
        (
            "languages+languages",
            "languages and languages both have a set 'japanese': rename or drop one",
        ),
        ("conlangs+{}/same_set.jsonl", "conlangs and .*same_set.jsonl both have a set 'hradun'"),
        ("conlangs+{}/same_id.jsonl", "id 'hradun-01' occurs twice"),
    ],
)
def test_sets_that_cannot_be_joined_are_refused_in_one_line(
    sets: str, reason: str, tmp_path: Path
) -> None:
    write(tmp_path / "same_set.jsonl", {"text": "x", "set": "hradun"})
    write(tmp_path / "same_id.jsonl", {"text": "x", "set": "mine", "id": "hradun-01"})
    with pytest.raises(PromptError, match=reason) as caught:
        read_prompts(sets.format(tmp_path))
    assert "\n" not in str(caught.value)


def test_read_lines_drops_blank_lines_and_the_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffone\r\n\r\ntwo".encode())
    assert read_lines(path) == ["one", "two"]
    path.write_text("\n")
    for bad in (path, tmp_path, tmp_path / "missing"):
        with pytest.raises(PromptError, match=bad.name):
            read_lines(bad)


PROMPT = Prompt("i", "a", text="x")


@pytest.mark.parametrize(
    "change",
    [
        {"id": "j"},
        {"set": "b"},
        {"text": "y"},
        {"text": None, "messages": (Message("user", "x"),)},
        {"text": None, "messages": (Message("system", "x"),)},
        {"pair": "p"},
        {"split": "holdout"},
    ],
)
def test_fingerprint_tells_every_field(change: dict[str, Any]) -> None:
    assert fingerprint([PromptSet("a", (PROMPT,))]) != fingerprint(
        [PromptSet("a", (replace(PROMPT, **change),))]
    )


def test_fingerprint_tells_sets_and_order() -> None:
    prompt_sets = texts(["x", "y"])
    [prompt_set] = prompt_sets
    shapes = [
        prompt_sets,
        [PromptSet("other", prompt_set.prompts)],
        [PromptSet("prompts", prompt_set.prompts[::-1])],
        [*prompt_sets, *prompt_sets],
        [],
    ]
    assert len({fingerprint(shape) for shape in shapes}) == len(shapes)
    assert fingerprint(prompt_sets) == fingerprint(texts(["x", "y"]))


sets_and_pairs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(["p", "q", "r", "s", None])), max_size=60
)


def prompts_of(rows: list[tuple[str, str | None]]) -> list[Prompt]:
    return [Prompt(f"p{n}", name, text="x", pair=pair) for n, (name, pair) in enumerate(rows)]


@pytest.mark.slow
@given(rows=sets_and_pairs, seed=st.integers(0, 5), data=st.data())
def test_split_is_the_same_in_any_order(
    rows: list[tuple[str, str | None]], seed: int, data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(rows))))
    prompts = prompts_of(rows)
    sides = split_prompts(prompts, seed=seed)
    assert split_prompts([prompts[n] for n in order], seed=seed) == [sides[n] for n in order]


@given(
    sets=st.text("abcd", max_size=60),
    share=st.sampled_from([0.6, 0.5, 0.3]),
    seed=st.integers(0, 5),
)
def test_split_gives_every_set_its_share(sets: str, share: float, seed: int) -> None:
    sides = split_prompts(prompts_of([(name, None) for name in sets]), share, seed)
    for name in set(sets):
        sides_of_set = [side for n, side in zip(sets, sides, strict=True) if n == name]
        assert abs(sides_of_set.count("discovery") - share * len(sides_of_set)) <= 1


@given(n=st.integers(1, 40), sets=st.integers(1, 5))
def test_split_gives_translated_sets_their_share(n: int, sets: int) -> None:
    sides = split_prompts(
        prompts_of([(f"set{s}", f"pair{i}") for s in range(sets) for i in range(n)])
    )
    assert sides == sides[:n] * sets
    assert abs(sides[:n].count("discovery") - 0.6 * n) <= 1


@given(rows=sets_and_pairs)
def test_pairs_stay_on_one_side(rows: list[tuple[str, str | None]]) -> None:
    sides = split_prompts(prompts_of(rows))
    side_of_pair = {
        (pair, side) for (_, pair), side in zip(rows, sides, strict=True) if pair is not None
    }
    assert len(side_of_pair) == len({pair for pair, _ in side_of_pair})


@given(splits=st.lists(st.sampled_from(["discovery", "holdout", None]), max_size=40))
def test_explicit_split_wins(splits: list[Any]) -> None:
    marked = [
        replace(p, split=split)
        for p, split in zip(prompts_of([("a", None)] * len(splits)), splits, strict=True)
    ]
    sides = split_prompts(marked)
    assert all(split is None or side == split for split, side in zip(splits, sides, strict=True))


def test_seed_changes_the_split() -> None:
    prompts = texts([str(n) for n in range(40)])[0].prompts
    assert split_prompts(prompts, seed=0) != split_prompts(prompts, seed=1)
