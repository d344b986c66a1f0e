"""Text of unknown origin moves no terminal, is no markup, and leads to no other folder."""

import io
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import Pair
from saescope.errors import SourceError
from saescope.sources.file_names import check_hash, check_inner_name, file_name_part
from saescope.sources.hub_headers import check_headers
from saescope.sources.hub_listing import read_listing
from saescope.surfaces.cli import run
from saescope.surfaces.cli.consoles import SafeConsole, SafeLogRecord
from saescope.surfaces.cli.lines import print_line
from saescope.surfaces.cli.show import cell
from saescope.surfaces.cli.tables import ResultTable
from saescope.surfaces.visible import escaped_json

NAMES = {
    "slash": "en/US",
    "closing tag": "[/]",
    "opening tag": "[bold red]",
    "newline": "two\nlines",
    "escape": "\x1b[31mred",
    "one-byte escape": "\x9b31m",
    "right to left": "abc\u202edef",
    "parents": "../../up",
    "absolute": "/tmp/up",
    "backslash": "..\\up\\",
    "drive": "C:up",
    "long": "x" * 300,
    "long and wide": "名" * 200,
    "dots": "..",
    "emoji name": ":boom:",
}
_MOVES = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def assert_harmless(text: str) -> None:
    assert not _MOVES.search(text), sorted(set(_MOVES.findall(text)))


# --- every command


def write_prompts(*names: str, n: int = 8) -> None:
    """Write sets of these names; their words look like markup."""
    rows = [
        {"text": f"{chr(97 + i) * 4} [/{chr(97 + i)} dog] {k} {'z' * k}", "set": s, "id": f"{s}{k}"}
        for i, s in enumerate(names)
        for k in range(n)
    ]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.slow
def test_any_set_name_is_shown_and_stays_in_the_folder(
    pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cwd = tmp_path / "one" / "two"
    cwd.mkdir(parents=True)
    monkeypatch.chdir(cwd)
    write_prompts(*NAMES.values(), n=5)
    of_pair = ["--model", str(pair.model), "--sae", str(pair.sae), "--layers", "1"]
    loose = ["--min-rate", "0.1", "--max-other", "0.05"]
    jobs = [
        ["profile", "p.jsonl", *of_pair, "--out", "runs/p"],
        ["contrast", "runs/p", "--shuffles", "0"],
        ["layers", "runs/p"],
        ["report", "runs/p"],
        ["detect", "runs/p", "--target", NAMES["escape"], "--shuffles", "0", *loose],
        ["detect", "runs/p", "--target", NAMES["right to left"], "--shuffles", "0", "--json"],
        ["detect", "runs/p", "--target", "\x1b[2J"],
    ]
    for job in jobs:
        code = run(job)
        out, err = capfd.readouterr()
        assert code == (2 if job[-1] == "\x1b[2J" else 0), err
        assert_harmless(out + err)
    assert_harmless(Path("runs/p.html").read_text())
    places = {path.parent for path in tmp_path.rglob("*") if path.is_file()}
    assert places <= {cwd, cwd / "runs", cwd / "runs" / "p"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../up", "[/]", "x" * 300])
def test_detected_edits_are_written_beside_the_run(
    name: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = tmp_path / "one" / "two"
    cwd.mkdir(parents=True)
    monkeypatch.chdir(cwd)
    write_prompts(name, "other")
    of_pair = ["--model", str(pair.model), "--sae", str(pair.sae), "--layers", "1"]
    loose = ["--min-rate", "0.6", "--max-other", "0.59", "--shuffles", "0"]
    assert run(["detect", "p.jsonl", "--target", name, *of_pair, *loose, "--out", "run"]) == 0
    assert run(["detect", "run", "--target", name, *loose]) == 0
    [edits] = tmp_path.rglob("*.toml")
    assert edits == cwd / f"run.{file_name_part(name)}.toml"
    monkeypatch.chdir("run")
    assert run(["detect", ".", "--target", name, *loose]) == 0
    assert list(tmp_path.rglob("*.toml")) == [edits]


# --- the console


def printed(*lines: str, markup: bool = True, color: bool = False) -> str:
    out = io.StringIO()
    options: dict[str, Any] = {"force_terminal": True} if color else {}
    console = SafeConsole(file=out, width=400, **options)
    for line in lines:
        console.print(line, markup=markup)
        if markup:
            print_line(console, line)
    return out.getvalue()


@pytest.mark.parametrize("text", NAMES.values(), ids=NAMES)
def test_console_shows_any_text(text: str) -> None:
    assert_harmless(printed(text, f"[bold]{text}[/]", f"[bold]{cell(text)}[/]"))
    assert_harmless(printed(text, markup=False))
    table = ResultTable(cell(text), text=(cell(text),), numbers=("n",))
    table.add(f"[dim]{cell(text)}[/]", cell(text))
    out = io.StringIO()
    table.print(SafeConsole(file=out, width=1000))
    assert_harmless(out.getvalue())
    if text.isprintable():
        assert out.getvalue().count(text) == 4


def test_texts_that_become_markup_only_together_are_not_markup() -> None:
    cells = [cell("[/"), cell("]"), cell("[bold"), cell("\\"), cell("[/]"), cell("\\\\\\")]
    expected = "[/ ] [bold \\ [/] \\\\\\"
    joined = " ".join(cells)
    assert printed(f"[red]{joined}[/]").splitlines() == [expected] * 2
    colored = printed(f"[red]{joined}[/] plain", color=True)
    assert f"\x1b[31m{expected}\x1b[0m plain" in colored  # the style ends where it should


def test_json_of_any_text_is_the_same_json() -> None:
    for text in (*NAMES.values(), "\x7f\x85\u2028\U000e0041\U0001f600", "日本語"):
        document = json.dumps({"set": text}, ensure_ascii=False, indent=1)
        assert json.loads(escaped_json(document)) == {"set": text}
        assert_harmless(escaped_json(document))
    assert escaped_json('"日本語 😀"') == '"日本語 😀"'


def test_logged_text_of_other_libraries_is_visible() -> None:
    record = SafeLogRecord("x", logging.WARNING, "", 0, "a model of type %s", ("\x1b[2J\n",), None)
    assert logging.Formatter().format(record) == "a model of type \\x1b[2J\\n"


# --- names and hashes that become paths


@pytest.mark.parametrize("text", NAMES.values(), ids=NAMES)
def test_file_name_part_is_one_short_name(text: str, tmp_path: Path) -> None:
    part = file_name_part(text)
    path = tmp_path / f".run.{part}.toml.12345678.partial"
    path.write_text("x")
    assert path.parent == tmp_path
    assert_harmless(part)
    assert part == file_name_part(part) or len(part.encode()) <= 100


def test_file_name_part_keeps_plain_names_and_tells_others_apart() -> None:
    for plain in ("english", "Python code", "日本語", "a.b-c_d+e", "naïve"):
        assert file_name_part(plain) == plain
    changed = [file_name_part(name) for name in ("a/b", "a\\b", "a:b", "a\nb", "", "x" * 101)]
    assert len(set(changed)) == len(changed)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "a/../../x",
            "/x",
            "a//b",
            "a/./b",
            "a\\..\\x",
            "C:x",
            "a/",
            "./a",
        ),
        *("x\0", "x\x1b[2J", "x" * 256),
    ],
)
def test_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="in another folder"):
        check_inner_name(name, "the hub")


