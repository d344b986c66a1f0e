"""Says a meaning in English."""

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
from training.grammar.lexicon import Adjective, Verb
from training.grammar.phrases import capital, is_motion, spell, words

SUBJECT = {"i": "I", "you": "you", "he": "he", "she": "she", "we": "we", "they": "they"}
OBJECT = {"i": "me", "you": "you", "he": "him", "she": "her", "we": "us", "they": "them"}
OWNER = {"i": "my", "you": "your", "he": "his", "she": "her", "we": "our", "they": "their"}
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
}
AT = {
    "station",
    "airport",
    "school",
    "market",
    "office",
    "university",
    "port",
    "bus_stop",
    "theater",
    "home",
}
DOUBLED = {"cut", "swim", "run", "get", "sit", "begin", "forget", "plan"}
LINKS = {
    "because": ("because", "since"),
    "but": ("but", "yet"),
    "and": ("and", "and then"),
    "when": ("when", "whenever"),
    "if": ("if", "if"),
    "so": ("so", "and so"),
    "although": ("although", "even though"),
    "while": ("while", "while"),
}
OPENERS = {
    "then": ("After that,", "Then"),
    "first": ("First,", "To begin with,"),
    "finally": ("Finally,", "In the end,"),
    "maybe": ("Maybe", "Perhaps"),
    "of_course": ("Of course,", "Naturally,"),
    "however": ("However,", "Even so,"),
    "news": ("According to the news,", "The newspaper says that"),
    "luckily": ("Luckily,", "Fortunately,"),
    "also": ("Besides,", "Also,"),
    "suddenly": ("Suddenly", "All of a sudden,"),
}
TALK = {
    "dear": ("Dear {},", "My dear {},"),
    "hello": ("Hello, {}!", "Hi, {}, how are you?"),
    "good_morning": ("Good morning, {}.", "Good morning, {}, did you sleep well?"),
    "goodbye": ("Goodbye, {}!", "Goodbye, {}, and take care."),
    "see_you": ("See you tomorrow, {}.", "We will see each other soon, {}."),
    "sincerely": ("Yours, {}.", "With love, {}."),
    "sorry": ("I am sorry, {}.", "Please forgive me, {}."),
    "congratulations": ("Congratulations, {}!", "Happy birthday, {}!"),
}
ATTITUDES = {
    "say": ("say", "said"),
    "think": ("think", "thought"),
    "know": ("know", "knew"),
    "hope": ("hope", "hoped"),
    "hear": ("hear", "heard"),
}


def third(base: str) -> str:
    """The third person singular of a verb."""
    head, _, rest = base.partition(" ")
    if head == "have":
        form = "has"
    elif head.endswith(("s", "sh", "ch", "x", "o")):
        form = head + "es"
    elif head.endswith("y") and head[-2] not in "aeou":
        form = head[:-1] + "ies"
    else:
        form = head + "s"
    return f"{form} {rest}".strip()


def gerund(base: str) -> str:
    """The -ing form of a verb."""
    head, _, rest = base.partition(" ")
    if head in DOUBLED:
        form = head + head[-1] + "ing"
    elif head.endswith("e") and not head.endswith("ee"):
        form = head[:-1] + "ing"
    else:
        form = head + "ing"
    return f"{form} {rest}".strip()


def article(text: str) -> str:
    """The text after "a" or "an"."""
    starts_with_vowel = text[0] in "aeio" or text.startswith("um")
    return f"an {text}" if starts_with_vowel else f"a {text}"


def countable(thing: Thing) -> bool:
    """Whether the noun takes an article and a plural."""
    return thing.noun.en != thing.noun.en_plural and thing.noun.kind != "drink"


