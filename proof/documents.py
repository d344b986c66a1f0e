"""Which documents features are found on, and which are held out."""

import hashlib

from saescope.sources.prompts import Split

_DISCOVERY = 0.6


def part(document: str) -> Split:
    """A document's part: the same page is held out in every language."""
    first = int.from_bytes(hashlib.sha256(document.encode()).digest()[:4])
    return "discovery" if first < _DISCOVERY * 2**32 else "holdout"
