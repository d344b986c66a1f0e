"""Says a meaning in Chinese."""

from training.grammar.frames import (
    Act,
    Ask,
    AskWord,
    Be,
    Clause,
    Compare,
    Cost,
    Exist,
    Give,
    Join,
    Like,
    Located,
    Meaning,
    Most,
    Own,
    Party,
    Report,
    Request,
    Role,
    State,
    Style,
    Talk,
    Thank,
    Thing,
    Weather,
)
from training.grammar.phrases import spell

PRONOUN = {"i": "我", "you": "你", "he": "他", "she": "她", "we": "我们", "they": "他们"}
ON = {
    "beach",
    "street",
    "road",
    "island",
    "farm",
    "hill",
    "bridge",
    "mountain",
    "square",
    "roof",
    "balcony",
    "field",
    "coast",
    "platform",
    "path",
    "table",
    "chair",
}
LINKS = {
    "because": ("因为", "因为"),
    "but": ("但是", "可是"),
    "and": ("而且", "也"),
    "when": ("的时候", "时"),
    "if": ("如果", "要是"),
    "so": ("所以", "因此"),
    "although": ("虽然", "尽管"),
    "while": ("的时候", "的同时"),
}
OPENERS = {
    "then": ("然后，", "后来，"),
    "first": ("首先，", "一开始，"),
    "finally": ("最后，", "终于，"),
    "maybe": ("也许", "可能"),
    "of_course": ("当然，", "自然，"),
    "however": ("不过，", "然而，"),
    "news": ("据新闻报道，", "报纸上说，"),
    "luckily": ("幸好", "幸运的是，"),
    "also": ("另外，", "还有，"),
    "suddenly": ("突然，", "忽然"),
}
TALK = {
    "dear": ("亲爱的{}：", "{}，你好："),
    "hello": ("你好，{}！", "嗨，{}，你好吗？"),
    "good_morning": ("早上好，{}。", "早安，{}，你睡得好吗？"),
    "goodbye": ("再见，{}！", "再见，{}，请保重。"),
    "see_you": ("明天见，{}。", "我们很快就会见面，{}。"),
    "sincerely": ("此致敬礼，{}。", "爱你的{}。"),
    "sorry": ("对不起，{}。", "请原谅我，{}。"),
    "congratulations": ("恭喜你，{}！", "生日快乐，{}！"),
}
ATTITUDES = {
    "say": ("说", "告诉大家"),
    "think": ("觉得", "认为"),
    "know": ("知道", "知道"),
    "hope": ("希望", "盼望"),
    "hear": ("听说", "听说"),
}
MODES = {
    "progressive": ("正在", "在"),
    "want": ("想", "想要"),
    "can": ("能", "可以"),
    "must": ("必须", "得"),
    "like": ("喜欢", "很喜欢"),
}


def quality(adjective: str) -> str:
    """The adjective without the particle that joins it to a noun."""
    return adjective.removesuffix("的")


def thing_phrase(thing: Thing) -> str:
    """A noun phrase with its classifier, modifiers first."""
    noun, measure = thing.noun, thing.noun.zh_classifier
    core = noun.zh
    if thing.adjective:
        core = f"{quality(thing.adjective.zh)}的{core}"
    if thing.owner:
        core = f"{party(thing.owner)}的{core}"
    if thing.count:
        return f"{thing.count}{measure}{core}"
    if thing.amount:
        return ("很多" if thing.amount == "many" else "一些") + core
    if thing.owner:
        return core
    if thing.definite and noun.kind not in ("place", "nature", "abstract", "weather"):
        return f"那些{core}" if thing.plural else f"那{measure}{core}"
    return f"{core}们" if thing.plural and noun.kind == "person" else core


def party(who: Party) -> str:
    """A person or a thing."""
    if isinstance(who, Thing):
        return thing_phrase(who)
    if who.pronoun:
        return PRONOUN[who.pronoun]
    if who.name:
        return who.name.name
    return thing_phrase(who.thing) if who.thing else ""


def place_phrase(place: Thing | None) -> str:
    """在 with a place and its side word."""
    if place is None:
        return ""
    side = "上" if place.noun.concept in ON else "里"
    if place.noun.zh[-1] in "上里边面下中":
        side = ""
    return f"在{thing_phrase(place)}{side}"


def helper(act: Act, clause: Clause, style: Style) -> str:
    """What stands before the verb for mode, tense and polarity."""
    if act.mode == "plain":
        if clause.tense == "future":
            return "不会" if clause.negative else ("会", "要", "将")[style.pick("future", 3)]
        if not clause.negative:
            return ""
        return "没有" if clause.tense == "past" and act.verb.role != "attitude" else "不"
    word = MODES[act.mode][style.pick("mode", 2)]
    if clause.negative:
        if act.mode == "progressive":
            return "没有"
        return {"must": "不用"}.get(act.mode, "不" + word.removeprefix("很"))
    return word


