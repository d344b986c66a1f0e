"""Says a meaning in Hindi."""

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
from training.grammar.phrases import is_motion, spell, words

DIRECT = {"i": "मैं", "you": "आप", "he": "वह", "she": "वह", "we": "हम", "they": "वे"}
OBLIQUE = {"i": "मुझ", "you": "आप", "he": "उस", "she": "उस", "we": "हम", "they": "उन"}
ERGATIVE = {
    "i": "मैंने",
    "you": "आपने",
    "he": "उसने",
    "she": "उसने",
    "we": "हमने",
    "they": "उन्होंने",
}
DATIVE = {"i": "मुझे", "you": "आपको", "he": "उसे", "she": "उसे", "we": "हमें", "they": "उन्हें"}
GENITIVE = {"i": "मेर", "you": "आपक", "he": "उसक", "she": "उसक", "we": "हमार", "they": "उनक"}
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
    "coast",
    "platform",
    "path",
    "station",
    "airport",
}
UNCHANGED = {
    "पिता",
    "राजा",
    "नेता",
    "दादा",
    "चाचा",
    "मामा",
    "नाना",
    "अभिनेता",
    "दरिया",
    "अब्बा",
    "पापा",
    "योद्धा",
}
PERFECT = {
    "कर": "किया",
    "ले": "लिया",
    "दे": "दिया",
    "पी": "पिया",
    "जा": "गया",
    "सी": "सिया",
    "छू": "छुआ",
}
POLITE = {"कर": "कीजिए", "ले": "लीजिए", "दे": "दीजिए", "पी": "पीजिए"}
LINKS = {
    "because": ("क्योंकि", "चूँकि"),
    "but": ("लेकिन", "मगर"),
    "and": ("और", "और फिर"),
    "when": ("जब", "जब"),
    "if": ("अगर", "यदि"),
    "so": ("इसलिए", "तो"),
    "although": ("हालाँकि", "यद्यपि"),
    "while": ("जब", "जिस समय"),
}
ANSWERS = {
    "when": ("तब", "तो"),
    "if": ("तो", "तो"),
    "although": ("फिर भी", "तो भी"),
    "while": ("तब", "उस समय"),
    "because": ("इसलिए", "इस कारण"),
}
OPENERS = {
    "then": ("इसके बाद", "फिर"),
    "first": ("सबसे पहले", "पहले"),
    "finally": ("आख़िर में", "अंत में"),
    "maybe": ("शायद", "हो सकता है कि"),
    "of_course": ("बेशक,", "ज़ाहिर है कि"),
    "however": ("फिर भी,", "हालाँकि"),
    "news": ("समाचार के अनुसार", "अख़बार में लिखा है कि"),
    "luckily": ("सौभाग्य से", "ख़ुशक़िस्मती से"),
    "also": ("इसके अलावा", "साथ ही"),
    "suddenly": ("अचानक", "एकाएक"),
}
TALK = {
    "dear": ("प्रिय {},", "मेरे प्रिय {},"),
    "hello": ("नमस्ते, {}!", "नमस्ते {}, आप कैसे हैं?"),
    "good_morning": ("सुप्रभात, {}।", "सुप्रभात {}, क्या आप ठीक से सोए?"),
    "goodbye": ("अलविदा, {}!", "फिर मिलेंगे, {}, अपना ध्यान रखना।"),
    "see_you": ("कल मिलते हैं, {}।", "हम जल्दी ही मिलेंगे, {}।"),
    "sincerely": ("आपका अपना, {}।", "प्यार के साथ, {}।"),
    "sorry": ("मुझे खेद है, {}।", "कृपया मुझे माफ़ करें, {}।"),
    "congratulations": ("बधाई हो, {}!", "जन्मदिन मुबारक हो, {}!"),
}
ATTITUDES = {"say": "कह", "think": "सोच", "know": "जान", "hope": "उम्मीद कर", "hear": "सुन"}
VOWELS = set("ािीुूेैोौआइईउऊएऐओऔ")
QUESTIONS = {"where": "कहाँ", "when": "कब", "why": "क्यों", "what": "क्या"}


