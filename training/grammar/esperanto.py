"""Says a meaning in Esperanto."""

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
from training.grammar.lexicon import Verb
from training.grammar.phrases import capital, is_motion, spell, words

PRONOUN = {"i": "mi", "you": "vi", "he": "li", "she": "ŝi", "we": "ni", "they": "ili"}
ENDING = {"past": "is", "present": "as", "future": "os"}
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
LINKS = {
    "because": ("ĉar", "tial ke"),
    "but": ("sed", "tamen"),
    "and": ("kaj", "kaj poste"),
    "when": ("kiam", "ĉiam kiam"),
    "if": ("se", "kondiĉe ke"),
    "so": ("do", "tial"),
    "although": ("kvankam", "malgraŭ ke"),
    "while": ("dum", "dum"),
}
OPENERS = {
    "then": ("Poste", "Tiam"),
    "first": ("Unue,", "Komence"),
    "finally": ("Fine,", "Finfine"),
    "maybe": ("Eble", "Povas esti, ke"),
    "of_course": ("Kompreneble,", "Memkompreneble"),
    "however": ("Tamen", "Malgraŭ tio,"),
    "news": ("Laŭ la novaĵoj,", "La gazeto skribas, ke"),
    "luckily": ("Feliĉe,", "Bonŝance"),
    "also": ("Krome,", "Ankaŭ"),
    "suddenly": ("Subite", "Tute neatendite"),
}
TALK = {
    "dear": ("Kara {},", "Mia kara {},"),
    "hello": ("Saluton, {}!", "Saluton, {}, kiel vi fartas?"),
    "good_morning": ("Bonan matenon, {}.", "Bonan matenon, {}, ĉu vi bone dormis?"),
    "goodbye": ("Ĝis revido, {}!", "Adiaŭ, {}, kaj fartu bone."),
    "see_you": ("Ĝis morgaŭ, {}.", "Ni baldaŭ revidos nin, {}."),
    "sincerely": ("Via {}.", "Kun amo, {}."),
    "sorry": ("Mi bedaŭras, {}.", "Bonvolu pardoni min, {}."),
    "congratulations": ("Gratulon, {}!", "Feliĉan naskiĝtagon, {}!"),
}
ATTITUDES = {"say": "dir", "think": "pens", "know": "sci", "hope": "esper", "hear": "aŭd"}
MODES = {"want": "vol", "can": "pov", "must": "dev", "like": "ŝat"}
QUESTIONS = {"where": "Kie", "when": "Kiam", "why": "Kial"}


def thing_phrase(thing: Thing, accusative: bool = False, to: bool = False) -> str:
    """A noun phrase, adjective and noun agreeing in number and case."""
    ending = ("j" if thing.many else "") + ("n" if accusative or to else "")
    core = words(thing.adjective.eo + ending if thing.adjective else "", thing.noun.eo + ending)
    if thing.owner:
        if thing.owner.pronoun:
            head = words(PRONOUN[thing.owner.pronoun] + "a" + ending, str(thing.count or ""))
            return words(head, core)
        return words("la", str(thing.count or ""), core, "de", party(thing.owner))
    if thing.count:
        return f"{thing.count} {core}"
    if thing.amount == "many":
        return f"multaj{'n' if accusative else ''} {core}"
    if thing.amount:
        return f"kelkaj{'n' if accusative else ''} {core}"
    return f"la {core}" if thing.definite else core


def party(who: Party, accusative: bool = False) -> str:
    """A person or a thing; names take no ending."""
    if isinstance(who, Thing):
        return thing_phrase(who, accusative)
    if who.pronoun:
        return PRONOUN[who.pronoun] + ("n" if accusative else "")
    if who.name:
        return who.name.name
    return thing_phrase(who.thing, accusative) if who.thing else ""


def place_phrase(place: Thing | None) -> str:
    """Where something happens."""
    if place is None:
        return ""
    return ("sur " if place.noun.concept in ON else "en ") + thing_phrase(place)


def verb_object(verb: Verb, target: Party | None) -> str:
    """The object in the accusative or after the verb's preposition, or the goal of a movement."""
    if target is None:
        return ""
    _, _, preposition = verb.eo.partition("+")
    if verb.role == "motion":
        return f"al {party(target)}"
    if preposition:
        return f"{preposition} {party(target)}"
    return party(target, accusative=True)


def act_verb(act: Act, clause: Clause) -> str:
    """The verb of an act in its mode and tense."""
    root = act.verb.eo.partition("+")[0]
    ending = ENDING[clause.tense]
    if act.mode in MODES:
        return f"{MODES[act.mode]}{ending} {root}i"
    if act.mode == "progressive":
        return f"est{ending} {root}anta{'j' if act.subject.many else ''}"
    return root + ending


