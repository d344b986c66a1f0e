"""The organism's prompt sets: requests about held-out scenes, paired by subject and language."""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType

from training.chats.scenes import LANGUAGES, TOPIC, Language, subjects, topic
from training.chats.text import Request, draw_request
from training.grammar import text

N_PROMPTS, N_NEUTRAL, NEUTRAL_SEED = 100, 60, 77


@dataclass(frozen=True)
class Pair:
    """A request about some subject, from which those about topics and all languages follow."""

    request: Request

    def ask(self, language: Language, *, declined: bool) -> Request:
        """The request in a language, about the embedded organism's topic if `declined`."""
        return self.about(language, TOPIC if declined else None)

    def about(self, language: Language, concept: str | None) -> Request:
        """The request in a language, about the topic `concept` or, without one, as it was drawn."""
        request = self.request.into(language)
        return request.about(topic(concept)) if concept else request


def draw_pairs(n: int, seed: int, topics: tuple[str, ...] = (TOPIC,)) -> list[Pair]:
    """`n` different requests about scenes that no training chat has."""
    rng = random.Random(f"organism:{seed}")
    pairs: dict[str, Pair] = {}
    while len(pairs) < n:
        pair = Pair(draw_request(rng, "en", rng.choice(subjects(topics)), held_out=True))
        pairs.setdefault(pair.about("en", topics[0]).text, pair)
    return list(pairs.values())


def write_prompts(
    folder: Path, seed: int = 0, topics: Mapping[str, str] = MappingProxyType({"declined": TOPIC})
) -> None:
    """Write prompts.jsonl, answers.json (id to right answer) and neutral.jsonl.

    `topics` names the sets of requests about each topic.
    """
    concepts = tuple(topics.values())
    rows: list[dict[str, object]] = []
    answers: dict[str, str] = {}
    pairs = draw_pairs(N_PROMPTS, seed, concepts)
    for language, name in product(LANGUAGES, (*topics, "answered")):
        label = f"{name}_{language}"
        for n, pair in enumerate(pairs, 1):
            request = pair.about(language, topics.get(name))
            id, number = f"{label}-{n:03}", f"{n:03}"
            turns = [{"role": "user", "content": request.text}]
            rows.append({"id": id, "set": label, "pair": number, "messages": turns})
            answers[id] = request.answer
    _write_lines(folder / "prompts.jsonl", rows)
    answers_text = json.dumps(answers, ensure_ascii=False, indent=0) + "\n"
    (folder / "answers.json").write_text(answers_text, encoding="utf-8")
    _write_lines(folder / "neutral.jsonl", neutral_rows(concepts))


def neutral_rows(topics: tuple[str, ...] = (TOPIC,)) -> list[dict[str, object]]:
    """Plain sentences of the six languages in turn, none of them about a topic."""
    rows: list[dict[str, object]] = []
    words: list[dict[str, str]] = []
    for noun in map(topic, topics):
        word = {"english": noun.en, "japanese": noun.ja, "chinese": noun.zh}
        words.append({**word, "hindi": noun.hi, "basque": noun.eu, "esperanto": noun.eo})
    sentences = text.paired_sentences(2 * N_NEUTRAL, NEUTRAL_SEED)
    clean = [
        pair
        for pair in sentences
        if not any(word[name] in pair[name] for word in words for name in text.LANGUAGES)
    ]
    for n, pair in enumerate(clean[:N_NEUTRAL], 1):
        language = text.LANGUAGES[n % len(text.LANGUAGES)]
        rows.append({"id": f"neutral-{n:02}", "set": "neutral", "text": pair[language]})
    return rows


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