def thing_phrase(thing: Thing) -> str:
    """A noun phrase with its article, numeral, quantifier or owner."""
    uncounted = not countable(thing)
    many = thing.many and not uncounted
    core = thing.noun.en_plural if many else thing.noun.en
    if thing.adjective:
        core = f"{thing.adjective.en} {core}"
    if thing.owner:
        return f"{owner(thing.owner)} {core}"
    if thing.count and not uncounted:
        return f"{thing.count} {core}"
    if thing.amount == "many":
        return f"{'a lot of' if uncounted else 'many'} {core}"
    if thing.amount:
        return f"some {core}"
    if thing.definite:
        return f"the {core}"
    return core if many or uncounted else article(core)


def owner(who: Who) -> str:
    """The possessive of a person."""
    if who.pronoun:
        return OWNER[who.pronoun]
    ending = "'" if who.many else "'s"
    return party(who) + ending


def party(who: Party, objective: bool = False) -> str:
    """A person or a thing as subject or object."""
    if isinstance(who, Thing):
        return thing_phrase(who)
    if who.pronoun:
        pronouns = OBJECT if objective else SUBJECT
        return pronouns[who.pronoun]
    if who.name:
        return who.name.name
    return thing_phrase(who.thing) if who.thing else ""


def plural(who: Party) -> bool:
    """Whether the verb agrees with this subject as with "they"."""
    if isinstance(who, Thing):
        return who.many and countable(who)
    return who.many or who.pronoun in ("i", "you")


def be(who: Party, tense: Tense) -> str:
    """The form of "be" that agrees with the subject."""
    if tense == "future":
        return "will be"
    first = isinstance(who, Who) and who.pronoun == "i"
    if tense == "past":
        return "was" if first or not plural(who) else "were"
    if first:
        return "am"
    return "are" if plural(who) else "is"


Finite = tuple[str, str]


def finite(
    who: Party, base: str, past: str, tense: Tense, negative: bool, question: bool = False
) -> Finite:
    """The auxiliary, empty in plain statements, and the rest of the verb."""
    if tense == "future":
        if not negative:
            return "will", base
        return "will not" if question else "won't", base
    if not negative and not question:
        if tense == "past":
            return "", past
        return "", base if plural(who) else third(base)
    helper = "do" if plural(who) else "does"
    if tense == "past":
        helper = "did"
    return helper + "n't" if negative else helper, base


def copula(who: Party, tense: Tense, negative: bool) -> Finite:
    """The form of "be" split so that a question can put its first word in front."""
    head, _, rest = be(who, tense).partition(" ")
    return head + (" not" if negative else ""), rest


def modal(act: Act, tense: Tense, negative: bool, question: bool) -> Finite:
    """The verb of an act in its mode."""
    who, verb = act.subject, act.verb
    if act.mode == "progressive":
        head, rest = copula(who, tense, negative)
        return head, f"{rest} {gerund(verb.en)}".strip()
    if act.mode == "can":
        return can(verb, tense, negative)
    wrapped = {"want": ("want", "wanted"), "must": ("have", "had"), "like": ("like", "liked")}
    if act.mode in wrapped:
        base, past = wrapped[act.mode]
        head, rest = finite(who, base, past, tense, negative, question)
        return head, f"{rest} to {verb.en}"
    return finite(who, verb.en, verb.en_past, tense, negative, question)


def can(verb: Verb, tense: Tense, negative: bool) -> Finite:
    """The verb with "can" in its tense."""
    if tense == "future":
        return "will not" if negative else "will", f"be able to {verb.en}"
    if tense == "past":
        return "couldn't" if negative else "could", verb.en
    return "can't" if negative else "can", verb.en


def place_phrase(place: Thing | None) -> str:
    """Where something happens."""
    if place is None:
        return ""
    preposition = "in"
    if place.noun.concept in ON:
        preposition = "on"
    elif place.noun.concept in AT and not place.adjective:
        preposition = "at"
    return f"{preposition} {thing_phrase(place)}"


def verb_object(verb: Verb, target: Party | None) -> str:
    """The object of a verb, or the destination of a movement."""
    if target is None:
        return ""
    phrase = party(target, objective=True)
    return f"to {phrase}" if verb.role == "motion" else phrase


