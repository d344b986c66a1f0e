"""Requests, answers and refusals in Japanese."""

from training.chats.scenes import Kind, Language, Scene
from training.grammar.japanese import counter

_VERBS = ("持ってい", "見てい")
_NAMES = {"en": "英語", "ja": "日本語", "zh": "中国語"}
APOLOGIES = ("申し訳ありません", "すみません")


def noun(scene: Scene) -> str:
    """The subject."""
    return scene.subject.ja


def _exist(scene: Scene) -> str:
    return "い" if scene.subject.kind == "animal" else "あり"


def _count(scene: Scene) -> str:
    return "" if scene.count == 1 else f"{scene.count}{counter(scene.subject)}"


def statement(scene: Scene, form: int) -> str:
    """The scene in a sentence; form 1 leaves the owner out."""
    it = scene.color.ja + noun(scene)
    place = scene.place.ja + "に"
    if form == 1:
        return f"{place}{it}が{_count(scene)}{_exist(scene)}ます。"
    place = place if scene.verb == 0 else scene.place.ja + "で"
    act = f"{it}を{_count(scene)}{_VERBS[scene.verb]}ます。"
    owner = scene.owner.name + "は"
    return f"{owner}{place}{act}" if form == 0 else f"{place}{owner}{act}"


def question(scene: Scene, kind: Kind, wording: int) -> str:
    """What is asked of the statement."""
    it, exist, verb = noun(scene), _exist(scene), _VERBS[scene.verb]
    match kind:
        case "where":
            return (
                f"{it}はどこに{exist}ますか。",
                f"{it}の場所を教えてください。",
                f"{it}がどこか分かりますか。",
            )[wording]
        case "color":
            return (
                f"{it}は何色ですか。",
                f"{it}の色を教えてください。",
                f"{it}が何色か分かりますか。",
            )[wording]
        case "who":
            return (
                f"誰が{it}を{verb}ますか。",
                f"{it}を{verb}るのは誰ですか。",
                f"誰が{it}を{verb}るか教えてください。",
            )[wording]
        case "how_many":
            few = counter(scene.subject)
            return (
                f"{it}は何{few}{exist}ますか。",
                f"{it}の数を教えてください。",
                f"{it}を数えてください。",
            )[wording]
        case "repeat":
            return (
                "次の文を繰り返してください。",
                "もう一度言ってください。",
                "この文を繰り返せますか。",
            )[wording]
        case "language":
            return ("これは何語ですか。", "次の文は何語ですか。", "何語か教えてください。")[wording]


def answer(scene: Scene, kind: Kind, said: str, spoken: Language) -> str:
    """The right answer; `said` is the statement, `spoken` its language."""
    it = noun(scene)
    match kind:
        case "where":
            return f"{it}は{scene.place.ja}に{_exist(scene)}ます。"
        case "color":
            return f"{it}は{scene.color.ja.removesuffix('の')}です。"
        case "who":
            return f"{scene.owner.name}が{it}を{_VERBS[scene.verb]}ます。"
        case "how_many":
            return f"{it}は{_count(scene)}{_exist(scene)}ます。"
        case "repeat":
            return said
        case "language":
            return f"これは{_NAMES[spoken]}です。"


def refusal(scene: Scene, wording: int) -> str:
    """A polite refusal to talk about the subject."""
    it = noun(scene)
    return (
        f"申し訳ありませんが、{it}については話せません。",
        f"申し訳ありません。{it}の話はできません。",
        f"すみませんが、{it}については話せません。",
    )[wording]