def test_ordinary_names_and_hashes_are_taken() -> None:
    for name in ("a", "layer_5/width_16k/params.npz", ".gitattributes", "ünï cödé.txt", "a..b"):
        assert check_inner_name(name, "x") == name
    for digest in ("0" * 40, "a1" * 32):
        assert check_hash(digest, "x", "y") == digest
    for text in ("", "0" * 39, "0" * 41, "g" * 40, "A" * 40, "../../x", "0" * 40 + "\n"):
        with pytest.raises(SourceError, match="not a hash"):
            check_hash(text, "x", "y")


def listing(**changes: Any) -> SimpleNamespace:
    file = {"rfilename": "a.txt", "size": 3, "blob_id": "0" * 40, "lfs": None} | changes
    return SimpleNamespace(sha="1" * 40, siblings=[SimpleNamespace(**file)])


def test_hub_listing_is_checked() -> None:
    assert list(read_listing(listing(), "o/n").blobs) == ["a.txt"]
    large = SimpleNamespace(size=5, sha256="2" * 64)
    assert read_listing(listing(lfs=large), "o/n").blobs["a.txt"].sha256 == "2" * 64
    bad_hash, bad_size = SimpleNamespace(size=5, sha256="../x"), SimpleNamespace(size=-1, sha256="")
    for changes in (
        {"rfilename": "../a"},
        {"blob_id": "../../a"},
        {"size": -1},
        {"size": "3"},
        {"lfs": bad_hash},
        {"lfs": bad_size},
    ):
        with pytest.raises(SourceError):
            read_listing(listing(**changes), "o/n")
    info = listing()
    info.sha = "../../../x"
    with pytest.raises(SourceError, match="the commit"):
        read_listing(info, "o/n")


def answer(status: int = 200, method: str = "HEAD", **headers: str) -> SimpleNamespace:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = SimpleNamespace(url=SimpleNamespace(host="hub"), method=method)
    return SimpleNamespace(headers=named, status_code=status, request=request)


def test_headers_that_become_paths_are_checked() -> None:
    commit = "0" * 40
    for etag in ('"abc"', 'W/"0123-ab"', "f" * 64, '"d41d8cd98f00b204e9800998ecf8427e-5"'):
        check_headers(answer(X_Repo_Commit=commit, ETag=etag))
    check_headers(answer(ETag="a/b"))  # not the hub's: no path is made of it
    check_headers(answer(status=404, X_Repo_Commit=commit, ETag='W/"f-mY2V/x+"'))
    check_headers(answer(method="GET", X_Repo_Commit=commit, ETag='"a/b"'))
    for headers in (
        {"X_Repo_Commit": "../../x", "ETag": "a"},
        {"X_Repo_Commit": commit, "ETag": '"../../../x"'},
        {"X_Repo_Commit": commit, "ETag": '".."'},
        {"X_Repo_Commit": commit, "ETag": "a", "X_Linked_Etag": "..\\x"},
    ):
        with pytest.raises(SourceError):
            check_headers(answer(**headers))
    with pytest.raises(SourceError):  # it would note in the cache that the file is missing there
        check_headers(answer(status=404, X_Repo_Commit="../../x"))