def comparative(adjective: Adjective, most: bool = False) -> str:
    """The comparative or superlative of an adjective."""
    word = adjective.en
    special = {
        "good": ("better", "best"),
        "bad": ("worse", "worst"),
        "far": ("farther", "farthest"),
    }
    if word in special:
        return special[word][most]
    ending = "est" if most else "er"
    if len(word) <= 5 and word.endswith("y"):
        return word[:-1] + "i" + ending
    n_vowels = sum(letter in "aeiouy" for letter in word)
    if len(word) > 6 or n_vowels > 2 or word.endswith("ed"):
        return ("most " if most else "more ") + word
    if word.endswith("e"):
        return word + ending[1:]
    double = word[-1] in "bdgtn" and word[-2] in "aeiou" and word[-3] not in "aeiou"
    return word + word[-1] + ending if double else word + ending


Core = tuple[str, str, str, str]


def core(clause: Clause, style: Style, question: bool) -> Core:
    """Subject, auxiliary, main verb and complement of a clause."""
    what, tense, negative = clause.predicate, clause.tense, clause.negative
    match what:
        case Act():
            helper, main = modal(what, tense, negative, question)
            often = spell(what.frequency, "en")
            company = f"with {party(what.companion, objective=True)}" if what.companion else ""
            manner = spell(what.manner, "en")
            late = len(often.split()) > 1
            complement = words(
                verb_object(what.verb, what.target), manner, company, often if late else ""
            )
            return party(what.subject), helper, words("" if late else often, main), complement
        case Give():
            helper, main = finite(what.subject, "give", "gave", tense, negative, question)
            gift, receiver = party(what.target), party(what.receiver, objective=True)
            ordered = f"{receiver} {gift}" if style.pick("give", 2) else f"{gift} to {receiver}"
            return party(what.subject), helper, main, ordered
        case Own() | Like():
            own = isinstance(what, Own)
            base, past = ("have", "had") if own else ("like", "liked")
            helper, main = finite(what.subject, base, past, tense, negative, question)
            return party(what.subject), helper, main, party(what.target, objective=True)
        case Cost():
            helper, main = finite(what.subject, "cost", "cost", tense, negative, question)
            return party(what.subject), helper, main, f"{what.euros} euros"
        case _:
            return copular(clause, style)


def copular(clause: Clause, style: Style) -> Core:
    """The core of the clauses built on "be"."""
    what = clause.predicate
    match what:
        case Exist():
            return (
                "there",
                *copula(what.subject, clause.tense, clause.negative),
                party(what.subject),
            )
        case Weather():
            weather = Who(pronoun="he")
            amount = "a lot of " if what.strong else ""
            return "there", *copula(weather, clause.tense, clause.negative), amount + what.noun.en
        case Be():
            complement = words(spell(what.degree, "en"), what.adjective.en)
        case Role():
            noun = Thing(what.noun, plural=what.subject.many)
            complement = thing_phrase(noun)
        case Compare():
            complement = f"{comparative(what.adjective)} than {party(what.other, objective=True)}"
        case Most():
            complement = f"the {comparative(what.adjective, most=True)}"
        case _:
            complement = ""
    assert isinstance(what, Be | Role | Compare | Most | Located)
    return party(what.subject), *copula(what.subject, clause.tense, clause.negative), complement


def clause_text(
    clause: Clause, style: Style, question: bool = False, embedded: bool = False
) -> str:
    """A whole clause, with time and place before or after it."""
    subject, helper, main, complement = core(clause, style, question)
    time = spell(clause.time, "en")
    place = place_phrase(clause.place)
    start = 2 if question or embedded else style.pick("front", 4)
    if is_motion(clause):
        place = ""
    if question:
        head, _, tail = helper.partition(" ")
        return words(head, subject, tail, main, complement, place, time)
    body = words(subject, helper, main, complement)
    if start == 0 and time:
        return f"{time}, {words(body, place)}"
    if start == 1 and place and not isinstance(clause.predicate, Located):
        comma = "" if subject == "there" else ","
        return f"{place}{comma} {words(body, time)}"
    return words(body, place, time)


