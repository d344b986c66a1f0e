"""Lines of text on a terminal, broken between words."""

import re
from collections.abc import Iterator

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from saescope.surfaces.cli.consoles import from_markup

# A number and its unit are one word.
_WORD = re.compile(r"\s*\S+(?:(?<=\d) (?:%|bytes|[kMG]i?B|s|ms)(?!\w)\S*)?")
_PART = re.compile(r"[^_/.,:-]+[_/.,:-]*|[_/.,:-]+")
_WIDEST_CHARACTER = 2


def print_line(console: Console, text: str | Text, style: str | None = None) -> None:
    """Print a line, with rich markup if it is a string, wrapped between words.

    A word wider than the console, such as a path, stays whole, so that it can be copied. Text in
    wide characters, which is written without spaces, breaks between characters.
    """
    rich_text = from_markup(text) if isinstance(text, str) else text
    for line in rich_text.split("\n", allow_blank=True):
        for part in line.divide(list(_breaks(line.plain, console.width))):
            part.rstrip()
            console.print(part, style=style, no_wrap=True, overflow="ignore", crop=False)


def folded(text: Text, width: int) -> Text:
    """Return a table cell's text in lines that fit the width, broken between words.

    A longer word breaks after punctuation (`my_long_/name`), or between characters.
    """
    lines = []
    for line in text.split("\n", allow_blank=True):
        for part in line.divide(list(_breaks(line.plain, width, fold=True))):
            part.rstrip()
            lines.append(part)
    return Text("\n").join(lines)


def _breaks(text: str, width: int, *, fold: bool = False) -> Iterator[int]:
    """Yield the indices at which a new line begins."""
    used = 0
    for start, piece in _pieces(text, width, fold):
        piece_width = cell_len(piece)
        if used and used + piece_width > width:
            spaces = len(piece) - len(piece.lstrip())
            yield start + spaces
            used, piece_width = 0, piece_width - spaces
        used += piece_width


def _pieces(text: str, width: int, fold: bool) -> Iterator[tuple[int, str]]:
    """Yield where each word starts, with the spaces before it, and the word.

    Words that do not fit a line come in pieces if they may break.
    """
    for word in _WORD.finditer(text):
        is_wide = cell_len(word[0]) > len(word[0])
        pieces = [word[0]]
        if cell_len(word[0].strip()) > width and (fold or is_wide):
            pieces = list(_parts(word[0], width))
        start = word.start()
        for piece in pieces:
            yield start, piece
            start += len(piece)


def _parts(word: str, width: int) -> Iterator[str]:
    """Yield a long word cut after its punctuation, and single characters where that is too long."""
    for part in _PART.findall(word):
        if cell_len(part) <= width:
            yield part
        else:
            yield from chop_cells(part, _WIDEST_CHARACTER)
