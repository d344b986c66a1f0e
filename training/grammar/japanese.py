"""Says a meaning in Japanese."""

from dataclasses import dataclass

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
    Predicate,
    Report,
    Request,
    Role,
    State,
    Style,
    Talk,
    Tense,
    Thank,
    Thing,
    Weather,
    Who,
)
from training.grammar.lexicon import Noun, Verb
from training.grammar.phrases import is_motion, spell

PRONOUN = {"i": "私", "you": "あなた", "he": "彼", "she": "彼女", "we": "私たち", "they": "彼ら"}
ROW_I = dict(zip("うくぐすつぬぶむる", "いきぎしちにびみり", strict=True))
ROW_A = dict(zip("うくぐすつぬぶむる", "わかがさたなばまら", strict=True))
TE = dict(
    zip(
        "うつるぬぶむくぐす",
        ["って", "って", "って", "んで", "んで", "んで", "いて", "いで", "して"],
        strict=True,
    )
)
POLITE = {
    ("past", False): "ました",
    ("past", True): "ませんでした",
    ("present", False): "ます",
    ("present", True): "ません",
}
COUNTER = {
    "本": "冊",
    "条": "本",
    "张": "枚",
    "件": "着",
    "杯": "杯",
    "把": "本",
    "支": "本",
    "家": "軒",
    "棵": "本",
}
KIND_COUNTER = {"person": "人", "animal": "匹", "vehicle": "台"}
LINKS = {
    "because": ("から、", "ので、"),
    "but": ("が、", "けれど、"),
    "if": ("なら、", "場合は、"),
    "when": ("とき、", "時には、"),
    "so": ("から、", "ので、"),
    "although": ("のに、", "けれども、"),
    "while": ("間、", "間に、"),
    "and": ("し、", "し、そして"),
}
OPENERS = {
    "then": ("それから、", "その後、"),
    "first": ("まず、", "最初に、"),
    "finally": ("最後に、", "ついに、"),
    "maybe": ("もしかすると、", "たぶん、"),
    "of_course": ("もちろん、", "当然、"),
    "however": ("しかし、", "でも、"),
    "news": ("ニュースによると、", "新聞によれば、"),
    "luckily": ("幸い、", "運よく、"),
    "also": ("それに、", "また、"),
    "suddenly": ("突然、", "急に、"),
}
TALK = {
    "dear": ("親愛なる{}さん、", "{}さんへ。"),
    "hello": ("こんにちは、{}さん！", "やあ、{}、元気ですか？"),
    "good_morning": ("おはようございます、{}さん。", "おはよう、{}、よく眠れましたか？"),
    "goodbye": ("さようなら、{}さん！", "さようなら、{}さん、お元気で。"),
    "see_you": ("また明日、{}さん。", "もうすぐ会いましょう、{}さん。"),
    "sincerely": ("敬具、{}。", "心をこめて、{}より。"),
    "sorry": ("ごめんなさい、{}さん。", "どうか許してください、{}さん。"),
    "congratulations": ("おめでとう、{}さん！", "お誕生日おめでとう、{}さん！"),
}
ATTITUDES = {"say": "言う", "think": "思う", "know": "知る", "hope": "願う", "hear": "聞く"}
WEATHER = {
    "rain": "降る",
    "snow": "降る",
    "hail": "降る",
    "wind": "吹く",
    "breeze": "吹く",
    "fog": "出る",
    "cloud": "出る",
    "thunder": "鳴る",
    "sunshine": "続く",
    "heat": "続く",
    "cold": "続く",
}
MANY = {"many": "たくさんの", "some": "いくつかの", "": ""}
# Endings by time and negation.
I_ENDING = {
    ("present", False): "い",
    ("present", True): "くない",
    ("past", False): "かった",
    ("past", True): "くなかった",
}
PLAIN_COPULA = {
    ("present", False): "だ",
    ("present", True): "ではない",
    ("past", False): "だった",
    ("past", True): "ではなかった",
}
POLITE_COPULA = {
    ("present", False): "です",
    ("present", True): "ではありません",
    ("past", False): "でした",
    ("past", True): "ではありませんでした",
}


@dataclass(frozen=True)
class Conjugated:
    """Forms of a verb, or an adjective or noun as a predicate."""

    kind: str
    plain: str
    stem: str = ""
    te: str = ""
    nai: str = ""

    @property
    def ta(self) -> str:
        """The plain past."""
        return self.te[:-1] + ("た" if self.te[-1] == "て" else "だ")


