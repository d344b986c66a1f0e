"""A reply's text while it is generated: whole characters only, and nothing after a stop text."""

from collections.abc import Sequence
from typing import Any, final

_INCOMPLETE = "\ufffd"


@final
class ReplyText:
    """Turns tokens into pieces of text that can be sent at once.

    The pieces together are the decoded reply, up to the first of `stops`. A character that several
    tokens hold is in one piece, and what may be the beginning of a stop text waits.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._context = self._decoded = 0  # tokens: before the decoded ones, and before the rest
        self._waiting = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Return what can be sent now that this token has come."""
        if self.stopped:
            return ""
        self._ids.append(token)
        return self._release(self._new_text(at_end=False), at_end=False)

    def finish(self) -> str:
        """Return what is left at the reply's end."""
        if self.stopped:
            return ""
        return self._release(self._new_text(at_end=True), at_end=True)

    def _new_text(self, *, at_end: bool) -> str:
        """Decode the new tokens after a few old ones, since spaces depend on what is before."""
        old = self._decode(self._ids[self._context : self._decoded])
        both = self._decode(self._ids[self._context :])
        if both.endswith(_INCOMPLETE) and not at_end:
            return ""
        self._context, self._decoded = self._decoded, len(self._ids)
        return both[len(old) :]

    def _release(self, text: str, *, at_end: bool) -> str:
        text = self._waiting + text
        self._waiting = ""
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        if at_end:
            return text
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._waiting = text[len(text) - kept :]
        return text[: len(text) - kept]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text begin a stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
