"""The random grammar of Python snippets: expands the rules of the sibling modules.

Each symbol has a list of rules: one per line, or, if a rule has several lines, between lines
`---`. A slot `<symbol>` is filled by a rule of that symbol. `<symbol:a>` also remembers the
result, in this rule and in the rules below it, and `<=a>` repeats it. A symbol with a `_leaf`
twin falls back to it as nesting grows; a `_base` twin is what may stand before a dot or a
bracket. `<v_num>` is a number variable in scope, `<n_num>` a new one, which enters the scope on
the next line. Rules named `elem`, `elem_num`, `elem_text`, `plain_text`, `pick` and `pred` use a
remembered loop variable `v`. A slot alone on a line may yield several lines, which all take that
line's indent.
"""

import random
import re
from collections.abc import Callable
from textwrap import indent

from .atoms import ATOM_RULES
from .containers import CONTAINER_RULES
from .definitions import DEFINITION_RULES
from .expressions import EXPRESSION_RULES
from .statements import STATEMENT_RULES
from .words import Vocabulary, plural

_SLOT = re.compile(r"<(=?)(\w+)(?::([a-z]+))?>")
_LEAF_CHANCES = (0.0, 0.3, 0.75, 0.95)
_MAX_BLOCKS = 2
_BLOCK_SYMBOLS = ("loop", "branch", "guarded", "context")
_KNOWN_NAME_CHANCE = 0.8
_COLLECTION_KINDS = ("list", "map")


def _rules(text: str) -> list[str]:
    """Split the text of a symbol into its rules."""
    text = text.strip("\n")
    return text.split("\n---\n") if "\n---\n" in text else text.split("\n")


_GRAMMAR = {
    symbol: _rules(text)
    for symbol, text in (
        ATOM_RULES | EXPRESSION_RULES | CONTAINER_RULES | STATEMENT_RULES | DEFINITION_RULES
    ).items()
}


class Snippet:
    """Expands the grammar once, keeping the names in scope."""

    def __init__(self, rng: random.Random, vocabulary: Vocabulary) -> None:
        self._rng = rng
        self._vocabulary = vocabulary
        self._scope: list[tuple[str, str]] = []
        self._pending: list[tuple[str, str]] = []
        self._blocks = 0
        self._terminals: dict[str, Callable[[], str]] = {
            "noun": lambda: vocabulary.word("noun"),
            "plural": lambda: plural(vocabulary.word("noun")),
            "verb": lambda: vocabulary.word("verb"),
            "adjective": lambda: vocabulary.word("adjective"),
            "verbs": lambda: plural(vocabulary.word("verb")),
            "third": lambda: plural(vocabulary.word("verb")).capitalize(),
            "noun_title": lambda: vocabulary.word("noun").title(),
            "upper": lambda: vocabulary.word("noun").upper(),
            "class": vocabulary.class_name,
            "func": vocabulary.function,
            "empty": str,
        }

    def text(self) -> str:
        """Return one whole snippet."""
        return self._expand("snippet", 0, {})

    def _expand(self, symbol: str, depth: int, labels: dict[str, str]) -> str:
        """Fill one symbol by a terminal, a variable or a random rule."""
        if symbol in self._terminals:
            return self._terminals[symbol]()
        kind = symbol[2:]
        if symbol.startswith("v_") and symbol not in _GRAMMAR:
            return self._known_name(kind)
        if symbol.startswith("n_"):
            return self._new_name(kind)
        rule = self._rng.choice(_GRAMMAR[self._or_leaf(symbol, depth)])
        frame = dict(labels)
        if "\n" not in rule:
            return self._line(rule, depth + (f"{symbol}_leaf" in _GRAMMAR), frame)
        return self._lines(rule, symbol, frame)

    def _or_leaf(self, symbol: str, depth: int) -> str:
        """Return the symbol, or its leaf twin when the nesting is deep enough."""
        leaf = f"{symbol}_leaf"
        if leaf not in _GRAMMAR:
            return symbol
        if symbol == "body":
            return leaf if self._blocks >= _MAX_BLOCKS else symbol
        chance = _LEAF_CHANCES[depth] if depth < len(_LEAF_CHANCES) else 1.0
        return leaf if self._rng.random() < chance else symbol

    def _lines(self, rule: str, symbol: str, frame: dict[str, str]) -> str:
        """Fill a rule of several lines; names made inside a function or class stay inside."""
        outer_scope = list(self._scope)
        self._blocks += symbol in _BLOCK_SYMBOLS
        lines = []
        for line in rule.split("\n"):
            code = line.lstrip()
            filled = self._line(code, 0, frame)
            self._scope += self._pending
            self._pending.clear()
            lines.append(indent(filled, line[: len(line) - len(code)]))
        self._blocks -= symbol in _BLOCK_SYMBOLS
        if symbol in ("function", "class_block"):
            self._scope = outer_scope
        return "\n".join(lines)

    def _line(self, line: str, depth: int, frame: dict[str, str]) -> str:
        """Fill the slots of one line, the remembered ones first."""
        for _, symbol, label in _SLOT.findall(line):
            if label:
                frame[label] = self._expand(symbol, depth, frame)

        def fill(slot: re.Match[str]) -> str:
            repeated, symbol, label = slot.groups()
            if repeated or label:
                return frame[label or symbol]
            return self._expand(symbol, depth, frame)

        return _SLOT.sub(fill, line)

    def _known_name(self, kind: str) -> str:
        """Return a variable of the kind, most often the latest ones in scope."""
        known = [name for known_kind, name in self._scope if known_kind == kind]
        if known and self._rng.random() < _KNOWN_NAME_CHANCE:
            return self._rng.choice(known[-3:])
        return self._vocabulary.variable(many=kind in _COLLECTION_KINDS)

    def _new_name(self, kind: str) -> str:
        """Return a name that is not in scope yet and note it for the next line."""
        taken = {name for _, name in self._scope + self._pending}
        while True:
            name = self._fresh_name(kind)
            if name not in taken:
                self._pending.append((kind, name))
                return name

    def _fresh_name(self, kind: str) -> str:
        """Draw a name that suits the kind."""
        if kind == "func":
            return self._vocabulary.function()
        if kind == "bool":
            verb = self._rng.choice(("is", "has", "use", "was"))
            return f"{verb}_{self._vocabulary.word('adjective')}"
        if kind == "it" and self._rng.random() < 0.5:
            return self._rng.choice("abcdeghijkmnpqrstuvwxyz")
        return self._vocabulary.variable(many=kind in _COLLECTION_KINDS)