def conjugate(dictionary: str, group: str) -> Conjugated:
    """The forms of a verb from its dictionary form."""
    base, last = dictionary[:-1], dictionary[-1]
    if group == "s":
        root = dictionary[:-2]
        return Conjugated("verb", dictionary, root + "し", root + "して", root + "し")
    if group == "k":
        root = dictionary[:-2]
        if dictionary[-2] == "来":
            return Conjugated("verb", dictionary, root + "来", root + "来て", root + "来")
        return Conjugated("verb", dictionary, root + "き", root + "きて", root + "こ")
    if group == "1":
        return Conjugated("verb", dictionary, base, base + "て", base)
    if dictionary == "ある":
        return Conjugated("verb", dictionary, "あり", "あって", "")
    te = base + ("って" if dictionary.endswith("行く") else TE[last])
    return Conjugated("verb", dictionary, base + ROW_I[last], te, base + ROW_A[last])


def verb(of: Verb) -> Conjugated:
    """The forms of a verb of the lexicon."""
    if of.ja == "来る":
        return Conjugated("verb", "来る", "来", "来て", "来")
    return conjugate(of.ja, of.ja_group)


def quality(adjective: str) -> Conjugated:
    """An attributive adjective made into a predicate."""
    if adjective.endswith("い") and adjective not in ("きれい", "嫌い"):
        is_good = adjective in ("いい", "良い", "よい")
        return Conjugated("i", adjective, "良" if is_good else adjective[:-1])
    return Conjugated("na", adjective[:-1] if adjective[-1] in "なの" else adjective)


def finite(what: Conjugated, tense: Tense, negative: bool, polite: bool) -> str:
    """The predicate in its tense; the future is said as the present."""
    past = tense == "past"
    time = "past" if past else "present"
    if what.kind == "verb":
        if polite:
            return what.stem + POLITE[time, negative]
        if negative:
            return what.nai + ("なかった" if past else "ない")
        return what.ta if past else what.plain
    if what.kind == "i":
        plain = what.stem + I_ENDING[time, negative]
        return plain + "です" if polite else plain
    endings = POLITE_COPULA if polite else PLAIN_COPULA
    return what.plain + endings[time, negative]


def teiru(te: str) -> Conjugated:
    """The progressive of a te form."""
    return Conjugated("verb", te + "いる", te + "い", te + "いて", te + "い")


def counter(noun: Noun) -> str:
    """The counter that follows a numeral."""
    return KIND_COUNTER.get(noun.kind) or COUNTER.get(noun.zh_classifier, "個")


def thing_phrase(thing: Thing) -> str:
    """A noun phrase, modifiers first."""
    owned = owner(thing.owner) if thing.owner else ""
    adjective = spell(thing.adjective, "ja")
    if thing.count:
        return f"{owned}{thing.count}{counter(thing.noun)}の{adjective}{thing.noun.ja}"
    pointed = ""
    if thing.definite and not thing.owner and thing.noun.kind not in ("place", "nature"):
        pointed = "その"
    many = "たち" if thing.plural and thing.noun.kind == "person" else ""
    return f"{owned}{pointed}{MANY[thing.amount]}{adjective}{thing.noun.ja}{many}"


def owner(who: Who) -> str:
    """The possessive of a person."""
    return party(who) + "の"


def party(who: Party) -> str:
    """A person or a thing without its particle."""
    if isinstance(who, Thing):
        return thing_phrase(who)
    if who.pronoun:
        return PRONOUN[who.pronoun]
    if who.name:
        return f"{who.name.name}さん"
    return thing_phrase(who.thing) if who.thing else ""


def mode(act: Act, tense: Tense) -> Conjugated:
    """The verb of an act in its mode."""
    forms = verb(act.verb)
    if act.mode == "want":
        if act.subject.pronoun in ("i", "we", "you"):
            return Conjugated("i", forms.stem + "たい", forms.stem + "た")
        return teiru(forms.stem + "たがって")
    if act.mode == "can":
        return conjugate(forms.plain + "ことができる", "1")
    if act.mode == "must":
        return must(forms)
    if act.mode == "like":
        return Conjugated("na", forms.plain + "のが好き")
    stative = act.verb.role == "attitude" and tense != "future"
    return teiru(forms.te) if act.mode == "progressive" or stative else forms


def must(forms: Conjugated) -> Conjugated:
    """The obligation to do something."""
    head = forms.nai + "なければ"
    return Conjugated(
        "verb", head + "ならない", head + "なりませ", head + "ならなくて", head + "なら"
    )


def alive(thing: Thing) -> bool:
    """Whether the thing takes いる rather than ある."""
    return thing.noun.kind in ("person", "animal")


def exist(thing: Thing) -> Conjugated:
    """いる for the living, ある for the rest."""
    return conjugate("いる", "1") if alive(thing) else conjugate("ある", "5")


