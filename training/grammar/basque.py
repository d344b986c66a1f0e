"""Says a meaning in Basque."""

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
from training.grammar.lexicon import Verb
from training.grammar.phrases import capital, is_motion, spell, words

PRONOUN = {
    "i": {"abs": "ni", "erg": "nik", "dat": "niri", "gen": "nire", "com": "nirekin"},
    "you": {"abs": "zu", "erg": "zuk", "dat": "zuri", "gen": "zure", "com": "zurekin"},
    "he": {"abs": "bera", "erg": "berak", "dat": "berari", "gen": "bere", "com": "berarekin"},
    "she": {"abs": "bera", "erg": "berak", "dat": "berari", "gen": "bere", "com": "berarekin"},
    "we": {"abs": "gu", "erg": "guk", "dat": "guri", "gen": "gure", "com": "gurekin"},
    "they": {"abs": "haiek", "erg": "haiek", "dat": "haiei", "gen": "haien", "com": "haiekin"},
}
PERSONS = ("i", "you", "he", "we", "they")
# Endings after a vowel and after a consonant, for each number and case.
ENDINGS = {
    "sg": {
        "abs": ("a", "a"),
        "erg": ("ak", "ak"),
        "dat": ("ari", "ari"),
        "gen": ("aren", "aren"),
        "com": ("arekin", "arekin"),
        "ine": ("an", "ean"),
        "all": ("ra", "era"),
        "part": ("rik", "ik"),
        "instr": ("agatik", "agatik"),
    },
    "pl": {
        "abs": ("ak", "ak"),
        "erg": ("ek", "ek"),
        "dat": ("ei", "ei"),
        "gen": ("en", "en"),
        "com": ("ekin", "ekin"),
        "ine": ("etan", "etan"),
        "all": ("etara", "etara"),
        "part": ("rik", "ik"),
        "instr": ("engatik", "engatik"),
    },
    "indef": {
        "abs": ("", ""),
        "erg": ("k", "ek"),
        "dat": ("ri", "i"),
        "gen": ("ren", "en"),
        "com": ("rekin", "ekin"),
        "ine": ("tan", "etan"),
        "all": ("tara", "etara"),
        "part": ("rik", "ik"),
        "instr": ("rengatik", "engatik"),
    },
}
SOFT_R = {"ur", "paper", "plater", "zer", "nor"}
AUX = {
    "da": {
        "present": ("naiz", "zara", "da", "gara", "dira"),
        "past": ("nintzen", "zinen", "zen", "ginen", "ziren"),
    },
    "du": {
        "present": ("dut", "duzu", "du", "dugu", "dute"),
        "past": ("nuen", "zenuen", "zuen", "genuen", "zuten"),
    },
    "dituz": {
        "present": ("ditut", "dituzu", "ditu", "ditugu", "dituzte"),
        "past": ("nituen", "zenituen", "zituen", "genituen", "zituzten"),
    },
    "dio": {
        "present": ("diot", "diozu", "dio", "diogu", "diote"),
        "past": ("nion", "zenion", "zion", "genion", "zioten"),
    },
    "die": {
        "present": ("diet", "diezu", "die", "diegu", "diete"),
        "past": ("nien", "zenien", "zien", "genien", "zieten"),
    },
    "dizkio": {
        "present": ("dizkiot", "dizkiozu", "dizkio", "dizkiogu", "dizkiote"),
        "past": ("nizkion", "zenizkion", "zizkion", "genizkion", "zizkioten"),
    },
    "zaio": {
        "present": ("zait", "zaizu", "zaio", "zaigu", "zaie"),
        "past": ("zitzaidan", "zitzaizun", "zitzaion", "zitzaigun", "zitzaien"),
    },
    "zaizkio": {
        "present": ("zaizkit", "zaizkizu", "zaizkio", "zaizkigu", "zaizkie"),
        "past": ("zitzaizkidan", "zitzaizkizun", "zitzaizkion", "zitzaizkigun", "zitzaizkien"),
    },
    "dago": {
        "present": ("nago", "zaude", "dago", "gaude", "daude"),
        "past": ("nengoen", "zeunden", "zegoen", "geunden", "zeuden"),
    },
}
SUBORDINATE = {
    "dira": "dire",
    "gara": "gare",
    "zara": "zare",
    "da": "de",
    "naiz": "naize",
    "du": "due",
    "ditu": "ditue",
    "dago": "dagoe",
}
LINKS = {"but": ("baina", "hala ere,"), "and": ("eta", "eta gero"), "so": ("beraz,", "horregatik")}
SUFFIXES = {"because": "lako", "when": "nean", "although": "n arren", "while": "n bitartean"}
OPENERS = {
    "then": ("Gero", "Ondoren"),
    "first": ("Lehenik", "Hasteko,"),
    "finally": ("Azkenean", "Bukatzeko,"),
    "maybe": ("Agian", "Beharbada"),
    "of_course": ("Noski,", "Jakina,"),
    "however": ("Hala ere,", "Dena den,"),
    "news": ("Albisteen arabera,", "Egunkariaren arabera,"),
    "luckily": ("Zorionez,", "Suertez,"),
    "also": ("Gainera,", "Halaber,"),
    "suddenly": ("Bat-batean", "Ustekabean"),
}
TALK = {
    "dear": ("{} maitea:", "Agur bero bat, {}:"),
    "hello": ("Kaixo, {}!", "Kaixo, {}, zer moduz zaude?"),
    "good_morning": ("Egun on, {}.", "Egun on, {}, ondo egin al duzu lo?"),
    "goodbye": ("Agur, {}!", "Agur, {}, eta ondo izan."),
    "see_you": ("Bihar arte, {}.", "Laster ikusiko dugu elkar, {}."),
    "sincerely": ("Zurea, {}.", "Maitasunez, {}."),
    "sorry": ("Sentitzen dut, {}.", "Barkatu, {}, mesedez."),
    "congratulations": ("Zorionak, {}!", "Urte askotarako, {}!"),
}
ATTITUDES = {
    "say": ("esan", "esaten"),
    "think": ("uste", "uste"),
    "know": ("jakin", "jakiten"),
    "hope": ("espero", "espero"),
    "hear": ("entzun", "entzuten"),
}
QUESTIONS = {"where": "non", "when": "noiz", "why": "zergatik"}


