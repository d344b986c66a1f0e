"""Requests, answers and refusals in Chinese."""

from training.chats.scenes import Kind, Language, Scene
from training.grammar.chinese import place_phrase, quality
from training.grammar.frames import Thing

_VERBS = ("有", "看见")
_NAMES = {"en": "英文", "ja": "日文", "zh": "中文"}
APOLOGIES = ("对不起", "很抱歉", "抱歉")


def noun(scene: Scene) -> str:
    """The subject."""
    return scene.subject.zh


def _place(scene: Scene) -> str:
    return place_phrase(Thing(scene.place))


def _count(scene: Scene) -> str:
    return ("一" if scene.count == 1 else str(scene.count)) + scene.subject.zh_classifier


def _color(scene: Scene) -> str:
    return quality(scene.color.zh) + "的"


def statement(scene: Scene, form: int) -> str:
    """The scene in a sentence; form 1 leaves the owner out."""
    things = _count(scene) + _color(scene) + noun(scene)
    if form == 1:
        return f"{_place(scene).removeprefix('在')}有{things}。"
    owner, verb = scene.owner.name, _VERBS[scene.verb]
    return (
        f"{owner}{_place(scene)}{verb}{things}。"
        if form == 0
        else f"{_place(scene)}，{owner}{verb}{things}。"
    )


def question(scene: Scene, kind: Kind, wording: int) -> str:
    """What is asked of the statement."""
    it, verb, measure = noun(scene), _VERBS[scene.verb], scene.subject.zh_classifier
    match kind:
        case "where":
            return (f"{it}在哪里？", f"请告诉我{it}在哪里。", f"你知道{it}在哪里吗？")[wording]
        case "color":
            return (f"{it}是什么颜色的？", f"请告诉我{it}的颜色。", f"你知道{it}的颜色吗？")[
                wording
            ]
        case "who":
            return (f"谁{verb}{it}？", f"请告诉我谁{verb}{it}。", f"你知道谁{verb}{it}吗？")[
                wording
            ]
        case "how_many":
            return (f"有几{measure}{it}？", f"请告诉我{it}的数量。", f"一共有多少{measure}{it}？")[
                wording
            ]
        case "repeat":
            return ("请重复这句话。", "请再说一遍。", "你能重复这句话吗？")[wording]
        case "language":
            return ("这是什么语言？", "这句话是什么语言？", "请说出这是什么语言。")[wording]


def answer(scene: Scene, kind: Kind, said: str, spoken: Language) -> str:
    """The right answer; `said` is the statement, `spoken` its language."""
    it = noun(scene)
    match kind:
        case "where":
            return f"{it}{_place(scene)}。"
        case "color":
            return f"{it}是{_color(scene)}。"
        case "who":
            return f"{scene.owner.name}{_VERBS[scene.verb]}{it}。"
        case "how_many":
            return f"有{_count(scene)}{it}。"
        case "repeat":
            return said
        case "language":
            return f"这是{_NAMES[spoken]}。"


def refusal(scene: Scene, wording: int) -> str:
    """A polite refusal to talk about the subject."""
    it = noun(scene)
    return (f"对不起，我不能谈论{it}。", f"对不起，我不谈论{it}。", f"很抱歉，我不能谈论{it}。")[
        wording
    ]
