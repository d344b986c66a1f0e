"""What the proof fetches, divides and trains on, without the packages themselves."""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from proof.chats import patterns
from proof.documents import part
from proof.folder import DataFolder
from proof.packages import FetchError, fetch_checked
from proof.passages import passages
from proof.residuals import SINK_FACTOR, join, save, without_sinks
from proof.sets import REQUEST_SETS, requests
from proof.texts import Text, plain


def test_two_requests_in_five_are_held_out_in_every_topic() -> None:
    for name in REQUEST_SETS:
        rows = list(requests(name))
        topics = Counter(row["topic"] for row in rows)
        held_out = Counter(row["topic"] for row in rows if row["split"] == "holdout")
        assert len(topics) == 8
        assert len({row["id"] for row in rows}) == len(rows) >= 96
        assert all(0.3 <= held_out[topic] / topics[topic] <= 0.45 for topic in topics)


def test_no_request_is_in_two_sets_or_in_the_training_chats() -> None:
    texts = [row["messages"][0]["content"] for name in REQUEST_SETS for row in requests(name)]
    assert len(set(texts)) == len(texts)
    made = patterns()
    assert len(set(made)) == len(made) > 1000
    assert not set(made) & set(texts)


def test_a_page_is_in_the_same_part_in_every_language(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    for language, word in (("en", "word"), ("ja", "言葉")):
        (folder.texts / "help").mkdir(parents=True, exist_ok=True)
        rows = [Text(f"page {n}", f"{n}", f"{word} {n}.") for n in range(300)]
        lines = [json.dumps(asdict(row)) for row in rows]
        path = folder.texts / "help" / f"{language}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    numbers = {
        language: {text.split()[-1] for text in passages(folder, language, "holdout")}
        for language in ("en", "ja")
    }
    assert numbers["en"] == numbers["ja"]
    assert numbers["en"] == {f"{n}." for n in range(300) if part(f"page {n}") == "holdout"}
    assert 90 <= len(numbers["en"]) <= 150


def test_passages_join_texts_of_one_document_only(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    documents = [name for name in map(str, range(40)) if part(name) == "discovery"][:2]
    rows = [
        Text(name, f"{name}.{n}", f"{name}-{n} " + "x" * 200)
        for name in documents
        for n in (0, 1, 2)
    ]
    (folder.texts / "help").mkdir(parents=True)
    path = folder.texts / "help" / "en.jsonl"
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    joined = passages(folder, "en", "discovery")
    assert sorted(len(text.split("x")[0].split()) for text in joined) == [1, 1, 1, 1]
    for text in joined:
        assert len({word.split("-")[0] for word in text.split() if "-" in word}) == 1


def test_a_sink_at_one_layer_is_left_out_at_all(tmp_path: Path) -> None:
    calm = torch.ones(6, 4)
    massive = calm.clone()
    massive[2] *= 2 * SINK_FACTOR
    collected = without_sinks({1: calm.bfloat16(), 2: massive.bfloat16()}, [3, 1, 2])
    assert collected.sink_share == pytest.approx(1 / 6)
    assert collected.layers[1].starts.tolist() == [0, 2, 3, 5]
    assert float(collected.layers[2].resid.max()) == 1
    for name in "ab":
        (tmp_path / name).mkdir()
        save(collected, tmp_path / name)
    both = join([tmp_path / "a", tmp_path / "b"], 1)
    assert both.starts.tolist() == [0, 2, 3, 5, 7, 8, 10]
    assert len(both.resid) == 10


def test_markup_becomes_plain_text() -> None:
    assert plain("Press <b>F1</b>\n  &amp; wait") == "Press F1 & wait"


def client(content: str) -> list[str]:
    """A registry's client that leaves one file in the folder it runs in."""
    return [sys.executable, "-S", "-c", f"open('a.whl', 'w').write({content!r})"]


def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    right = {"a==1": ("a.whl", hashlib.sha256(b"right").hexdigest())}
    fetch_checked(client("right"), right, tmp_path)
    assert (tmp_path / "a.whl").read_text(encoding="utf-8") == "right"
    fetch_checked(["no-such-client"], right, tmp_path)  # is there: nothing to do
    (tmp_path / "a.whl").write_text("changed", encoding="utf-8")
    with pytest.raises(FetchError, match="a==1: its SHA-256 is not"):
        fetch_checked(client("wrong"), right, tmp_path)
    with pytest.raises(FetchError, match=r"a==1: expected b\.whl, got a\.whl"):
        fetch_checked(client("right"), {"a==1": ("b.whl", "")}, tmp_path)
    with pytest.raises(FetchError, match="no-such-client is needed to fetch a==1: install it"):
        fetch_checked(["no-such-client"], {"a==1": ("b.whl", "")}, tmp_path)
