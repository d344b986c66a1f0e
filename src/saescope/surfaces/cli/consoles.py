"""Consoles that show any text as it is: nothing in it moves or colours the terminal.

Whatever is printed passes `SafeConsole.render`, the last step before styles become escape
sequences. There, control characters and changes of direction become visible (`visible`).
"""

import logging
from collections.abc import Iterable
from typing import Any, final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.segment import Segment
from rich.text import Text

from saescope.surfaces.visible import visible

# Private characters in the place of those that markup is made of. `visible` leaves no other
# private character in a text. rich's own escapes are ambiguous where texts are joined: of the
# tokens "[/" and "]", both harmless, it would make a tag.
_STAND_INS = {ord("["): "\ue000", ord("\\"): "\ue001"}
_ORIGINALS = {ord(stand_in): chr(code) for code, stand_in in _STAND_INS.items()}


def escape(text: str) -> str:
    """A text without control characters, to be put into markup, where it is not markup."""
    return visible(text).translate(_STAND_INS)


def from_markup(text: str) -> Text:
    """Markup as rich text; what cannot be parsed is shown as it is."""
    try:
        rich_text = Text.from_markup(text, emoji=False)
    except MarkupError:
        rich_text = Text(text)
    rich_text.plain = rich_text.plain.translate(_ORIGINALS)
    return rich_text


@final
class SafeConsole(Console):
    """A console for text of unknown origin; broken pipes are the caller's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Leave it to the caller: rich would exit as failed when `head` has read enough."""
        raise BrokenPipeError

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render to segments; the text of each is made visible, but for line breaks."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(_shown(segment.text), segment.style)

    def render_str(self, text: str, **options: Any) -> Text:
        """Parse markup; what cannot be parsed is shown as it is."""
        try:
            return super().render_str(text, **options)
        except MarkupError:
            return super().render_str(text, **{**options, "markup": False})


@final
class SafeLogRecord(logging.LogRecord):
    """What a library logs, such as a name in somebody's config, with control characters visible."""

    def getMessage(self) -> str:
        """The message."""
        return visible(super().getMessage())


def _shown(text: str) -> str:
    return "\n".join(map(visible, text.translate(_ORIGINALS).split("\n")))