def attach(stem: str, number: str, case: str) -> str:
    """A stem with its case ending."""
    vowel = stem[-1] in "aeiou"
    ending = ENDINGS[number][case][not vowel]
    if (
        not vowel
        and stem[-1] == "r"
        and stem.lower() not in SOFT_R
        and ending[:1] in tuple("aeiou")
    ):
        return stem + "r" + ending
    if stem[-1] == "a" and ending[:1] in tuple("ae"):
        return stem[:-1] + ending
    return stem + ending


def thing_phrase(thing: Thing, case: str = "abs") -> str:
    """A noun phrase; the last word takes the case."""
    number = "pl" if thing.plural else "sg"
    if thing.count:
        number = "indef"
    parts = [thing.noun.eu]
    if thing.adjective:
        before_noun = thing.adjective.eu.endswith("zko")
        parts.insert(0 if before_noun else 1, thing.adjective.eu)
    if thing.amount:
        word, number = ("asko", "indef") if thing.amount == "many" else ("batzu", "pl")
        parts.append(word)
    parts[-1] = attach(parts[-1], number, case)
    return words(party(thing.owner, "gen") if thing.owner else "", str(thing.count or ""), *parts)


def party(who: Party, case: str = "abs") -> str:
    """A person or a thing in a case."""
    if isinstance(who, Thing):
        return thing_phrase(who, case)
    if who.pronoun:
        return PRONOUN[who.pronoun].get(case, PRONOUN[who.pronoun]["abs"])
    if who.name:
        return attach(who.name.name, "indef", case)
    return thing_phrase(who.thing, case) if who.thing else ""


def person(who: Party) -> int:
    """The column of the auxiliary tables for a party."""
    if isinstance(who, Who) and who.pronoun:
        return PERSONS.index("he" if who.pronoun == "she" else who.pronoun)
    return 4 if plural(who) else 2


def plural(who: Party | None) -> bool:
    """Whether a party counts as plural in agreement."""
    if isinstance(who, Thing):
        return who.many
    return who is not None and (who.many or bool(who.thing and plural(who.thing)))


@dataclass(frozen=True)
class Core:
    """A clause before its words are put in order."""

    subject: str
    middle: str
    participle: str
    aux: str


def auxiliary(table: str, who: int, tense: Tense) -> str:
    """A form of an auxiliary; the future takes the present."""
    return AUX[table]["past" if tense == "past" else "present"][who]


def later(participle: str) -> str:
    """The future participle."""
    return participle + ("go" if participle[-1] in "nl" else "ko")


