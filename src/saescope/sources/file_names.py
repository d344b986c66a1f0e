"""Names of sets and of files that others list, as names of files: none leaves its folder."""

import hashlib
import re
from pathlib import PurePosixPath

from saescope.errors import SourceError

# Of one name within a file name: systems take 255 bytes in all, with marks of unfinished files.
_BYTES = 100
_FORBIDDEN = re.compile(r'[/\\:*?"<>|\x7f]|[^\S ]')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def file_name_part(text: str) -> str:
    """A text as a part of a file name: itself, or if a system would not take that, with its hash.

    >>> file_name_part("english"), file_name_part("en/US")
    ('english', 'en_US-f9bc36b6')
    """
    data = text.encode("utf-8", "surrogatepass")
    if text.isprintable() and not _FORBIDDEN.search(text) and 0 < len(data) <= _BYTES:
        return text
    shown = "".join(c if c.isprintable() and not _FORBIDDEN.match(c) else "_" for c in text)
    start = shown.encode()[: _BYTES - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(data).hexdigest()[:8]}"


def check_inner_name(name: str, source: str) -> str:
    """The name of a file inside a folder, returned if it stays there.

    Raises SourceError, before anything is read, written or removed, for a name that a repository,
    an index or a manifest gives and that leads elsewhere or has control characters.
    """
    parts = PurePosixPath(name).parts
    leaves = (
        not parts
        or name.startswith("/")
        or ".." in parts
        or "\\" in name
        or _DRIVE.match(name) is not None
        or _CONTROL.search(name) is not None
        or name != "/".join(parts)
        or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts)
    )
    if leaves:
        raise SourceError(f"{source} names a file in another folder: {name!r:.200}: it is refused")
    return name


def check_hash(text: str, source: str, what: str) -> str:
    """A SHA-1 or SHA-256 in hexadecimal, returned; raises SourceError for any other text."""
    if not _HASH.fullmatch(text):
        raise SourceError(f"{source}: {what} is {text!r:.80}, not a hash in hexadecimal: refused")
    return text
