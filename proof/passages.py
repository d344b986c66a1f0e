"""Passages that SAEs are trained on: texts of one document, joined to about the same length."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence

from proof.documents import part
from proof.folder import DataFolder
from proof.texts import DENSE, INTERFACE, LANGUAGES, Text, read_texts
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt, Split

_LENGTH, _DENSE_LENGTH = 360, 130  # characters: about 80 tokens
_CHARACTERS: Mapping[Split, int] = {"discovery": 240_000, "holdout": 20_000}
_N_ENGLISH: Mapping[Split, int] = {"discovery": 3000, "holdout": 200}


def passages(folder: DataFolder, language: str, split: Split) -> list[str]:
    """Passages of help pages, guides and interface in a random order that is always the same."""
    kinds = ["help"] if language != "eo" else []
    kinds += ["interface"] if language in INTERFACE else []
    kinds += ["guide"] if (folder.texts / "guide" / f"{language}.jsonl").exists() else []
    length = _DENSE_LENGTH if language in DENSE else _LENGTH
    joined = [
        passage for kind in kinds for passage in _join(read_texts(folder, kind, language), length)
    ]
    kept = [text for document, text in joined if part(document) == split]
    random.Random(f"{language} {split}").shuffle(kept)
    return kept


def _join(texts: Sequence[Text], length: int) -> Iterator[tuple[str, str]]:
    """Join texts of one document until they are long enough; single dialogs may stay short."""
    document, pieces = "", list[str]()
    for text in texts:
        if pieces and (text.document != document or sum(map(len, pieces)) >= length):
            yield document, " ".join(pieces)
            pieces = []
        document = text.document
        pieces.append(text.text)
    if pieces:
        yield document, " ".join(pieces)


def gemma3_rows(folder: DataFolder, split: Split) -> list[Prompt]:
    """About as many bytes of every language, so that each has its share of the features."""
    rows = []
    for language in LANGUAGES:
        total = 0
        for number, text in enumerate(passages(folder, language, split)):
            total += len(text) * (_LENGTH // _DENSE_LENGTH if language in DENSE else 1)
            if total > _CHARACTERS[split]:
                break
            rows.append(Prompt(id=f"{language}-{number}", set=language, text=text))
    random.Random(0).shuffle(rows)
    return rows


def smollm2_rows(folder: DataFolder, split: Split) -> list[Prompt]:
    """English passages, and chats with the model's own replies, about as many positions of each."""
    texts = passages(folder, "en", split)[: _N_ENGLISH[split]]
    plain = [Prompt(id=f"text-{n}", set="text", text=text) for n, text in enumerate(texts)]
    chats = [
        Prompt(id=f"chat-{n}", set="chat", messages=(Message("user", q), Message("assistant", a)))
        for n, (q, a) in enumerate(read_chats(folder))
        if (n % 10 == 0) == (split == "holdout")
    ]
    rows = [*plain, *chats]
    random.Random(0).shuffle(rows)
    return rows


def read_chats(folder: DataFolder) -> list[tuple[str, str]]:
    """Requests and replies of `chats.jsonl`."""
    rows = [json.loads(row) for row in folder.chats.read_text(encoding="utf-8").splitlines()]
    return [(request, reply) for request, reply in rows]