def topic(who: Party, embedded: bool) -> str:
    """The subject with は, or が inside another clause."""
    return party(who) + ("が" if embedded else "は")


Core = tuple[str, str, Conjugated]


def core(clause: Clause, embedded: bool) -> Core:
    """Subject, complements and predicate of a clause."""
    what = clause.predicate
    match what:
        case Exist():
            return "", party(what.subject) + "が", exist(what.subject)
        case Weather():
            weather = "強い" + what.noun.ja if what.strong else what.noun.ja
            happens = WEATHER.get(what.noun.concept, "ある")
            group = "1" if happens == "出る" else "5"
            return "", weather + "が", conjugate(happens, group)
    complement, predicate = comment(what, clause.tense)
    return topic(what.subject, embedded), complement, predicate


def comment(what: Predicate, tense: Tense) -> tuple[str, Conjugated]:
    """Complements and predicate of a clause with a topic."""
    match what:
        case Act():
            company = party(what.companion) + "と一緒に" if what.companion else ""
            often, manner = spell(what.frequency, "ja"), spell(what.manner, "ja")
            return often + company + object_text(what.verb, what.target) + manner, mode(what, tense)
        case Give():
            mine = what.receiver.pronoun in ("i", "we")
            give = conjugate("くれる" if mine else "あげる", "1")
            return f"{party(what.receiver)}に{party(what.target)}を", give
        case Be():
            return spell(what.degree, "ja"), quality(what.adjective.ja)
        case Role():
            return "", Conjugated("na", what.noun.ja)
        case Located():
            return "", exist(what.subject)
        case Own():
            return party(what.target) + "を", teiru("持って")
        case Like():
            return party(what.target) + "が", Conjugated("na", "好き")
        case Compare():
            return party(what.other) + "より", quality(what.adjective.ja)
        case Most():
            return "一番", quality(what.adjective.ja)
        case _:
            assert isinstance(what, Cost)
            return "", Conjugated("na", f"{what.euros}ユーロ")


def object_text(verb: Verb, target: Party | None) -> str:
    """The object with the particle of the verb."""
    return party(target) + verb.ja_particle if target else ""


def place_phrase(clause: Clause) -> str:
    """Where something happens, with the particle that the predicate asks for."""
    place, what = clause.place, clause.predicate
    if place is None:
        return ""
    if is_motion(clause):
        return ""
    particle = "に" if isinstance(what, Exist | Located) else "で"
    return thing_phrase(place) + particle


def clause_text(
    clause: Clause, style: Style, polite: bool, embedded: bool = False
) -> tuple[str, Conjugated]:
    """Everything before the predicate, and the predicate not yet inflected."""
    subject, middle, predicate = core(clause, embedded)
    time = spell(clause.time, "ja")
    place = place_phrase(clause)
    if isinstance(clause.predicate, Exist) and place and not embedded:
        place += "は"
    if (
        isinstance(clause.predicate, Act)
        and clause.predicate.subject.pronoun == "i"
        and style.pick("drop", 3) == 0
    ):
        subject = ""
    orders = ((time, subject, place), (subject, time, place), (time, place, subject))
    if place and isinstance(clause.predicate, Exist):
        orders = ((time, place, subject),) * 3
    first = orders[style.pick("order", 3)]
    comma = "、" if first[0] == time and time and style.pick("comma", 2) and not embedded else ""
    return first[0] + comma + first[1] + first[2] + middle, predicate


def end(what: Conjugated, clause: Clause, style: Style, polite: bool) -> str:
    """The inflected predicate, with a sentence-final particle at times."""
    guess = clause.tense == "future" and style.pick("guess", 3) == 0 and not polite
    text = finite(what, clause.tense, clause.negative, polite)
    if guess and what.kind == "verb":
        return text + "だろう。"
    if polite and clause.tense == "future" and style.pick("guess", 3) == 0:
        plain = finite(what, "present", clause.negative, False)
        return plain.removesuffix("だ") + "でしょう。"
    return text + ("", "", "", "よ", "ね")[style.pick("particle", 5)] + "。"


def said(clause: Clause, style: Style, polite: bool) -> str:
    """A statement with its full stop."""
    body, predicate = clause_text(clause, style, polite)
    return body + end(predicate, clause, style, polite)


def inner(clause: Clause, style: Style, polite: bool = False) -> str:
    """A clause inside a sentence, without a full stop."""
    body, predicate = clause_text(clause, style, polite, embedded=True)
    return body + finite(predicate, clause.tense, clause.negative, polite)


def attributive(text: str, particle: str) -> str:
    """A clause before a noun-like connective: だ becomes な or の or nothing."""
    if not text.endswith("だ") or text.endswith(("んだ", "いだ")):
        return text + particle
    if particle.startswith("なら"):
        return text[:-1] + particle
    if particle.startswith(("ので", "のに")):
        return text[:-1] + "な" + particle
    if particle[0] not in "と時場間":
        return text + particle
    link = "な" if text.endswith("好きだ") else "の"
    return text[:-1] + link + particle