def sentence_case(text: str, end: str = ".") -> str:
    """The text with a capital letter and its final mark."""
    return capital(text) + end


def join(meaning: Join, style: Style) -> str:
    """Two clauses and their connective, the subordinate one first or second."""
    link = LINKS[meaning.link][style.pick("link", 2)]
    swap = meaning.link in ("because", "when", "if", "although", "while")
    if swap:
        main, sub = meaning.first, clause_text(meaning.second, style.other(2), embedded=True)
        if style.pick("order", 2):
            return sentence_case(
                f"{link} {sub}, {clause_text(main, style.other(1), embedded=True)}"
            )
        return sentence_case(f"{clause_text(main, style.other(1))} {link} {sub}")
    first = clause_text(meaning.first, style.other(1))
    return sentence_case(
        f"{first}, {link} {clause_text(meaning.second, style.other(2), embedded=True)}"
    )


def request(meaning: Request, style: Style) -> str:
    """An imperative, a polite request, a prohibition or a proposal."""
    body = words(
        meaning.verb.en,
        verb_object(meaning.verb, meaning.target),
        spell(meaning.manner, "en"),
        place_phrase(meaning.place),
    )
    choice = style.pick("request", 3)
    if meaning.kind == "forbid":
        return (f"Please don't {body}.", f"You must not {body}!", f"Don't {body}, please.")[choice]
    if meaning.kind == "propose":
        return (f"Let's {body}!", f"Shall we {body}?", f"Why don't we {body}?")[choice]
    return (f"Please {body}.", f"Could you {body}, please?", sentence_case(f"{body}, please"))[
        choice
    ]


def ask_word(meaning: AskWord, style: Style) -> str:
    """A question with a question word."""
    clause, what = meaning.clause, meaning.clause.predicate
    if meaning.asked == "who" and isinstance(what, Act):
        someone = Act(
            Who(pronoun="he"), what.verb, what.target, what.mode, what.companion, what.manner
        )
        _, helper, main, complement = core(Clause(someone, clause.tense), style, False)
        time = spell(clause.time, "en")
        return f"Who {words(helper, main, complement, place_phrase(clause.place), time)}?"
    if meaning.asked == "how_many" and isinstance(what, Own):
        helper, main = finite(what.subject, "have", "had", clause.tense, False, question=True)
        return f"How many {what.target.noun.en_plural} {words(helper, party(what.subject), main)}?"
    body = clause_text(clause, style, question=True)
    return f"{meaning.asked.capitalize()} {body}?"


def report(meaning: Report, style: Style) -> str:
    """A clause that someone says or thinks."""
    base, past = ATTITUDES[meaning.attitude]
    _, verb = finite(meaning.speaker, base, past, meaning.tense, False)
    if meaning.tense == "future":
        verb = "will " + verb
    that = " that" if style.pick("that", 2) else ""
    return sentence_case(
        f"{party(meaning.speaker)} {verb}{that} {clause_text(meaning.clause, style, embedded=True)}"
    )


def sentence(meaning: Meaning, style: Style) -> str:
    """The meaning in English."""
    match meaning:
        case State(clause, None):
            return sentence_case(clause_text(clause, style))
        case State(clause, opener):
            assert opener
            lead = OPENERS[opener][style.pick("opener", 2)]
            return f"{lead} {clause_text(clause, style, embedded=True)}."
        case Ask(clause):
            return sentence_case(clause_text(clause, style, question=True), "?")
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
            return (f"Thank you for {gift}, {name.name}.", f"{name.name}, many thanks for {gift}!")[
                style.pick("t", 2)
            ]