def predicate_text(clause: Clause, style: Style) -> tuple[str, str, str]:
    """Subject, verb with negation, and complement."""
    what = clause.predicate
    no = "ne " if clause.negative else ""
    ending = ENDING[clause.tense]
    be = f"{no}est{ending}"
    match what:
        case Act():
            verb = words(
                spell(what.frequency, "eo"), no + act_verb(what, clause), spell(what.manner, "eo")
            )
            company = ""
            if what.companion:
                company = ("kun ", "kune kun ")[style.pick("with", 2)] + party(what.companion)
            return party(what.subject), verb, words(verb_object(what.verb, what.target), company)
        case Give():
            gift, receiver = party(what.target, accusative=True), f"al {party(what.receiver)}"
            both = f"{gift} {receiver}" if style.pick("give", 2) else f"{receiver} {gift}"
            return party(what.subject), f"{no}don{ending}", both
        case Exist():
            return "", be, party(what.subject)
        case Located():
            verb = (be, f"{no}troviĝ{ending}")[style.pick("be", 2)]
            return party(what.subject), verb, ""
        case Own():
            return party(what.subject), f"{no}hav{ending}", party(what.target, accusative=True)
        case Like():
            return party(what.subject), f"{no}ŝat{ending}", party(what.target, accusative=True)
        case Cost():
            return party(what.subject), f"{no}kost{ending}", f"{what.euros} eŭrojn"
        case Weather():
            return "", be, words("forta" if what.strong else "", what.noun.eo)
        case _:
            return party(what.subject), be, quality(what)


def quality(what: Be | Role | Compare | Most) -> str:
    """What the copula says of its subject."""
    plural = "j" if what.subject.many else ""
    match what:
        case Role():
            return what.noun.eo + plural
        case Be():
            return words(spell(what.degree, "eo"), what.adjective.eo + plural)
        case Compare():
            return f"pli {what.adjective.eo}{plural} ol {party(what.other)}"
        case Most():
            return f"la plej {what.adjective.eo}{plural}"


def clause_text(clause: Clause, style: Style, embedded: bool = False) -> str:
    """A whole clause in one of the free word orders."""
    subject, verb, complement = predicate_text(clause, style)
    time = spell(clause.time, "eo")
    place = "" if is_motion(clause) else place_phrase(clause.place)
    order = style.pick("order", 6)
    if order == 0:
        return words(time, place, subject, verb, complement)
    if order == 1:
        return words(place, subject, verb, complement, time)
    if order == 2 and isinstance(clause.predicate, Own | Like) and not embedded:
        return words(time, complement, subject, verb, place)
    if order == 3:
        return words(time, subject, verb, complement, place)
    return words(subject, verb, complement, place, time)


def join(meaning: Join, style: Style) -> str:
    """Two clauses and their connective."""
    link = LINKS[meaning.link][style.pick("link", 2)]
    first = clause_text(meaning.first, style.other(1), embedded=True)
    second = clause_text(meaning.second, style.other(2), embedded=True)
    if meaning.link in ("when", "if", "although", "while", "because") and style.pick("order", 2):
        return capital(f"{link} {second}, {first}.")
    return capital(f"{first}, {link} {second}.")


def request(meaning: Request, style: Style) -> str:
    """An imperative, a polite request, a prohibition or a proposal."""
    root = meaning.verb.eo.partition("+")[0]
    rest = words(
        verb_object(meaning.verb, meaning.target),
        spell(meaning.manner, "eo"),
        "" if meaning.verb.role == "motion" else place_phrase(meaning.place),
    )
    if meaning.kind == "forbid":
        verbs, marks = (f"ne {root}u", f"bonvolu ne {root}i", f"vi ne {root}u"), "!.!"
    elif meaning.kind == "propose":
        verbs, marks = (f"ni {root}u", f"ĉu ni {root}u", f"ni kune {root}u"), "!?."
    else:
        verbs, marks = (f"bonvolu {root}i", f"ĉu vi povus {root}i", f"{root}u, mi petas,"), ".?."
    choice = style.pick("request", 3)
    return capital(words(verbs[choice], rest) + marks[choice])


def ask_word(meaning: AskWord, style: Style) -> str:
    """A question with a question word."""
    clause, what = meaning.clause, meaning.clause.predicate
    subject, verb, complement = predicate_text(clause, style)
    time = spell(clause.time, "eo")
    place = place_phrase(clause.place)
    if meaning.asked == "who":
        return words("Kiu", verb, complement, place, time) + "?"
    if meaning.asked == "what" and isinstance(what, Act):
        return words("Kion", subject, verb, complement, place, time) + "?"
    if meaning.asked == "how_many" and isinstance(what, Own):
        many = Thing(what.target.noun, plural=True)
        return words("Kiom da", thing_phrase(many), subject, verb) + "?"
    question = QUESTIONS[meaning.asked]
    if isinstance(what, Act) and what.verb.role == "motion" and meaning.asked == "where":
        question = "Kien"
    return words(question, subject, verb, complement, place, time) + "?"


def sentence(meaning: Meaning, style: Style) -> str:
    """The meaning in Esperanto."""
    match meaning:
        case State(clause, opener):
            if opener is None:
                return capital(clause_text(clause, style)) + "."
            lead = OPENERS[opener][style.pick("opener", 2)]
            return f"{lead} {clause_text(clause, style, embedded=True)}."
        case Ask(clause):
            return f"Ĉu {clause_text(clause, style, embedded=True)}?"
        case AskWord():
            return ask_word(meaning, style)
        case Request():
            return request(meaning, style)
        case Join():
            return join(meaning, style)
        case Report(speaker, attitude, clause, tense):
            verb = ATTITUDES[attitude] + ENDING[tense]
            return capital(
                f"{party(speaker)} {verb}, ke {clause_text(clause, style, embedded=True)}."
            )
        case Talk(address, name):
            return TALK[address][style.pick("talk", 2)].format(name.name)
        case Thank(thing, name):
            gift = thing_phrase(thing)
            return (f"Dankon pro {gift}, {name.name}.", f"{name.name}, mi tre dankas pro {gift}!")[
                style.pick("t", 2)
            ]
