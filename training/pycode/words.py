"""Identifier vocabulary of the code generator, drawn by Zipf's law, with a held-out part."""

import hashlib
import random
import re
from collections.abc import Sequence
from itertools import accumulate

_HELD_OUT_PERCENT = 6
_ZIPF_OFFSET = 6.0

_NOUNS = """
account action address agent alarm album amount anchor angle answer archive area argument arrow
article asset atom author badge balance banner barrier basket batch beacon bin block board body
book border bottle bound box branch bridge bucket budget buffer button cable cache calendar camera
candidate card cargo cell chain channel chapter chart chunk city client clock cloud cluster code
color column command comment company config contact content context contract coordinate corner
cost counter country coupon course cover credit crop cursor curve customer cycle dashboard date
deadline deck degree delay delta depth desk device digit direction discount disk distance district
document domain door draft driver edge effect element email employee engine entity entry epoch
error event example expense export factor family feature feed fee field figure file flag flight
folder font forecast form fraction frame friend fruit garden gate goal grade graph grid group
guest harbor header height hint holiday host hotel hour house icon image index ingredient invoice
island item job journey kernel key label lake lamp language layer leaf ledger length lesson letter
level library license limit line link location lock loss machine margin market mask match matrix
meal measure member memory menu message meter metric minute mirror mode model module moment
monitor month mountain movie neuron node note notice number object offer offset option orbit order
origin outcome owner packet page panel parcel parent parser partner passenger path patient pattern
payload payment peak pixel planet plant player plugin point policy port position post prefix price
priority prize probe process product profile project prompt province quantity query question queue
radius random rate ratio reading receipt recipe record region report request resource response
result reward river road robot room root route row rule salary sample scale schedule schema score
screen season seat section sector segment sensor sentence series session shape shelf ship shop
signal size sketch slot socket song source speed stage station status step stock storage store
storm street student style subject suffix survey symbol table tag target task tax teacher team
temperature template tensor term ticket tile timer title token tool topic total tower track trade
train tree trend trip truck tunnel user vector vehicle vendor version video village visitor
voltage volume vote wallet warehouse wave weather week weight wheel widget width window winner
word worker year zone
"""
_VERBS = """
add adjust align apply attach average balance bind build cancel check classify clean collect
combine compare compute connect convert copy count create decode deliver describe detect download
drain draw drop emit encode estimate evaluate expand extract fetch fill find flatten fold format
generate get guess handle hash insert inspect install invert join launch list load locate log make
mark merge move normalize notify open pack paint parse pick plot predict prepare print process
publish pull push rank read rebuild reduce refresh register remove rename render repair replace
reset resize resolve restore rotate run save scan schedule score select send set shift shuffle
skip solve sort split start stop store submit sum swap test trace transform trim update upload
validate visit walk wrap write
"""
_ADJECTIVES = """
active actual annual available average base best broken central cheap clean closed cold common
current daily deep default dense dirty early empty exact expected extra fast final first fixed
flat free fresh full global hidden high initial inner large last late latest left linear local
long low main manual maximal mean median minimal missing monthly native nested new next noisy
normal old open outer parallel partial pending previous primary public quick rare raw recent
remote right round safe second shared short simple slow small sorted sparse special stable strict
strong sunny tiny total unique upper urgent valid visible warm weak weekly wide
"""
_ROLES = """
Adapter Builder Cache Client Collector Controller Encoder Error Factory Handler Index Loader
Manager Monitor Parser Planner Pool Reader Record Registry Report Router Runner Server Service
State Store Tracker View Writer
"""


def stable_number(text: str) -> int:
    """Return a number for the text that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _ranked(words: str) -> list[str]:
    """Return the words in their fixed shuffled order, the most frequent first."""
    return sorted(set(words.split()), key=lambda word: stable_number(f"rank {word}"))


def _is_held_out(word: str) -> bool:
    """Say whether the word is kept for held-out prompts."""
    # With this prefix no word of a fixed call in the rules, such as `write`, is held out.
    return stable_number(f"held out 3 {word}") % 100 < _HELD_OUT_PERCENT


def plural(noun: str) -> str:
    """Return the English plural of a noun of the vocabulary."""
    if noun == "series":
        return noun
    if noun in ("leaf", "shelf"):
        return noun[:-1] + "ves"
    if noun.endswith(("s", "x", "ch", "sh")) and noun != "epoch":
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeou":
        return noun[:-1] + "ies"
    return noun + "s"


IDENTIFIER_WORDS = frozenset(f"{_NOUNS} {_VERBS} {_ADJECTIVES} {_ROLES.lower()}".split())
HELD_OUT_WORDS = frozenset(word for word in IDENTIFIER_WORDS if _is_held_out(word))
_HELD_OUT_FORMS = HELD_OUT_WORDS | {plural(word) for word in HELD_OUT_WORDS}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def has_held_out_word(text: str) -> bool:
    """Say whether any part of any name or string in the text is a held-out word."""
    return any(word.lower() in _HELD_OUT_FORMS for word in _WORD.findall(text))


class _Zipf:
    """One class of words with Zipf weights, and its held-out words beside it."""

    def __init__(self, words: str) -> None:
        ranked = _ranked(words)
        self._common: Sequence[str] = [
            word for word in ranked if word.lower() not in HELD_OUT_WORDS
        ]
        self._held_out: Sequence[str] = [word for word in ranked if word.lower() in HELD_OUT_WORDS]
        self._weights = list(
            accumulate(1 / (rank + _ZIPF_OFFSET) for rank in range(len(self._common)))
        )

    def draw(self, rng: random.Random, held_out_share: float) -> str:
        """Draw a common word, or with the given share a held-out one."""
        if self._held_out and rng.random() < held_out_share:
            return rng.choice(self._held_out)
        return rng.choices(self._common, cum_weights=self._weights)[0]


_CLASSES = {
    "noun": _Zipf(_NOUNS),
    "verb": _Zipf(_VERBS),
    "adjective": _Zipf(_ADJECTIVES),
    "role": _Zipf(_ROLES),
}


class Vocabulary:
    """Draws words and names for one snippet."""

    def __init__(self, rng: random.Random, held_out_share: float = 0.0) -> None:
        self._rng = rng
        self._held_out_share = held_out_share

    def word(self, word_class: str) -> str:
        """Draw one word of the class noun, verb, adjective or role."""
        return _CLASSES[word_class].draw(self._rng, self._held_out_share)

    def variable(self, many: bool) -> str:
        """Draw a snake_case variable name, in the plural for collections."""
        noun = self.word("noun")
        last = plural(noun) if many else noun
        kind = self._rng.random()
        if kind < 0.5:
            return last
        if kind < 0.8:
            return f"{self.word('adjective')}_{last}"
        return f"{self.word('noun')}_{last}"

    def function(self) -> str:
        """Draw a snake_case function name."""
        verb, noun = self.word("verb"), self.word("noun")
        endings = (
            noun,
            plural(noun),
            f"{self.word('adjective')}_{noun}",
            f"{noun}_{self.word('noun')}",
        )
        return f"{verb}_{self._rng.choice(endings)}"

    def class_name(self) -> str:
        """Draw a CamelCase class name."""
        parts = [self.word("noun").title(), self.word("role")]
        if self._rng.random() < 0.3:
            parts.insert(0, self.word("adjective").title())
        elif self._rng.random() < 0.25:
            parts.pop()
        return "".join(parts)
