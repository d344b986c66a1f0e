"""Which language a text is in, by its scripts and a few common words.

Knows 14 languages and program code. Digits and names alone are in no language. A language that
shares script and words with a known one is taken for it (Marathi for Hindi, Persian for Arabic).
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources

CODE, MIXED = "code", "mixed"
KNOWN_LANGUAGES = (
    "ar", "code", "de", "en", "eo", "es", "eu", "fr", "hi", "it", "ja", "ko", "pt", "ru", "zh",
)  # fmt: skip
# Scripts that only one of the known languages uses.
_LANGUAGE_OF_SCRIPT: Mapping[str, str] = {
    "HANGUL": "ko",
    "DEVANAGARI": "hi",
    "CYRILLIC": "ru",
    "ARABIC": "ar",
}
_KANA = ("HIRAGANA", "KATAKANA")
_DENSE_SCRIPTS = ("CJK", *_KANA, "HANGUL")
_DENSE_WEIGHT = 3  # a character of a dense script says about as much as three Latin letters
# Letters and endings that the other Latin languages have rarely or never.
_MARKS: Mapping[str, re.Pattern[str]] = {
    "eo": re.compile(r"[ĉĝĥĵŝŭ]|(?:oj|aj|ojn|ajn)\b"),
    "eu": re.compile(
        r"tx|(?:tzen|aren|ariak|egian|egiko|etan|ekin|zuela|tela|nuen|zuen|zuten|tuko|riko)\b"
    ),
    "de": re.compile("ß"),
    "es": re.compile("[ñ¿¡]"),
    "pt": re.compile("[ãõ]"),
}
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
# Characters of common Chinese words that Japanese has rarely or never without kana beside them.
_CHINESE = frozenset("的是了们这那吗呢吧很没哪谁您她你说还让给对过們這嗎還說對過")
_SENTENCE_ENDS = frozenset("。？！")
_LEAST_KANA = 0.1  # share of kana in Japanese text
_FEW_HAN = 4
_CODE_SIGN = re.compile(
    r"^\s*(def |class |import |from [\w.]+ import|return\b|for \w+ in |while |elif |else:|try:"
    r"|(if|with) .*:\s*$|@\w)"
    r"|\w\(|\)\s*[.:\[]|\w\[|[=!<>+*/-]=|(?<![=<>!])=(?!=)|;\s*$|->|\w\.\w|\w_\w",
    re.MULTILINE,
)
_WORDS_PER_SIGN = 5  # at most, in code


def detect_language(text: str) -> str | None:
    """The language with more than half of the text.

    One of KNOWN_LANGUAGES, a script's name if no known language uses it (`thai`), `mixed` if no
    script has more than half, or None if the language cannot be told.

    >>> from saescope.judges import detect_language
    >>> detect_language("The hill is behind the house."), detect_language("丘があります。")
    ('en', 'ja')
    >>> print(detect_language("42"))
    None
    """
    counts = script_counts(text)
    if not counts:
        return None
    weights = _script_weights(counts)
    script, weight = weights.most_common(1)[0]
    if 2 * weight <= weights.total():
        return MIXED
    if script == "LATIN":
        return CODE if _is_code(text) else _latin_language(text)
    if script == "CJK":
        return _han_language(text, counts)
    return _LANGUAGE_OF_SCRIPT.get(script, script.lower())


def script_counts(text: str) -> Counter[str]:
    """Letters per script, which is the first word of a letter's Unicode name."""
    letters = [c for c in unicodedata.normalize("NFKC", text) if c.isalpha()]
    names = [unicodedata.name(letter, "") for letter in letters]
    return Counter(name.partition(" ")[0] for name in names if name)


def _script_weights(counts: Counter[str]) -> Counter[str]:
    """Counts with dense scripts weighted, kana counted as CJK."""
    weights = Counter(counts)
    for script in _DENSE_SCRIPTS:
        weights[script] *= _DENSE_WEIGHT
    for script in _KANA:
        weights["CJK"] += weights.pop(script)
    return weights


def _han_language(text: str, counts: Counter[str]) -> str | None:
    """Japanese if a tenth is kana; Chinese if there is none and the text is long enough to tell."""
    kana = sum(counts[script] for script in _KANA)
    han = counts["CJK"]
    if kana >= _LEAST_KANA * (kana + han):
        return "ja"
    if kana:
        return MIXED
    if han >= _FEW_HAN or not _CHINESE.isdisjoint(text) or not _SENTENCE_ENDS.isdisjoint(text):
        return "zh"
    return None


def _latin_language(text: str) -> str | None:
    """The language with the most common words and marks; None if there are none, or two tie."""
    folded = unicodedata.normalize("NFC", text).casefold()
    words = Counter(_WORD.findall(folded))
    scores: Counter[str] = Counter()
    for language, common_words in _common_words().items():
        scores[language] = sum(words[word] for word in common_words)
        if language in _MARKS:
            scores[language] += len(_MARKS[language].findall(folded))
    (best, score), (_, next_score) = scores.most_common(2)
    return best if score > next_score else None


@cache
def _common_words() -> Mapping[str, frozenset[str]]:
    """Common words of the Latin languages."""
    file = resources.files("saescope.control.evaluation") / "words.json"
    words: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return {language: frozenset(line.split()) for language, line in words.items()}


def _is_code(text: str) -> bool:
    """Whether there is a sign of a program at least every five words."""
    return _WORDS_PER_SIGN * len(_CODE_SIGN.findall(text)) >= len(text.split())
