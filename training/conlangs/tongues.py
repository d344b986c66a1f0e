"""The four constructed languages: sounds, order, and how marks are spelt.

tequai    hard stops (pq, tq, kq), glottal stops as apostrophes, runs of vowels; verb first
orrhane   a song: lines open with a call, tense is in capitals, clauses are joined by //
zhemura   long words of suffixes with vowel harmony, many diacritics; verb last
hradun    written in runes, words divided by a raised dot; object first
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from training.conlangs.clauses import Phrase, Word
from training.conlangs.sounds import Sounds, dictionary

Part = Literal["verb", "subject", "target", "rest", "time", "place"]
Mood = Literal["said", "asked", "ordered"]
SUNG = ("past", "future")


@dataclass(frozen=True)
class Tongue:
    """A constructed language: its sounds, word order, and spelling of words and sentences."""

    name: str
    sounds: Sounds
    order: tuple[Part, ...]
    head_first: bool
    digits: bool
    spell: "Callable[[Tongue, Word], str]"
    write: "Callable[[Tongue, Sequence[str], Mood], str]"

    def of(self, key: str) -> str:
        """The word of a key."""
        return _dictionary(self)[key]

    def mark(self, name: str) -> str:
        """The ending or particle of a mark."""
        return self.of(f"mark:{name}")

    def base(self, word: Word) -> str:
        """A word without its marks: names as they are, numbers as they are written here."""
        kind, _, rest = word.key.partition(":")
        if kind == "name":
            return rest
        return self.number(rest) if kind == "number" else self.of(word.key)

    def number(self, digits: str) -> str:
        """A number: its digits, or a word of a syllable or two for every one."""
        if self.digits:
            return digits
        return "".join(self.of(f"digit:{digit}") for digit in digits)

    def said(self, phrase: Phrase) -> list[str]:
        """The words of a phrase in the order of this language."""
        words = phrase if self.head_first else phrase[::-1]
        return [self.spell(self, word) for word in words]


@cache
def _dictionary(tongue: Tongue) -> dict[str, str]:
    return dictionary(tongue.name, tongue.sounds)


# --- tequai: tense and mode before the root, everything else behind an apostrophe


_BEFORE = (
    "past",
    "future",
    "not",
    "want",
    "can",
    "must",
    "like",
    "progressive",
    "order",
    "forbid",
    "propose",
)


def _tequai_word(tongue: Tongue, word: Word) -> str:
    before = "".join(tongue.mark(mark) for mark in word.marks if mark in _BEFORE)
    after = "".join(
        "'" + tongue.mark(mark).lstrip("'") for mark in word.marks if mark not in _BEFORE
    )
    return f"{before}{tongue.base(word)}{after}"


def _tequai_sentence(tongue: Tongue, clauses: Sequence[str], mood: Mood) -> str:
    end = {"said": ".", "asked": f" {tongue.of('mood:asked')}?", "ordered": "!"}[mood]
    return _capital(", ".join(clauses)) + end


# --- orrhane: particles stand alone, tense is a syllable sung loud


def _orrhane_word(tongue: Tongue, word: Word) -> str:
    base = tongue.base(word)
    if "past" in word.marks:
        base = base[:3].upper() + base[3:]
    if "future" in word.marks:
        base = base[:-3] + base[-3:].upper()
    return " ".join([*(tongue.mark(mark) for mark in word.marks if mark not in SUNG), base])


def _orrhane_sentence(tongue: Tongue, clauses: Sequence[str], mood: Mood) -> str:
    call = _capital(tongue.of(f"mood:{mood}"))
    end = {"said": "", "asked": " ...", "ordered": f", {call}!"}[mood]
    return f"{call} {' // '.join(clauses)}{end}"


# --- zhemura: suffixes whose vowels follow the root's last one

_FRONT, _BACK = "eéěëiíöőüű", "aáąåoóøůuú"
_TO_FRONT = str.maketrans("aáąåoóøůuú", "eéëěöőöűüű")
_TO_BACK = str.maketrans("eéěëiíöőüű", "aáåąůúøóuú")


def _zhemura_word(tongue: Tongue, word: Word) -> str:
    base = tongue.base(word)
    vowels = [letter for letter in base.lower() if letter in _FRONT + _BACK]
    table = _TO_FRONT if vowels and vowels[-1] in _FRONT else _TO_BACK
    return base + "".join(tongue.mark(mark).translate(table) for mark in word.marks)


def _zhemura_sentence(tongue: Tongue, clauses: Sequence[str], mood: Mood) -> str:
    end = {
        "said": ".",
        "asked": f"{tongue.of('mood:asked')}?",
        "ordered": f"{tongue.of('mood:ordered')}!",
    }[mood]
    return _capital("; ".join(clauses)) + end


# --- hradun: particles behind the word, all of it in runes

_RUNES = {
    "th": "ᚦ", "ng": "ᛜ", "ei": "ᛇ", "a": "ᚨ", "b": "ᛒ", "c": "ᚲ", "d": "ᛞ", "e": "ᛖ", "f": "ᚠ",
    "g": "ᚷ", "h": "ᚺ", "i": "ᛁ", "j": "ᛃ", "k": "ᚲ", "l": "ᛚ", "m": "ᛗ", "n": "ᚾ", "o": "ᛟ",
    "p": "ᛈ", "q": "ᚲ", "r": "ᚱ", "s": "ᛊ", "t": "ᛏ", "u": "ᚢ", "v": "ᚹ", "w": "ᚹ", "x": "ᚲᛊ",
    "y": "ᛇ", "z": "ᛉ",
}  # fmt: skip
_DOT, _STOP = "᛫", "᛭"


def _hradun_word(tongue: Tongue, word: Word) -> str:
    return " ".join([tongue.base(word), *(tongue.mark(mark) for mark in word.marks)])


def _hradun_sentence(tongue: Tongue, clauses: Sequence[str], mood: Mood) -> str:
    if mood != "said":
        clauses = [tongue.of(f"mood:{mood}"), *clauses]
    return runes(" | ".join(clauses)) + _STOP


def runes(latin: str) -> str:
    """Latin letters as runes, spaces as dots between words, bars as crosses between clauses."""
    text = latin.lower().replace(" | ", "|")
    for letters, rune in _RUNES.items():
        text = text.replace(letters, rune)
    return text.replace(" ", _DOT).replace("|", _STOP)


def _capital(text: str) -> str:
    """The text with its first letter capital; an apostrophe or digit before it stays."""
    first = next((n for n, letter in enumerate(text) if letter.isalpha()), 0)
    return text[:first] + text[first : first + 1].upper() + text[first + 1 :]


def _sounds(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TONGUES = {
    tongue.name: tongue
    for tongue in (
        Tongue(
            "tequai",
            Sounds(
                onsets=_sounds("pq tq kq p t k ' m n ny v z r l y w"),
                nuclei=("a", "e", "u", "ae", "ei", "ua", "aeo", "uei", "oa", "ia"),
                codas=("", "", "", "", "q", "m", "r"),
                syllables=(1, 2, 2, 3),
            ),
            order=("verb", "subject", "target", "rest", "place", "time"),
            head_first=True,
            digits=True,
            spell=_tequai_word,
            write=_tequai_sentence,
        ),
        Tongue(
            "orrhane",
            Sounds(
                onsets=("rrh", "vh", "sy", "l", "m", "n", "r", "fh", "d", "w", "hy", "z", ""),
                nuclei=("a", "o", "e", "ie", "au", "ea", "yo"),
                codas=("", "", "n", "s", "l", "rr"),
                syllables=(2, 2, 3),
            ),
            order=("time", "verb", "target", "subject", "rest", "place"),
            head_first=True,
            digits=False,
            spell=_orrhane_word,
            write=_orrhane_sentence,
        ),
        Tongue(
            "zhemura",
            Sounds(
                onsets=("ž", "č", "š", "ř", "ň", "ď", "ť", "ķ", "ģ", "ļ", "m", "v", "b", "z", "h"),
                nuclei=("ë", "ö", "ü", "å", "ů", "ą", "á", "é", "ó", "ø", "ű", "a", "i"),
                codas=("", "", "", "š", "ń", "r", "ł"),
                syllables=(2, 2, 3),
            ),
            order=("time", "place", "subject", "rest", "target", "verb"),
            head_first=False,
            digits=True,
            spell=_zhemura_word,
            write=_zhemura_sentence,
        ),
        Tongue(
            "hradun",
            Sounds(
                onsets=_sounds("hr dr sk th b g k l m n t w z hl gn"),
                nuclei=("a", "u", "o", "i", "e", "ei", "au"),
                codas=("", "", "r", "n", "ng", "lm", "rk", "z"),
                syllables=(1, 2, 2),
            ),
            order=("target", "verb", "rest", "subject", "place", "time"),
            head_first=False,
            digits=False,
            spell=_hradun_word,
            write=_hradun_sentence,
        ),
    )
}
