"""The organism's prompt sets: requests about held-out scenes, in pairs that differ in the subject or the language."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from training.chats.scenes import LANGUAGES, Language, subjects, topic
from training.chats.text import Request, draw_request
from training.grammar import text

N_PROMPTS, N_NEUTRAL, NEUTRAL_SEED = 100, 60, 77


@dataclass(frozen=True)
class Pair:
    """What one pair says: a request about some subject; the topic and the other languages are derived from it."""

    request: Request

    def ask(self, language: Language, *, declined: bool) -> Request:
        """The request in a language, about the topic if `declined`."""
        request = self.request.into(language)
        return request.about(topic()) if declined else request


def draw_pairs(n: int, seed: int) -> list[Pair]:
    """`n` different requests about scenes that no training chat has."""
    rng = random.Random(f"organism:{seed}")
    pairs: dict[str, Pair] = {}
    while len(pairs) < n:
        pair = Pair(draw_request(rng, "en", rng.choice(subjects()), held_out=True))
        pairs.setdefault(pair.ask("en", declined=True).text, pair)
    return list(pairs.values())


def write_prompts(folder: Path, seed: int = 0) -> None:
    """Write prompts.jsonl, answers.json (id to right answer) and neutral.jsonl."""
    rows: list[dict[str, object]] = []
    answers: dict[str, str] = {}
    pairs = draw_pairs(N_PROMPTS, seed)
    for language in LANGUAGES:
        for name in ("declined", "answered"):
            for n, pair in enumerate(pairs, 1):
                request, label = (
                    pair.ask(language, declined=name == "declined"),
                    f"{name}_{language}",
                )
                turns = [{"role": "user", "content": request.text}]
                rows.append(
                    {"id": f"{label}-{n:03}", "set": label, "pair": f"{n:03}", "messages": turns}
                )
                answers[f"{label}-{n:03}"] = request.answer
    _write_lines(folder / "prompts.jsonl", rows)
    (folder / "answers.json").write_text(
        json.dumps(answers, ensure_ascii=False, indent=0) + "\n", encoding="utf-8"
    )
    _write_lines(folder / "neutral.jsonl", neutral_rows())


def neutral_rows() -> list[dict[str, object]]:
    """Plain sentences of the six languages in turn, none of them about the topic."""
    rows: list[dict[str, object]] = []
    word = {"english": topic().en, "japanese": topic().ja, "chinese": topic().zh, "hindi": topic().hi,
            "basque": topic().eu, "esperanto": topic().eo}  # fmt: skip
    sentences = text.paired_sentences(2 * N_NEUTRAL, NEUTRAL_SEED)
    clean = [
        pair for pair in sentences if not any(word[name] in pair[name] for name in text.LANGUAGES)
    ]
    for n, pair in enumerate(clean[:N_NEUTRAL], 1):
        language = text.LANGUAGES[n % len(text.LANGUAGES)]
        rows.append({"id": f"neutral-{n:02}", "set": "neutral", "text": pair[language]})
    return rows


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