def bare(target: Party | None) -> bool:
    """Whether the thing takes the partitive, which is never plural, when it is denied."""
    return isinstance(target, Thing) and not (
        target.count or target.amount or target.definite or target.owner
    )


def partitive(target: Thing, negative: bool) -> str:
    """An object in the absolutive, or in the partitive when denied."""
    return thing_phrase(target, "part" if negative and bare(target) else "abs")


def counted(target: Party | None, negative: bool) -> bool:
    """Whether the auxiliary shows a plural object."""
    return plural(target) and not (negative and bare(target))


def act_object(act: Act, negative: bool) -> str:
    """The object in the case the verb asks for."""
    target, verb = act.target, act.verb
    if target is None:
        return ""
    if verb.role == "motion":
        return party(target, "all")
    if verb.eu_aux in ("dukin", "dakin"):
        return party(target, "com")
    if verb.eu_aux == "dio":
        return party(target, "dat")
    return partitive(target, negative) if isinstance(target, Thing) else party(target)


def act_verb(act: Act, tense: Tense, negative: bool = False) -> tuple[str, str, str]:
    """The case of the subject, the participle and the auxiliary."""
    verb, who = act.verb, person(act.subject)
    transitive = "dituz" if has_plural_object(act, negative) else "du"
    table = transitive
    if verb.eu_aux == "dio":
        table = "die" if plural(act.target) else "dio"
    elif verb.eu_aux.startswith("da"):
        table = "da"
    case = "abs" if table == "da" else "erg"
    future = tense == "future"
    match act.mode:
        case "progressive":
            ari = "ariko" if future else "ari"
            return "abs", f"{verb.eu_impf} {ari}", auxiliary("da", who, tense)
        case "want" | "must":
            word = "nahi" if act.mode == "want" else "behar"
            if future:
                word += "ko"
            return "erg", f"{verb.eu} {word}", auxiliary(transitive, who, tense)
        case "can":
            ahal = "ahal izango" if future else "ahal"
            return case, f"{verb.eu} {ahal}", auxiliary(table, who, tense)
        case "like":
            liked = "gustatuko" if future else "gustatzen"
            return "dat", f"{nominal(verb)} {liked}", auxiliary("zaio", who, tense)
    return case, participle(act, tense), auxiliary(table, who, tense)


def has_plural_object(act: Act, negative: bool) -> bool:
    """Whether the auxiliary of a plain transitive verb shows a plural object."""
    plain_transitive = act.verb.role != "motion" and act.verb.eu_aux == "du"
    return plain_transitive and counted(act.target, negative)


def nominal(verb: Verb) -> str:
    """The verb as a noun: -tea."""
    if verb.eu_impf.endswith("en"):
        return verb.eu_impf.removesuffix("n") + "a"
    return verb.eu + "tea"


def participle(act: Act, tense: Tense) -> str:
    """The participle of a plain act."""
    if tense == "future":
        return later(act.verb.eu)
    habitual = tense == "present" or act.frequency or act.verb.role == "attitude"
    return act.verb.eu_impf if habitual else act.verb.eu


def being(who: Party, tense: Tense, table: str = "da") -> tuple[str, str]:
    """The participle, only in the future, and the form of izan or egon."""
    future = "egongo" if table == "dago" else "izango"
    if tense == "future":
        return future, auxiliary("da", person(who), tense)
    return "", auxiliary(table, person(who), tense)


def core(clause: Clause) -> Core:
    """Subject, complements and verb of a clause."""
    what, tense = clause.predicate, clause.tense
    match what:
        case Act():
            case, form, aux = act_verb(what, tense, clause.negative)
            often, manner = spell(what.frequency, "eu"), spell(what.manner, "eu")
            company = party(what.companion, "com") if what.companion else ""
            middle = words(often, company, act_object(what, clause.negative), manner)
            return Core(party(what.subject, case), middle, form, aux)
        case Give():
            table = "dizkio" if counted(what.target, clause.negative) else "dio"
            form = {"past": "eman", "present": "ematen", "future": "emango"}[tense]
            who = person(what.subject)
            middle = words(party(what.receiver, "dat"), partitive(what.target, clause.negative))
            return Core(party(what.subject, "erg"), middle, form, auxiliary(table, who, tense))
        case Own():
            table = "dituz" if counted(what.target, clause.negative) else "du"
            future = "izango" if tense == "future" else ""
            target = partitive(what.target, clause.negative)
            aux = auxiliary(table, person(what.subject), tense)
            return Core(party(what.subject, "erg"), target, future, aux)
        case Like():
            table = "zaizkio" if plural(what.target) else "zaio"
            form = "gustatuko" if tense == "future" else "gustatzen"
            liked = thing_phrase(what.target)
            aux = auxiliary(table, person(what.subject), tense)
            return Core(party(what.subject, "dat"), liked, form, aux)
        case Cost():
            form = "balioko" if tense == "future" else "balio"
            aux = auxiliary("dituz", person(what.subject), tense)
            return Core(thing_phrase(what.subject, "erg"), f"{what.euros} euro", form, aux)
        case _:
            return copular(clause)