@dataclass(frozen=True)
class Agreement:
    """What a verb agrees with."""

    person: int = 3
    plural: bool = False
    feminine: bool = False

    def choose(self, first: str, singular: str, plural: str) -> str:
        """The form for "I", for another singular subject or for a plural one."""
        if self.plural:
            return plural
        return first if self.person == 1 else singular

    @property
    def ending(self) -> str:
        """The ending of a participle."""
        if self.feminine:
            return "ी"
        return "े" if self.plural else "ा"


def noun_form(noun: Noun, plural: bool, oblique: bool) -> str:
    """A noun in its number and case."""
    word, last = noun.hi, noun.hi[-1]
    if noun.hi_gender == "m":
        if last == "ा" and word not in UNCHANGED:
            if plural and oblique:
                return word[:-1] + "ों"
            return word[:-1] + "े" if plural or oblique else word
        return oblique_plural(word) if plural and oblique else word
    if not plural:
        return word
    if oblique:
        return oblique_plural(word)
    if word.endswith("िया"):
        return word + "ँ"
    if last in "ीि":
        return word[:-1] + "ियाँ"
    if last == "ू":
        return word[:-1] + "ुएँ"
    return word + ("एँ" if last in VOWELS else "ें")


def oblique_plural(word: str) -> str:
    """The -ों form of a noun that does not drop its ending."""
    if word.endswith("िया"):
        return word[:-1] + "ों"
    if word[-1] in "ीि":
        return word[:-1] + "ियों"
    if word[-1] == "ू":
        return word[:-1] + "ुओं"
    return word + ("ओं" if word[-1] in VOWELS else "ों")


def bend(word: str, agreement: Agreement, oblique: bool = False) -> str:
    """A word in -ा agreeing with a noun."""
    if not word.endswith("ा") or word.endswith(("िया", "ज़्यादा")):
        return word
    if agreement.feminine:
        return word[:-1] + "ी"
    return word[:-1] + ("े" if agreement.plural or oblique else "ा")


def agreement(who: Party) -> Agreement:
    """The person, number and gender of a party; politeness is plural."""
    if isinstance(who, Thing):
        return Agreement(3, who.many, who.noun.hi_gender == "f")
    return Agreement(1 if who.pronoun == "i" else 3, who.many or who.pronoun == "you", who.feminine)


def thing_phrase(thing: Thing, oblique: bool = False) -> str:
    """A noun phrase, direct or oblique."""
    agree = Agreement(3, thing.many, thing.noun.hi_gender == "f")
    front = ""
    if thing.owner:
        front = owner(thing.owner, agree, oblique)
    adjective = bend(thing.adjective.hi, agree, oblique) if thing.adjective else ""
    noun = noun_form(thing.noun, thing.many, oblique)
    return words(front, number(thing, agree, oblique), adjective, noun)


def number(thing: Thing, agree: Agreement, oblique: bool) -> str:
    """The numeral or quantifier of a noun."""
    if thing.amount == "many":
        if not agree.plural:
            return bend("सारा", agree, oblique)
        return "बहुत सी" if agree.feminine else "बहुत से"
    if thing.count:
        return str(thing.count)
    return "कुछ" if thing.amount else ""


def owner(who: Who, agree: Agreement, oblique: bool) -> str:
    """The possessive of a person, agreeing with what is owned."""
    ending = bend("ा", agree, oblique)
    if who.pronoun:
        return GENITIVE[who.pronoun] + ending
    return f"{party(who, oblique=True)} क{ending}"


def party(who: Party, oblique: bool = False) -> str:
    """A person or a thing, without a postposition."""
    if isinstance(who, Thing):
        return thing_phrase(who, oblique)
    if who.pronoun:
        pronouns = OBLIQUE if oblique else DIRECT
        return pronouns[who.pronoun]
    if who.name:
        return who.name.name
    return thing_phrase(who.thing, oblique) if who.thing else ""


def marked(who: Party, post: str) -> str:
    """A party with its postposition, pronouns in their own forms."""
    if isinstance(who, Who) and who.pronoun:
        if post == "को":
            return DATIVE[who.pronoun]
        if post == "ने":
            return ERGATIVE[who.pronoun]
        head, _, rest = post.partition(" ")
        if head in ("का", "की", "के"):
            return words(GENITIVE[who.pronoun] + head[1:], rest)
        return f"{OBLIQUE[who.pronoun]} {post}"
    return f"{party(who, oblique=True)} {post}"


