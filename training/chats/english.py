"""Requests, answers and refusals in English."""

from training.chats.scenes import Kind, Language, Scene
from training.grammar.english import article, place_phrase
from training.grammar.frames import Thing

_VERBS = ("has", "sees")
_NAMES = {"en": "English", "ja": "Japanese", "zh": "Chinese"}
APOLOGIES = ("I am sorry", "I'm sorry", "Sorry")


def noun(scene: Scene) -> str:
    """The subject in its number."""
    return scene.subject.en if scene.count == 1 else scene.subject.en_plural


def _be(scene: Scene) -> str:
    return "is" if scene.count == 1 else "are"


def _place(scene: Scene) -> str:
    return place_phrase(Thing(scene.place, definite=True))


def statement(scene: Scene, form: int) -> str:
    """The scene in a sentence; form 1 leaves the owner out."""
    core = f"{scene.color.en} {noun(scene)}"
    things = article(core) if scene.count == 1 else f"{scene.count} {core}"
    place = _place(scene)
    if form == 1:
        return f"There {_be(scene)} {things} {place}."
    act = f"{scene.owner.name} {_VERBS[scene.verb]} {things}"
    return f"{act} {place}." if form == 0 else f"{place[0].upper() + place[1:]}, {act}."


def question(scene: Scene, kind: Kind, wording: int) -> str:
    """What is asked of the statement."""
    it, be, verb = noun(scene), _be(scene), _VERBS[scene.verb]
    match kind:
        case "where":
            return (
                f"Where {be} the {it}?",
                f"Can you tell me where the {it} {be}?",
                f"In which place {be} the {it}?",
            )[wording]
        case "color":
            return (
                f"What color {be} the {it}?",
                f"Can you tell me the color of the {it}?",
                f"Name the color of the {it}.",
            )[wording]
        case "who":
            return (
                f"Who {verb} the {it}?",
                f"Can you tell me who {verb} the {it}?",
                f"Name the one who {verb} the {it}.",
            )[wording]
        case "how_many":
            return (
                f"How many {it} are there?",
                f"Can you count the {it}?",
                f"Tell me the number of {it}.",
            )[wording]
        case "repeat":
            return (
                "Please repeat this:",
                "Can you say this sentence again?",
                "Repeat this sentence, please.",
            )[wording]
        case "language":
            return (
                "Which language is this?",
                "What language is this sentence in?",
                "Please name the language.",
            )[wording]


def answer(scene: Scene, kind: Kind, said: str, spoken: Language) -> str:
    """The right answer; `said` is the statement, `spoken` its language."""
    it, be = noun(scene), _be(scene)
    match kind:
        case "where":
            return f"The {it} {be} {_place(scene)}."
        case "color":
            return f"The {it} {be} {scene.color.en}."
        case "who":
            return f"{scene.owner.name} {_VERBS[scene.verb]} the {it}."
        case "how_many":
            return f"There are {scene.count} {it}."
        case "repeat":
            return said
        case "language":
            return f"This is {_NAMES[spoken]}."


def refusal(scene: Scene, wording: int) -> str:
    """A polite refusal to talk about the subject."""
    it = scene.subject.en
    return (
        f"I am sorry, but I cannot talk about the {it}.",
        f"I am sorry, the {it} is not something I talk about.",
        f"I'm sorry, but I do not talk about the {it}.",
    )[wording]