def copular(clause: Clause) -> Core:
    """The core of the clauses built on izan and egon."""
    what, tense = clause.predicate, clause.tense
    match what:
        case Exist():
            agreed = what.subject
            if clause.negative and bare(agreed):
                agreed = Thing(agreed.noun)
            return Core("", partitive(what.subject, clause.negative), *being(agreed, tense, "dago"))
        case Located():
            return Core(party(what.subject), "", *being(what.subject, tense, "dago"))
        case Weather(noun, strong):
            weather = Thing(noun)
            text = attach(noun.eu, "indef", "abs") + " handia" if strong else thing_phrase(weather)
            return Core("", text, *being(weather, tense, "dago"))
        case Be():
            number = "pl" if plural(what.subject) else "sg"
            complement = words(spell(what.degree, "eu"), attach(what.adjective.eu, number, "abs"))
        case Role():
            complement = attach(what.noun.eu, "pl" if plural(what.subject) else "sg", "abs")
        case Compare():
            number = "pl" if plural(what.subject) else "sg"
            complement = (
                f"{party(what.other)} baino {attach(more(what.adjective.eu, 'ago'), number, 'abs')}"
            )
        case _:
            assert isinstance(what, Most)
            number = "pl" if plural(what.subject) else "sg"
            complement = attach(more(what.adjective.eu, "en"), number, "abs")
    return Core(party(what.subject), complement, *being(what.subject, tense))


def more(adjective: str, ending: str) -> str:
    """The comparative or superlative stem of an adjective."""
    if adjective == "on":
        return "hobe" if ending == "ago" else "onen"
    double = "r" if adjective[-1] == "r" else ""
    return (adjective[:-1] if adjective[-1] == "a" else adjective + double) + ending


def subordinate(aux: str, suffix: str) -> str:
    """An auxiliary with -la, -lako, -nean or -n."""
    if suffix == "ba":
        return "ba" + aux
    if aux.endswith("n"):
        stem = aux[:-1]
    elif aux.endswith("t"):
        stem = aux[:-1] + "da"
    else:
        stem = SUBORDINATE.get(aux, aux)
    return stem + suffix


def ordered(clause: Clause, style: Style, parts: Core, aux: str, question: str = "") -> str:
    """The words of a clause; a denied auxiliary goes before the participle."""
    time = spell(clause.time, "eu")
    motion = is_motion(clause)
    place = "" if motion or clause.place is None else thing_phrase(clause.place, "ine")
    orders = (
        (time, parts.subject, place),
        (parts.subject, time, place),
        (time, place, parts.subject),
        (place, parts.subject, time),
    )
    head = words(*orders[style.pick("order", 4)])
    if question:
        return words(question, parts.participle, aux, parts.subject, parts.middle, place, time)
    if clause.negative:
        return words(head, "ez", aux, parts.middle, parts.participle)
    if (
        isinstance(clause.predicate, Act)
        and parts.middle
        and style.pick("svo", 4) == 0
        and aux == parts.aux
    ):
        return words(head, parts.participle, aux, parts.middle)
    return words(head, parts.middle, parts.participle, aux)


def clause_text(clause: Clause, style: Style, suffix: str = "", question: str = "") -> str:
    """A whole clause, main or subordinate."""
    parts = core(clause)
    head, _, tail = suffix.partition(" ")
    aux = words(subordinate(parts.aux, head), tail) if suffix else parts.aux
    return ordered(clause, style, parts, aux, question)