def be(agree: Agreement, tense: Tense) -> str:
    """The copula."""
    if tense == "present":
        return agree.choose("हूँ", "है", "हैं")
    if tense == "past":
        if agree.feminine:
            return "थीं" if agree.plural else "थी"
        return "थे" if agree.plural else "था"
    return agree.choose("हूँग", "होग", "होंग") + agree.ending


def future(stem: str, agree: Agreement) -> str:
    """The future of a verb stem."""
    ending = "ग" + agree.ending
    after_consonant = agree.choose("ूँ", "े", "ें")
    if stem.endswith((" ले", " दे")) or stem in ("ले", "दे"):
        return stem[:-1] + after_consonant + ending
    if stem[-1] in VOWELS:
        short_vowel = {"ी": "ि", "ू": "ु"}.get(stem[-1], stem[-1])
        return stem[:-1] + short_vowel + agree.choose("ऊँ", "ए", "एँ") + ending
    return stem + after_consonant + ending


def perfect(stem: str, agree: Agreement) -> str:
    """The perfective participle of a verb stem."""
    head, _, last = stem.rpartition(" ")
    masculine = PERFECT.get(last, last + ("या" if last[-1] in VOWELS else "ा"))
    form = masculine
    if agree.feminine:
        form = feminine_perfect(masculine) + ("ं" if agree.plural else "")
    elif agree.plural:
        form = plural_perfect(masculine)
    return words(bend(head, agree), form)


def feminine_perfect(masculine: str) -> str:
    """The feminine singular of a perfective participle."""
    if masculine.endswith("िया"):
        return masculine.removesuffix("िया") + "ी"
    if masculine.endswith("या"):
        return masculine.removesuffix("या") + "ई"
    ending = "ई" if masculine.endswith("आ") else "ी"
    return masculine.removesuffix("ा").removesuffix("आ") + ending


def plural_perfect(masculine: str) -> str:
    """The masculine plural of a perfective participle."""
    if masculine.endswith("या"):
        return masculine.removesuffix("या") + "ए"
    if masculine.endswith("ा"):
        return masculine.removesuffix("ा") + "े"
    return masculine[:-1] + "ए"


def mark_of(verb: Verb, target: Party | None) -> tuple[str, str]:
    """The postposition of the object, and what the perfective agrees with."""
    post, _, agree = verb.hi_mark.partition("+")
    post = "" if post == "-" else post
    human = isinstance(target, Who) or (isinstance(target, Thing) and target.noun.kind == "person")
    if human and not post:
        post = "को"
    return post, "m" if agree == "o" and (post or target is None) else agree


def object_text(verb: Verb, target: Party | None) -> str:
    """The object with its postposition."""
    if target is None:
        return ""
    if verb.role == "motion":
        return words(party(target, oblique=True), mark_of(verb, None)[0])
    post, _ = mark_of(verb, target)
    return marked(target, post) if post else party(target)


def deny(no: str, stem: str, text: str) -> str:
    """The negation before the inflected word of a verb of several words."""
    head = text.split()
    return words(*head[: stem.count(" ")], no, *head[stem.count(" ") :])


def act_verb(act: Act, tense: Tense, no: str) -> tuple[str, str]:
    """The subject in its case, and the verb with its negation."""
    stem, who = act.verb.hi, agreement(act.subject)
    _, kind = mark_of(act.verb, act.target)
    match act.mode:
        case "progressive":
            return party(act.subject), words(no, stem, bend("रहा", who), be(who, tense))
        case "want" | "can":
            head, helper = stem, "सक"
            if act.mode == "want":
                head, helper = stem + "ना", "चाह"
            if tense == "future":
                return party(act.subject), words(head, no, future(helper, who))
            return party(act.subject), words(head, no, bend(helper + "ता", who), be(who, tense))
        case "must" | "like":
            agree = Agreement()
            if act.target and kind == "o" and act.mode == "must":
                agree = agreement(act.target)
            base = bend(stem + "ना", agree)
            liked = "पसंद" if act.mode == "like" else ""
            return marked(act.subject, "को"), words(base, liked, no, be(agree, tense))
    if tense == "future":
        return party(act.subject), deny(no, stem, future(stem, who))
    if tense == "present" or act.frequency or act.verb.role == "attitude":
        return party(act.subject), words(deny(no, stem, bend(stem + "ता", who)), be(who, tense))
    if kind == "s":
        return party(act.subject), deny(no, stem, perfect(stem, who))
    agree = Agreement(feminine=kind == "f")
    if act.target and kind == "o":
        agree = agreement(act.target)
    return marked(act.subject, "ने"), deny(no, stem, perfect(stem, agree))