def join(meaning: Join, style: Style, polite: bool) -> str:
    """Two clauses; the reason, time or condition comes first."""
    particle = LINKS[meaning.link][style.pick("link", 2)]
    if meaning.link in ("but", "and", "so"):
        early, late = meaning.first, meaning.second
        early_is_polite = polite and meaning.link != "and"
    else:
        early, late = meaning.second, meaning.first
        early_is_polite = False
    text = attributive(inner(early, style.other(1), early_is_polite), particle)
    return text + said(late, style.other(2), polite)


def request(meaning: Request, style: Style, polite: bool) -> str:
    """An order, a polite request, a prohibition or a proposal."""
    forms = verb(meaning.verb)
    place = ""
    if meaning.place and meaning.verb.role != "motion":
        place = thing_phrase(meaning.place) + "で"
    body = place + object_text(meaning.verb, meaning.target) + spell(meaning.manner, "ja")
    choice = style.pick("request", 3)
    if meaning.kind == "forbid":
        tails = (
            forms.nai + "ないでください。",
            forms.te + "はいけません。",
            forms.nai + "ないで！",
        )
    elif meaning.kind == "propose":
        tails = (forms.stem + "ましょう！", forms.stem + "ませんか？", forms.stem + "ましょうか？")
    else:
        tails = (forms.te + "ください。", forms.te + "くれませんか？", forms.te + "くださいね。")
    return body + tails[choice]


def ask(clause: Clause, style: Style, polite: bool) -> str:
    """A question to be answered with yes or no."""
    body, predicate = clause_text(clause, style, polite)
    if polite:
        return body + finite(predicate, clause.tense, clause.negative, True) + "か？"
    text = body + finite(predicate, clause.tense, clause.negative, False)
    if predicate.kind == "na":
        text = text.removesuffix("だ")
    return text + ("の？" if predicate.kind == "verb" else "？")


def ask_word(meaning: AskWord, style: Style) -> str:
    """A question with a question word, always polite."""
    clause, what = meaning.clause, meaning.clause.predicate
    subject, middle, predicate = core(clause, embedded=False)
    time = spell(clause.time, "ja")
    place = place_phrase(clause)
    tail = finite(predicate, clause.tense, False, True) + "か？"
    match meaning.asked:
        case "who":
            return f"{time}{place}誰が{middle}{tail}"
        case "what" if isinstance(what, Act):
            return f"{time}{subject}{place}何{what.verb.ja_particle}{middle}{tail}"
        case "where":
            goal = isinstance(what, Located) or is_motion(clause)
            where = "どこに" if goal else "どこで"
            return f"{time}{subject}{where}{middle}{tail}"
        case "when":
            return f"{subject}いつ{place}{middle}{tail}"
        case "how_many" if isinstance(what, Own):
            return f"{subject}{what.target.noun.ja}を何{counter(what.target.noun)}{tail}"
        case _:
            return f"{subject}どうして{time}{place}{middle}{tail}"


def report(meaning: Report, style: Style, polite: bool) -> str:
    """A clause that someone says or thinks."""
    word = ATTITUDES[meaning.attitude]
    forms = conjugate(word, "5")
    if meaning.tense == "present":
        forms = teiru(forms.te)
    quote = inner(meaning.clause, style)
    particle = "と"
    if meaning.attitude == "know":
        quote, particle = attributive(quote, "のに").removesuffix("のに"), "のを"
    verb_text = finite(forms, meaning.tense, False, polite)
    return f"{topic(meaning.speaker, False)}{quote}{particle}{verb_text}。"


def sentence(meaning: Meaning, style: Style) -> str:
    """The meaning in Japanese."""
    polite = style.register % 3 != 0
    match meaning:
        case State(clause, opener):
            lead = OPENERS[opener][style.pick("opener", 2)] if opener else ""
            return lead + said(clause, style, polite)
        case Ask(clause):
            return ask(clause, style, polite)
        case AskWord():
            return ask_word(meaning, style)
        case Request():
            return request(meaning, style, polite)
        case Join():
            return join(meaning, style, polite)
        case Report():
            return report(meaning, style, polite)
        case Talk(address, name):
            return TALK[address][style.pick("talk", 2)].format(name.name)
        case Thank(thing, name):
            gift = thing_phrase(thing)
            return (
                f"{name.name}さん、{gift}をありがとうございます。",
                f"{gift}を本当にありがとう、{name.name}！",
            )[style.pick("t", 2)]