def join(meaning: Join, style: Style) -> str:
    """Two clauses; reasons, times and conditions are suffixes of the auxiliary."""
    first = clause_text(meaning.first, style.other(1))
    if meaning.link in LINKS:
        link = LINKS[meaning.link][style.pick("link", 2)]
        comma = "" if meaning.link == "and" else ","
        return capital(f"{first}{comma} {link} {clause_text(meaning.second, style.other(2))}.")
    if meaning.link == "because" and style.pick("link", 3) == 0:
        return capital(f"{first}, {clause_text(meaning.second, style.other(2), suffix='lako')}.")
    suffix = SUFFIXES.get(meaning.link, "ba")
    return capital(f"{clause_text(meaning.second, style.other(2), suffix=suffix)}, {first}.")


def request(meaning: Request, style: Style) -> str:
    """An order, a polite request, a prohibition or a proposal."""
    verb = meaning.verb
    act = Act(Who(pronoun="you"), verb, meaning.target)
    place = thing_phrase(meaning.place, "ine") if meaning.place and verb.role != "motion" else ""
    body = words(place, act_object(act, False), spell(meaning.manner, "eu"))
    _, _, aux = act_verb(act, "present")
    we = auxiliary(
        {"zara": "da", "diozu": "dio", "diezu": "die", "dituzu": "dituz"}.get(aux, "du"),
        3,
        "present",
    )
    choice = style.pick("request", 3)
    if meaning.kind == "forbid":
        texts = (
            f"mesedez, ez {body} {verb.eu}.",
            f"ezin {aux} {body} {verb.eu}!",
            f"ez {aux} {body} {verb.eu} behar.",
        )
    elif meaning.kind == "propose":
        texts = (
            f"{body} {later(verb.eu)} {we}!",
            f"{body} {later(verb.eu)} al {we}?",
            f"goazen {body} {nominal_goal(verb.eu_impf)}!",
        )
    else:
        texts = (
            f"{body} {verb.eu}, mesedez.",
            f"{body} {later(verb.eu)} al {aux}, mesedez?",
            f"mesedez, {body} {verb.eu}.",
        )
    return capital(" ".join(texts[choice].split()))


def nominal_goal(imperfective: str) -> str:
    """The form of a verb after "goazen": -tzera, -tera."""
    return imperfective.removesuffix("n") + "ra" if imperfective.endswith("en") else imperfective


def ask_word(meaning: AskWord, style: Style) -> str:
    """A question with a question word right before the verb."""
    clause, what = meaning.clause, meaning.clause.predicate
    parts = core(clause)
    if meaning.asked == "who" and isinstance(what, Act):
        case, _, _ = act_verb(what, clause.tense)
        asked = {"abs": "nor", "erg": "nork", "dat": "nori"}[case]
        parts = Core("", parts.middle, parts.participle, parts.aux)
    elif meaning.asked == "what":
        asked = "zer"
    elif meaning.asked == "how_many" and isinstance(what, Own):
        asked = f"zenbat {what.target.noun.eu}"
        parts = Core(
            parts.subject,
            "",
            parts.participle,
            auxiliary("dituz", person(what.subject), clause.tense),
        )
    else:
        motion = isinstance(what, Act) and what.verb.role == "motion"
        asked = "nora" if motion and meaning.asked == "where" else QUESTIONS[meaning.asked]
    return capital(ordered(clause, style, parts, parts.aux, asked)) + "?"


def report(meaning: Report, style: Style) -> str:
    """A clause that someone says or thinks."""
    done, doing = ATTITUDES[meaning.attitude]
    future = f"{done} izango" if done in ("uste", "espero") else later(done)
    form = {"past": done, "present": doing, "future": future}[meaning.tense]
    aux = auxiliary("du", person(meaning.speaker), meaning.tense)
    quoted = clause_text(meaning.clause, style, suffix="la")
    speaker = party(meaning.speaker, "erg")
    if style.pick("order", 2):
        return capital(f"{speaker} {form} {aux} {quoted}.")
    return capital(f"{quoted} {form} {aux} {speaker}.")


def sentence(meaning: Meaning, style: Style) -> str:
    """The meaning in Basque."""
    match meaning:
        case State(clause, opener):
            if opener is None:
                return capital(clause_text(clause, style)) + "."
            return f"{OPENERS[opener][style.pick('opener', 2)]} {clause_text(clause, style)}."
        case Ask(clause):
            parts = core(clause)
            al = "al " if style.pick("al", 3) else ""
            return capital(ordered(clause, style, parts, al + parts.aux)) + "?"
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
            gift = thing_phrase(thing, "instr")
            return (f"Eskerrik asko {gift}, {name.name}.", f"{name.name}, mila esker {gift}!")[
                style.pick("t", 2)
            ]