def place_phrase(place: Thing | None) -> str:
    """Where something happens."""
    if place is None:
        return ""
    return f"{thing_phrase(place, oblique=True)} {'पर' if place.noun.concept in ON else 'में'}"


Core = tuple[str, str, str]


def core(clause: Clause, style: Style) -> Core:
    """Subject, complements and verb of a clause."""
    what, tense = clause.predicate, clause.tense
    no = "नहीं" if clause.negative else ""
    match what:
        case Act():
            subject, verb = act_verb(what, tense, no)
            company = marked(what.companion, "के साथ") if what.companion else ""
            often, manner = spell(what.frequency, "hi"), spell(what.manner, "hi")
            return subject, words(often, company, object_text(what.verb, what.target), manner), verb
        case Give():
            who, gift = agreement(what.subject), party(what.target)
            complement = words(marked(what.receiver, "को"), gift)
            if tense == "past":
                verb = perfect("दे", agreement(what.target))
                return marked(what.subject, "ने"), complement, words(no, verb)
            verb = words(bend("देता", who), be(who, tense))
            if tense == "future":
                verb = future("दे", who)
            return party(what.subject), complement, words(no, verb)
        case Own():
            verb = words(no, be(agreement(what.target), tense))
            return marked(what.subject, "के पास"), party(what.target), verb
        case Like():
            liked = words("पसंद", no, be(agreement(what.target), tense))
            return marked(what.subject, "को"), party(what.target), liked
        case Cost():
            price = f"{owner_of(what.subject)} क़ीमत"
            return price, f"{what.euros} यूरो", words(no, be(Agreement(3, False, True), tense))
        case _:
            return copular(clause, no)


def owner_of(thing: Thing) -> str:
    """A thing in the genitive before a feminine noun."""
    return thing_phrase(thing, oblique=True) + " की"


def copular(clause: Clause, no: str) -> Core:
    """The core of the clauses built on the copula."""
    what, tense = clause.predicate, clause.tense
    match what:
        case Be():
            agree = agreement(what.subject)
            complement = words(spell(what.degree, "hi"), bend(what.adjective.hi, agree))
        case Role():
            agree = agreement(what.subject)
            complement = noun_form(what.noun, what.subject.many, False)
        case Exist():
            return "", party(what.subject), words(no, be(agreement(what.subject), tense))
        case Compare():
            agree = agreement(what.subject)
            complement = words(marked(what.other, "से"), "ज़्यादा", bend(what.adjective.hi, agree))
        case Most():
            agree = agreement(what.subject)
            complement = "सबसे " + bend(what.adjective.hi, agree)
        case Weather(noun, strong):
            agree = Agreement(3, False, noun.hi_gender == "f")
            return "", words("बहुत" if strong else "", noun.hi), words(no, be(agree, tense))
        case _:
            assert isinstance(what, Located)
            verb = words(no, be(agreement(what.subject), tense))
            return party(what.subject), place_phrase(clause.place), verb
    return party(what.subject), complement, words(no, be(agree, tense))


def clause_text(clause: Clause, style: Style, question: str = "") -> str:
    """A whole clause, the verb last; a question word stands right before the verb."""
    subject, complement, verb = core(clause, style)
    time = spell(clause.time, "hi")
    what = clause.predicate
    place = place_phrase(clause.place)
    if is_motion(clause) or isinstance(what, Located):
        place = ""
    orders = (
        (time, subject, place),
        (subject, time, place),
        (time, place, subject),
        (place, subject, time),
    )
    if isinstance(what, Exist | Weather):
        orders = ((time, place, ""), (place, time, ""), (time, place, ""), (place, time, ""))
    return words(*orders[style.pick("order", 4)], complement, question, verb)


