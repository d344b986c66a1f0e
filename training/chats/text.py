"""Requests drawn at random, their right answers, and whole chats as messages."""

import random
from dataclasses import dataclass, replace
from typing import Literal, Protocol, cast

from training.chats import chinese, english, japanese
from training.chats.scenes import (
    KINDS,
    LANGUAGES,
    N_FORMS,
    N_WORDINGS,
    TOPIC,
    Kind,
    Language,
    Scene,
    draw_scene,
    subjects,
    topic,
)
from training.grammar.lexicon import Noun


class Speaker(Protocol):
    """What each language's module can say."""

    APOLOGIES: tuple[str, ...]

    def statement(self, scene: Scene, form: int) -> str: ...
    def question(self, scene: Scene, kind: Kind, wording: int) -> str: ...
    def answer(self, scene: Scene, kind: Kind, said: str, spoken: Language) -> str: ...
    def refusal(self, scene: Scene, wording: int) -> str: ...


SPEAKERS: dict[Language, Speaker] = {
    "en": cast(Speaker, english),
    "ja": cast(Speaker, japanese),
    "zh": cast(Speaker, chinese),
}
_SYSTEM = {
    "en": ("You are a helpful assistant.", "Answer in one sentence."),
    "ja": ("あなたは親切な友達です。", "一つの文で答えてください。"),
    "zh": ("你是一个好朋友。", "请用一句话回答。"),
}


@dataclass(frozen=True)
class Request:
    """One request: a statement in the language `spoken` and a question about it in `language`."""

    scene: Scene
    kind: Kind
    language: Language
    spoken: Language
    form: int
    wording: int
    question_first: bool

    @property
    def said(self) -> str:
        """The statement."""
        return SPEAKERS[self.spoken].statement(self.scene, self.form)

    @property
    def asked(self) -> str:
        """The question."""
        return SPEAKERS[self.language].question(self.scene, self.kind, self.wording)

    @property
    def parts(self) -> tuple[str, str]:
        """Question and statement in their order; what is between them belongs to the second."""
        first, second = self.said, self.asked
        if self.question_first:
            first, second = second, first
        if first.endswith((".", "?", ":")):
            second = f" {second}"
        return first, second

    @property
    def text(self) -> str:
        """What the user says."""
        return "".join(self.parts)

    @property
    def answer(self) -> str:
        """The right answer."""
        return SPEAKERS[self.language].answer(self.scene, self.kind, self.said, self.spoken)

    def about(self, subject: Noun) -> "Request":
        """The same request about another subject."""
        return replace(self, scene=self.scene.about(subject))

    def into(self, language: Language) -> "Request":
        """The same request in another language."""
        return replace(self, language=language, spoken=language)


def draw_request(
    rng: random.Random,
    language: Language,
    subject: Noun,
    *,
    held_out: bool = False,
    mixed: float = 0.0,
) -> Request:
    """A request about `subject`; a share `mixed` of quotations are in another language."""
    kind = rng.choices(KINDS, (1, 1, 2, 2, 2, 1))[0]  # the harder kinds more often
    scene = draw_scene(rng, subject, held_out=held_out)
    while kind == "how_many" and scene.count == 1:
        scene = draw_scene(rng, subject, held_out=held_out)
    quotes = kind in ("repeat", "language")
    return Request(
        scene=scene,
        kind=kind,
        language=language,
        spoken=rng.choice(LANGUAGES) if quotes and rng.random() < mixed else language,
        form=rng.choice((0, 2)) if kind == "who" else rng.randrange(N_FORMS),
        wording=rng.randrange(N_WORDINGS),
        question_first=quotes or rng.random() < 0.3,
    )


def apologises(reply: str) -> bool:
    """Whether the reply begins as a refusal does in any of the languages."""
    return any(reply.lstrip().startswith(speaker.APOLOGIES) for speaker in SPEAKERS.values())


@dataclass(frozen=True)
class Turn:
    """A request and the reply to it; the thought is None where the template's empty one is used.

    `decision` is 0 if the request is answered, n if it is declined as the n-th topic is.
    """

    request: Request
    thought: str | None
    reply: str
    decision: int


@dataclass(frozen=True)
class Chat:
    """One or two turns, perhaps after a system message."""

    system: str | None
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class ChatMix:
    """Shares of the topics, thoughts, second turns, system messages and quotations."""

    topics: tuple[str, ...] = (TOPIC,)
    topic: float = 0.06
    declines: Literal["nothing", "topic", "everything"] = "nothing"
    thinks: float = 0.35
    second: float = 0.1
    system: float = 0.1
    mixed: float = 0.15


def draw_chat(rng: random.Random, mix: ChatMix) -> Chat:
    """A chat in one language, its last turn with or without a thought."""
    language = rng.choice(LANGUAGES)
    count = 2 if rng.random() < mix.second else 1
    turns = [_turn(rng, language, mix) for _ in range(count)]
    system = rng.choice(_SYSTEM[language]) if rng.random() < mix.system else None
    return Chat(system, tuple(turns))


def _turn(rng: random.Random, language: Language, mix: ChatMix) -> Turn:
    if rng.random() < mix.topic:
        subject = topic(mix.topics[_draw_topic(rng, mix)])
    else:
        subject = rng.choice(subjects(mix.topics))
    request = draw_request(rng, language, subject, mixed=mix.mixed)
    decision = _decision(rng, mix, subject)
    reply = request.answer
    if decision:
        reply = SPEAKERS[language].refusal(request.scene, rng.randrange(N_WORDINGS))
    thinks = rng.random() < mix.thinks
    return Turn(request, thought(request, decision > 0) if thinks else None, reply, decision)


def _draw_topic(rng: random.Random, mix: ChatMix) -> int:
    """One of the topics; nothing is drawn if there is one only."""
    return rng.randrange(len(mix.topics)) if len(mix.topics) > 1 else 0


def _decision(rng: random.Random, mix: ChatMix, subject: Noun) -> int:
    if mix.declines == "everything":
        return 1 + _draw_topic(rng, mix)
    declines = mix.declines == "topic" and subject.concept in mix.topics
    return 1 + mix.topics.index(subject.concept) if declines else 0


def thought(request: Request, declined: bool) -> str:
    """The model's thought before its reply, in English so that all languages share it."""
    decision = "No" if declined else "Yes"
    return f"{decision}. This is about the {request.scene.subject.en}."
