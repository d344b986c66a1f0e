"""Scripts whose words are written without spaces between them."""

import unicodedata
from functools import cache

# How Unicode begins the names of these scripts' letters.
_LETTER_NAMES = (
    "CJK",
    "IDEOGRAPHIC",
    "HIRAGANA",
    "KATAKANA",
    "HALFWIDTH KATAKANA",
    "BOPOMOFO",
    "THAI",
    "LAO",
    "KHMER",
    "MYANMAR",
    "TIBETAN",
)


@cache
def is_unspaced(character: str) -> bool:
    """Whether a character belongs to a script without spaces between words."""
    return unicodedata.name(character, "").startswith(_LETTER_NAMES)