def join(meaning: Join, style: Style) -> str:
    """Two clauses and their connectives."""
    link = LINKS[meaning.link][style.pick("link", 2)]
    first = clause_text(meaning.first, style.other(1))
    second = clause_text(meaning.second, style.other(2))
    if meaning.link in ("when", "if", "although", "while"):
        return f"{link} {second}, {ANSWERS[meaning.link][style.pick('then', 2)]} {first}।"
    if meaning.link == "because" and style.pick("link", 2):
        return f"{link} {second}, {ANSWERS['because'][style.pick('then', 2)]} {first}।"
    comma = "" if meaning.link == "and" else ","
    return f"{first}{comma} {link} {second}।"


def request(meaning: Request, style: Style) -> str:
    """An order, a polite request, a prohibition or a proposal."""
    stem, verb = meaning.verb.hi, meaning.verb
    head, _, last = stem.rpartition(" ")
    polite = words(head, POLITE.get(last, last + ("इए" if last[-1] in VOWELS else "िए")))
    place = "" if verb.role == "motion" else place_phrase(meaning.place)
    body = words(place, object_text(verb, meaning.target), spell(meaning.manner, "hi"))
    choice = style.pick("request", 3)
    if meaning.kind == "forbid":
        tails = (f"मत {polite}।", f"न {polite}।", f"मत {stem}ना!")
    elif meaning.kind == "propose":
        together = future(stem, Agreement(3, True))
        tails = (f"{together.removesuffix('गे')}।", f"{together}?", f"{stem}ना चाहिए।")
        lead = ("आइए,", "क्या हम", "हमें")[choice]
        return words(lead, body, tails[choice])
    else:
        favour = "दीजिए।" if stem == "दे" else f"{stem} दीजिए।"
        tails = (f"{polite}।", f"{stem} सकते हैं?", favour)
    question = "कृपया" if meaning.kind == "forbid" else "क्या आप"
    lead = ("कृपया", question, "ज़रा")[choice]
    return words(lead, body, tails[choice])


def ask_word(meaning: AskWord, style: Style) -> str:
    """A question with a question word."""
    clause, what = meaning.clause, meaning.clause.predicate
    if meaning.asked == "who" and isinstance(what, Act):
        he = Act(Who(pronoun="he"), what.verb, what.target)
        text = clause_text(Clause(he, clause.tense, place=clause.place), style)
        asked = "कौन"
        if "उसने" in text:
            asked = "किसने"
        elif "उसे" in text:
            asked = "किसे"
        rest = " ".join(word for word in text.split() if word not in ("वह", "उसने", "उसे"))
        return words(spell(clause.time, "hi"), asked, rest) + "?"
    if meaning.asked == "how_many" and isinstance(what, Own):
        many = Thing(what.target.noun, plural=True)
        agree = agreement(many)
        subject, how_many = marked(what.subject, "के पास"), bend("कितना", agree)
        return words(subject, how_many, thing_phrase(many), be(agree, clause.tense)) + "?"
    return clause_text(clause, style, QUESTIONS[meaning.asked]) + "?"


def report(meaning: Report, style: Style) -> str:
    """A clause that someone says or thinks."""
    speaker, stem = meaning.speaker, ATTITUDES[meaning.attitude]
    who = agreement(speaker)
    if meaning.tense == "past":
        fixed = Agreement(3, False, meaning.attitude == "hope")
        lead = words(marked(speaker, "ने"), perfect(stem, fixed))
    elif meaning.tense == "future":
        lead = words(party(speaker), future(stem, who))
    else:
        lead = words(party(speaker), bend(stem + "ता", who), be(who, "present"))
    return f"{lead} कि {clause_text(meaning.clause, style)}।"


def sentence(meaning: Meaning, style: Style) -> str:
    """The meaning in Hindi."""
    match meaning:
        case State(clause, opener):
            lead = OPENERS[opener][style.pick("opener", 2)] if opener else ""
            return words(lead, clause_text(clause, style)) + "।"
        case Ask(clause):
            body = clause_text(clause, style)
            return (f"क्या {body}?", f"{body}, है न?", f"क्या {body}?")[style.pick("ask", 3)]
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
            gift = thing_phrase(thing, oblique=True)
            return (
                f"{gift} के लिए धन्यवाद, {name.name}।",
                f"{name.name}, {gift} के लिए बहुत-बहुत शुक्रिया!",
            )[style.pick("t", 2)]
