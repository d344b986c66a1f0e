"""docs/serve.md is right: its programs run against a server and print what the page shows."""

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from documents import ROOT, read_page
from served import Served, serving, tiny_chat

PAGE = read_page(ROOT / "docs" / "serve.md")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_chat(tmp_path_factory.mktemp("server"))) as server:
        yield server


def test_the_python_of_the_page_prints_what_it_shows(served: Served) -> None:
    [program] = [block for block in PAGE.blocks if block.language == "python"]
    [shown] = [block for block in PAGE.blocks if block.language == "text"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program.text.replace(ADDRESS, served.url), "page", "exec"), {})
    assert printed.getvalue().strip() == shown.text.strip()


def test_the_curl_calls_of_the_page_are_answered(served: Served) -> None:
    calls = [block.text for block in PAGE.blocks if block.text.startswith("curl")]
    assert len(calls) == 2
    for call in calls:
        words = shlex.split(call.replace("\\\n", " "))
        url = next(word for word in words if word.startswith(ADDRESS))
        method = words[words.index("-X") + 1] if "-X" in words else "POST"
        body = json.loads(words[words.index("-d") + 1])
        answer = httpx.request(method, url.replace(ADDRESS, served.url), json=body)
        assert answer.status_code == 200, answer.text
    reply = httpx.get(f"{served.url}/v1/steering/lighthouse-off").json()
    assert reply["edits"][0]["strength"] == -3


def test_stored_sets_are_where_the_page_says(served: Served) -> None:
    folder: Path = served.service.edit_sets.folder
    assert folder.name == "steering"
