"""Text of tokens that hold parts of characters."""

import codecs
from collections.abc import Sequence


def whole_characters(pieces: Sequence[bytes]) -> list[str]:
    r"""Return the text of each piece of a UTF-8 text; the last piece of a character gets it all.

    Bytes that belong to no character are escaped.

    >>> whole_characters([b"\xe8\xb5", b"\xa4!", b"\xff"])
    ['', '赤!', '\\xff']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    last = len(pieces) - 1
    return [decoder.decode(piece, final=n == last) for n, piece in enumerate(pieces)]
