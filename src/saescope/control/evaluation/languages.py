"""Which language a text is in, from its scripts and a few common words: enough to see that a reply's language changed.

It knows 14 languages and program code, and says None rather than guess: digits and names alone are in no language,
and languages that share script and words with one of these are taken for it (Marathi for Hindi, Persian for Arabic).
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources

# Scripts that one of the known languages is written in alone; the Latin ones are told apart by words.
_OF_SCRIPT: Mapping[str, str] = {
    "HANGUL": "ko", "DEVANAGARI": "hi", "CYRILLIC": "ru", "ARABIC": "ar",
}  # fmt: skip
_KANA = ("HIRAGANA", "KATAKANA")
_DENSE = ("CJK", *_KANA, "HANGUL")  # a character of these says about as much as three Latin letters
# Letters and endings that none of the other Latin languages has, or hardly ever.
_MARKS: Mapping[str, re.Pattern[str]] = {
    "eo": re.compile(r"[ĉĝĥĵŝŭ]|(?:oj|aj|ojn|ajn)\b"),
    "eu": re.compile(
        r"tx|(?:tzen|aren|ariak|egian|egiko|etan|ekin|zuela|tela|nuen|zuen|zuten|tuko|riko)\b"
    ),
    "de": re.compile("ß"),
    "es": re.compile("[ñ¿¡]"),
    "pt": re.compile("[ãõ]"),
}
# Characters of common Chinese words that Japanese does not write, or hardly ever without kana beside them.
_CHINESE = frozenset("的是了们这那吗呢吧很没哪谁您她你说还让给对过們這嗎還說對過")
CODE, MIXED = "code", "mixed"
KNOWN_LANGUAGES = (
    "ar",
    "code",
    "de",
    "en",
    "eo",
    "es",
    "eu",
    "fr",
    "hi",
    "it",
    "ja",
    "ko",
    "pt",
    "ru",
    "zh",
)
_FEW_HAN = 4
_PROGRAM = re.compile(
    r"^\s*(def |class |import |from [\w.]+ import|return\b|for \w+ in |while |elif |else:|try:|(if|with) .*:\s*$|@\w)"
    r"|\w\(|\)\s*[.:\[]|\w\[|[=!<>+*/-]=|(?<![=<>!])=(?!=)|;\s*$|->|\w\.\w|\w_\w",
    re.MULTILINE,
)


def detect_language(text: str) -> str | None:
    """The main language: one of KNOWN_LANGUAGES, a script by its name (`thai`), `mixed`, or None where it cannot be told.

    The main script has more than half of the text, letters of dense scripts counted three times.
    """
    counts = scripts(text)
    if not counts:
        return None
    weights = Counter({script: n * (3 if script in _DENSE else 1) for script, n in counts.items()})
    for part in _KANA:
        weights["CJK"] += weights.pop(part, 0)
    script, most = weights.most_common(1)[0]
    if 2 * most <= weights.total():
        return MIXED
    if script == "LATIN":
        return CODE if _is_code(text) else _by_words(text)
    if script == "CJK":
        return _han(text, counts)
    return _OF_SCRIPT.get(script, script.lower())


def scripts(text: str) -> Counter[str]:
    """How many letters of each script a text has, by the first word of their Unicode names."""
    names = (unicodedata.name(c, "") for c in unicodedata.normalize("NFKC", text) if c.isalpha())
    return Counter(name.partition(" ")[0] for name in names if name)


def _han(text: str, counts: Mapping[str, int]) -> str | None:
    """Japanese where a tenth is kana; Chinese by its own characters, or where a sentence or much has no kana at all."""
    kana, han = sum(counts.get(part, 0) for part in _KANA), counts.get("CJK", 0)
    if kana >= 0.1 * (kana + han):
        return "ja"
    if kana == 0 and (han >= _FEW_HAN or any(c in _CHINESE or c in "。？！" for c in text)):
        return "zh"
    return None if kana == 0 else MIXED


def _by_words(text: str) -> str | None:
    """The Latin language with most common words and letters of its own; None where there is none, or two alike."""
    folded = unicodedata.normalize("NFC", text).casefold()
    words = Counter(re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", folded))
    scores = {
        name: sum(words[word] for word in known)
        + (len(_MARKS[name].findall(folded)) if name in _MARKS else 0)
        for name, known in _words().items()
    }
    best, other = sorted(scores, key=lambda name: -scores[name])[:2]
    return best if scores[best] > scores[other] else None


@cache
def _words() -> Mapping[str, frozenset[str]]:
    """Common words of the Latin languages."""
    text = (resources.files("saescope.control.evaluation") / "words.json").read_text(
        encoding="utf-8"
    )
    return {name: frozenset(words.split()) for name, words in json.loads(text).items()}


def _is_code(text: str) -> bool:
    """Whether there is a sign of a program for every five words."""
    return 5 * len(_PROGRAM.findall(text)) >= len(text.split())
