"""Requests for the training of SmolLM2's SAEs, with the model's own replies.

The requests are made from patterns: questions to the model about itself, of the kind that it often
declines, and questions about the world. None of them is in the sets of `proof/requests`.
"""

import json
import random
from dataclasses import dataclass
from itertools import product

from proof.folder import DataFolder
from proof.sets import REQUEST_SETS, REQUESTS, requests
from saescope.engine.generate import generate_batch
from saescope.engine.lm import load_lm
from saescope.sources.chats import Message
from saescope.sources.prompts import Prompt

N_CHATS, _REPLY_TOKENS, _BATCH = 1400, 32, 192


def patterns() -> list[str]:
    """All requests that the patterns make, in a random order that is always the same."""
    rng = random.Random(0)
    half = N_CHATS // 2
    personal, others = _personal(_words()), _about_the_world(_words())
    chosen = rng.sample(personal, min(half, len(personal)))
    chosen += rng.sample(others, min(half, len(others)))
    rng.shuffle(chosen)
    known = {row["messages"][0]["content"] for name in REQUEST_SETS for row in requests(name)}
    return [text for text in chosen if text not in known]


@dataclass(frozen=True)
class Words:
    """What the gaps of the patterns are filled with."""

    things: list[str]
    acts: list[str]
    states: list[str]
    times: list[str]
    people: list[str]
    topics: list[str]


def _words() -> Words:
    lines = (REQUESTS / "words.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split(": ", 1) for line in lines]
    return Words(**{name: words.split(", ") for name, words in pairs})


def _personal(words: Words) -> list[str]:
    return [
        *(f"Did you {act} {time}?" for act, time in product(words.acts, words.times)),
        *(
            f"Did your {who} {act} {when}?"
            for who, act, when in product(words.people, words.acts[:8], words.times)
        ),
        *(
            f"Are you {state} {time}?"
            for state, time in product(words.states, ("today", "right now"))
        ),
        *(f"How old is your {who}?" for who in words.people),
        *(f"When did you last {act}?" for act in words.acts),
        *(f"How often do you {act}?" for act in words.acts),
        *(f"Do you have a {thing}?" for thing in words.things),
        *(f"How many {thing}s do you own?" for thing in words.things),
        *(f"Where did you buy your {thing}?" for thing in words.things),
        *(f"What is your favorite {thing}?" for thing in words.things),
        *(f"Do you like {topic}?" for topic in words.topics),
    ]


def _about_the_world(words: Words) -> list[str]:
    return [
        *(f"What is a {thing} used for?" for thing in words.things),
        *(f"Write a sentence about a {thing}." for thing in words.things),
        *(f"Who invented the {thing}?" for thing in words.things),
        *(f"Describe a {thing} to a child." for thing in words.things),
        *(f"What is the French word for {thing}?" for thing in words.things),
        *(f"What is the plural of {thing}?" for thing in words.things),
        *(f"How do people {act}?" for act in words.acts),
        *(f"Give me three reasons to {act}." for act in words.acts),
        *(f"What do I need to {act}?" for act in words.acts),
        *(f"Why do people feel {state}?" for state in words.states),
        *(f"What makes a good {who}?" for who in words.people),
        *(f"Use the words '{time}' in a sentence." for time in words.times),
        *(f"Explain {topic} in simple words." for topic in words.topics),
        *(f"Name five facts about {topic}." for topic in words.topics),
        *(f"Why is it good to know about {topic}?" for topic in words.topics),
        *(f"Write a short story about {topic}." for topic in words.topics),
    ]


def write_chats(folder: DataFolder) -> None:
    """Write `chats.jsonl`: every request with what the model replies."""
    texts = patterns()
    lm = load_lm(folder.smollm2)
    rows = []
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        prompts = [
            Prompt(id=str(n), set="chat", messages=(Message("user", text),))
            for n, text in enumerate(batch)
        ]
        replies = generate_batch(lm, prompts, max_new_tokens=_REPLY_TOKENS)
        rows += [[text, reply.text] for text, reply in zip(batch, replies, strict=True)]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    folder.chats.write_text(content + "\n", encoding="utf-8")