def act_text(act: Act, clause: Clause, style: Style) -> str:
    """The verb with its object, aspect and manner."""
    verb, target = act.verb, party(act.target) if act.target else ""
    front = spell(act.frequency, "zh") + helper(act, clause, style)
    company = ""
    if act.companion:
        company = ("跟", "和")[style.pick("with", 2)] + party(act.companion) + "一起"
    place = "" if verb.role == "motion" else place_phrase(clause.place)
    manner = spell(act.manner, "zh")
    before = (front + company + place + manner).replace("在在", "在")
    done = (
        clause.tense == "past"
        and act.mode == "plain"
        and not clause.negative
        and verb.role != "attitude"
    )
    if "~" in verb.zh:
        return before + verb.zh.replace("~", target) + ("了" if done else "")
    specific = isinstance(act.target, Thing) and (act.target.definite or act.target.owner)
    if done and specific and verb.zh_done != "-" and style.pick("ba", 2):
        return f"{before}把{target}{verb.zh_done}"
    if done and not target:
        return before + verb.zh + "了"
    after = "了" if done and (style.pick("le", 3) or verb.role == "motion") else ""
    return before + verb.zh + after + target


def being(clause: Clause, verb: str, style: Style) -> str:
    """A stative verb with its negation and future."""
    if clause.tense == "future" or not clause.negative:
        return prefix(clause) + verb
    return "没有" if verb == "有" else "不" + verb


def prefix(clause: Clause) -> str:
    """The negation and the future before a stative verb or an adjective."""
    if clause.tense == "future":
        return "不会" if clause.negative else "会"
    return "不" if clause.negative else ""


def adjectival(clause: Clause, what: Be, style: Style) -> str:
    """An adjective as predicate, with a degree word."""
    word = quality(what.adjective.zh)
    if word.endswith(("色", "式", "制")) or what.adjective.zh.endswith("色的"):
        return being(clause, "是", style) + word + "的"
    degree = spell(what.degree, "zh")
    if not degree and not clause.negative:
        degree = ("很", "挺")[style.pick("hen", 2)]
    return prefix(clause) + degree + word


def giving(what: Give, clause: Clause, style: Style) -> str:
    """The gift and its receiver, the gift first with 把."""
    done = "了" if clause.tense == "past" and not clause.negative else ""
    no = (
        {"past": "没有", "present": "不", "future": "不会"}[clause.tense] if clause.negative else ""
    )
    will = "会" if clause.tense == "future" and not clause.negative else ""
    receiver, given = party(what.receiver), party(what.target)
    if what.target.definite or what.target.owner or style.pick("give", 2):
        return f"{no}{will}把{given}送给{done}{receiver}"
    return f"{no}{will}送{done}{receiver}{given}"


def predicate_text(clause: Clause, style: Style) -> tuple[str, str]:
    """The subject, and all that follows it but time and, unless an act, place."""
    what = clause.predicate
    match what:
        case Act():
            return party(what.subject), act_text(what, clause, style)
        case Give():
            return party(what.subject), giving(what, clause, style)
        case Be():
            return party(what.subject), adjectival(clause, what, style)
        case Role():
            return party(what.subject), being(clause, "是", style) + what.noun.zh
        case Exist():
            return "", being(clause, "有", style) + party(what.subject)
        case Located():
            no = "不" if clause.negative else ""
            return party(what.subject), no + place_phrase(clause.place)
        case Own():
            return party(what.subject), being(clause, "有", style) + party(what.target)
        case Like():
            return party(what.subject), being(clause, "喜欢", style) + party(what.target)
        case Compare():
            word, other = quality(what.adjective.zh), party(what.other)
            if clause.negative:
                return party(what.subject), f"没有{other}{word}"
            somewhat = ("", "一些")[style.pick("bi", 2)]
            return party(what.subject), f"比{other}{word}{somewhat}"
        case Most():
            most = f"最{quality(what.adjective.zh)}的"
            return party(what.subject), being(clause, "是", style) + most
        case Cost():
            return party(what.subject), f"{('卖', '要')[style.pick('cost', 2)]}{what.euros}欧元"
        case Weather():
            return "", being(clause, "有", style) + ("很大的" if what.strong else "") + what.noun.zh


