"""Which language a text is in, by its scripts and py3langid's statistics of byte sequences.

Knows 14 languages and program code. Digits and names alone are in no language. A language that
is not among those compared is taken for the nearest one (Asturian for Spanish).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from copy import copy
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

CODE, MIXED = "code", "mixed"
KNOWN_LANGUAGES = (
    "ar", "code", "de", "en", "eo", "es", "eu", "fr", "hi", "it", "ja", "ko", "pt", "ru", "zh",
)  # fmt: skip
# Languages that are told apart in each script.
_LANGUAGES_OF_SCRIPT: Mapping[str, tuple[str, ...]] = {
    "LATIN": (
        "de", "en", "eo", "es", "eu", "fr", "it", "pt",
        "af", "az", "ca", "cs", "cy", "da", "et", "fi", "ga", "hr", "hu", "id", "is", "la", "lt",
        "lv", "ms", "mt", "nl", "no", "pl", "ro", "sk", "sl", "sq", "sv", "sw", "tl", "tr", "vi",
    ),
    "CYRILLIC": ("ru",),
    "ARABIC": ("ar",),
    "DEVANAGARI": ("hi",),
}  # fmt: skip
# Languages so near to one of these that short texts look alike: found only if they are probable.
_NEIGHBOURS_OF_SCRIPT: Mapping[str, tuple[str, ...]] = {
    "LATIN": ("an", "gl"),
    "CYRILLIC": ("uk", "be", "bg", "sr", "mk", "kk", "ky", "mn", "ba", "tt"),
    "ARABIC": ("fa", "ur", "ps", "ug"),
    "DEVANAGARI": ("mr", "ne", "sa"),
}
_PROBABLE = 0.7
_LEAST_PROBABLE = 0.2  # below it, a text is in no language: names, single words
_KANA = ("HIRAGANA", "KATAKANA")
_DENSE_SCRIPTS = ("CJK", *_KANA, "HANGUL")
_DENSE_WEIGHT = 3  # a character of a dense script says about as much as three Latin letters
# Characters of common Chinese words that Japanese has rarely or never without kana beside them.
_CHINESE = frozenset("的是了们这那吗呢吧很没哪谁您她你说还让给对过們這嗎還說對過")
_SENTENCE_ENDS = frozenset("。？！")
_LEAST_KANA = 0.1  # share of kana in Japanese text
_FEW_HAN = 4
_CODE_SIGN = re.compile(
    r"^\s*(def |class |import |from [\w.]+ import|return\b|for \w+ in |while |elif |else:|try:"
    r"|(if|with) .*:\s*$|@\w)"
    # Calls, but not the "(s)" of an optional plural.
    r"|\w\((?!(?:s|es|e|n|en|j|k|ak)\))|\)\s*[:\[]|\)\.\w|\w\[|[=!<>+*/-]=|(?<![=<>!])=(?!=)"
    r"|[)}\]\"'];\s*$|->|[^\W\d]\.[^\W\d]|\w_\w",
    re.MULTILINE,
)
_WORDS_PER_SIGN = 5  # at most, in code


def detect_language(text: str) -> str | None:
    """The language with more than half of the text.

    One of KNOWN_LANGUAGES, the code of another language that is told apart from them (`nl`), a
    script's name if no known language uses it (`thai`), `mixed` if no script has more than half,
    or None if the language cannot be told.

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
        return CODE if _is_code(text) else _most_probable(text, script)
    if script == "CJK":
        return _han_language(text, counts)
    if script == "HANGUL":
        return "ko"
    if script in _LANGUAGES_OF_SCRIPT:
        return _most_probable(text, script)
    return script.lower()


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


def _most_probable(text: str, script: str) -> str | None:
    """The most probable language of a script; None if none stands out, as in names."""
    neighbours = _NEIGHBOURS_OF_SCRIPT[script]
    languages = _LANGUAGES_OF_SCRIPT[script]
    language, probability = _identifier((*languages, *neighbours)).classify(text)
    if language in neighbours and probability < _PROBABLE:
        language, probability = _identifier(languages).classify(text)
    return str(language) if probability >= _LEAST_PROBABLE else None


@cache
def _identifier(languages: tuple[str, ...]) -> "LanguageIdentifier":
    """An identifier of these languages."""
    identifier = copy(_all_languages())
    identifier.set_languages(languages)
    return identifier


@cache
def _all_languages() -> "LanguageIdentifier":
    """The identifier as its package has it; reading its model takes a third of a second."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _is_code(text: str) -> bool:
    """Whether there is a sign of a program at least every five words."""
    return _WORDS_PER_SIGN * len(_CODE_SIGN.findall(text)) >= len(text.split())