def clause_text(clause: Clause, style: Style, joined: bool = False) -> str:
    """A whole clause, the time before or after the subject."""
    what = clause.predicate
    subject, rest = predicate_text(clause, style)
    time = spell(clause.time, "zh")
    place = place_phrase(clause.place) if not isinstance(what, Act | Located) else ""
    if isinstance(what, Exist | Weather):
        place = place.removeprefix("在") if style.pick("zai", 3) else place
        return time + place + rest
    comma = "，" if time and not joined and style.pick("comma", 3) == 0 else ""
    if place and not joined:
        place += "，"
    if time and style.pick("time", 2):
        return f"{time}{comma}{place}{subject}{rest}"
    return f"{place}{subject}{time}{rest}"


def join(meaning: Join, style: Style) -> str:
    """Two clauses and their connectives."""
    link = LINKS[meaning.link][style.pick("link", 2)]
    first = clause_text(meaning.first, style.other(1), joined=True)
    second = clause_text(meaning.second, style.other(2), joined=True)
    match meaning.link:
        case "because":
            early = f"因为{second}，所以{first}。"
            return early if style.pick("order", 2) else f"{first}，因为{second}。"
        case "when" | "while":
            return f"{second}{link}，{first}。"
        case "if":
            return f"{link}{second}，{('', '那么')[style.pick('then', 2)]}{first}。"
        case "although":
            return f"{link}{second}，但是{first}。"
        case "and":
            return f"{first}，{('', '而且')[style.pick('and', 2)]}{second}。"
        case _:
            return f"{first}，{link}{second}。"


def request(meaning: Request, style: Style) -> str:
    """An order, a polite request, a prohibition or a proposal."""
    verb, target = meaning.verb, party(meaning.target) if meaning.target else ""
    place = place_phrase(meaning.place) if verb.role != "motion" else ""
    action = verb.zh.replace("~", target) if "~" in verb.zh else verb.zh + target
    body = place + spell(meaning.manner, "zh") + action
    choice = style.pick("request", 3)
    if meaning.kind == "forbid":
        return (f"请不要{body}。", f"别{body}！", f"你不能{body}。")[choice]
    if meaning.kind == "propose":
        return (f"我们{body}吧！", f"我们一起{body}，好吗？", f"要不要{body}？")[choice]
    return (f"请{body}。", f"你能{body}吗？", f"麻烦你{body}，好吗？")[choice]


def ask_word(meaning: AskWord, style: Style) -> str:
    """A question with a question word in the place of the answer."""
    clause, what = meaning.clause, meaning.clause.predicate
    subject, rest = predicate_text(clause, style)
    time = spell(clause.time, "zh")
    place = "" if isinstance(what, Act) else place_phrase(clause.place)
    match meaning.asked:
        case "who":
            return f"{time}{place}谁{rest}？"
        case "what":
            return f"{subject}{time}{rest}什么？"
        case "where" if isinstance(what, Located):
            return f"{subject}{time}在哪里？"
        case "where" if isinstance(what, Act) and what.verb.role == "motion":
            return f"{subject}{time}去哪里？"
        case "where":
            return f"{subject}{time}在哪里{rest}？"
        case "when":
            return f"{subject}{('什么时候', '几点')[style.pick('when', 2)]}{rest}？"
        case "how_many" if isinstance(what, Own):
            return f"{subject}有多少{what.target.noun.zh_classifier}{what.target.noun.zh}？"
        case _:
            return f"{subject}{time}为什么{place}{rest}？"


def report(meaning: Report, style: Style) -> str:
    """A clause that someone says or thinks."""
    verb = ATTITUDES[meaning.attitude][style.pick("say", 2)]
    comma = "，" if meaning.attitude in ("say", "hear") and style.pick("comma", 2) else ""
    return (
        f"{party(meaning.speaker)}{verb}{comma}{clause_text(meaning.clause, style, joined=True)}。"
    )


def sentence(meaning: Meaning, style: Style) -> str:
    """The meaning in Chinese."""
    match meaning:
        case State(clause, opener):
            lead = OPENERS[opener][style.pick("opener", 2)] if opener else ""
            return lead + clause_text(clause, style) + "。"
        case Ask(clause):
            return (
                clause_text(clause, style, joined=True)
                + ("吗？", "吗？", "，是不是？")[style.pick("ma", 3)]
            )
        case AskWord():
            return ask_word(meaning, style)
        case Request():
            return request(meaning, style)
        case Join():
            return join(meaning, style)
        case Report():
            return report(meaning, style)
        case Talk(address, name):
            return TALK[address][style.pick("talk", 2)].format(name.name)
        case Thank(thing, name):
            gift = thing_phrase(thing)
            return (f"谢谢你的{gift}，{name.name}。", f"{name.name}，非常感谢你送的{gift}！")[
                style.pick("t", 2)
            ]
