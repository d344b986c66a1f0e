"""Fingerprints of files: what tells one from a changed one without reading 16 GB.

A file of up to 64 MiB is hashed whole (`sha256:`). Of a larger one, `parts-sha256:` covers all
headers and directories, every tensor under 1 MiB, and samples of every larger tensor. What lies
between the samples is not covered: only `whole_hash` tells whether two files are equal in every
byte. Fingerprints of earlier versions (`sampled-sha256:`) can still be compared.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from saescope.sources.file_cache import remembered
from saescope.sources.file_parts import Part, file_parts
from saescope.sources.regular_files import open_regular

_WHOLE_LIMIT = 64 * 2**20
_FULL_BYTES = 2**20
_SAMPLES, _SAMPLE_BYTES, _LEAST_SAMPLES = 8192, 4096, 8
_EARLIER_SAMPLES, _EARLIER_BYTES = 256, 16 * 2**10
WHOLE, PARTS, EARLIER = "sha256", "parts-sha256", "sampled-sha256"


def fingerprint(path: Path) -> str:
    """The fingerprint of a file; a large file that has not changed since is not read again."""
    if path.stat().st_size <= _WHOLE_LIMIT:
        return f"{WHOLE}:{_hash_whole(path)}"
    return f"{PARTS}:{remembered(path, PARTS, _hash_parts)}"


def fingerprint_like(path: Path, stored: str) -> str:
    """The fingerprint of a file in the scheme of a stored one, so that the two can be compared."""
    if scheme_of(stored) == EARLIER and path.stat().st_size > _WHOLE_LIMIT:
        return f"{EARLIER}:{_hash_as_earlier(path)}"
    return fingerprint(path)


def scheme_of(stored: str) -> str:
    """The scheme of a stored fingerprint: what stands before its digest."""
    return stored.partition(":")[0]


def whole_hash(path: Path, *, again: bool = False) -> str:
    """The SHA-256 of all bytes; of an unchanged large file the known one, unless `again`."""
    if again or path.stat().st_size <= _WHOLE_LIMIT:
        return _hash_whole(path)
    return remembered(path, WHOLE, _hash_whole)


def _hash_whole(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_parts(path: Path) -> str:
    parts = file_parts(path)
    size = path.stat().st_size
    n_large = sum(part.bytes > _FULL_BYTES for part in parts)
    n_samples = max(_LEAST_SAMPLES, _SAMPLES // max(1, n_large))
    digest = hashlib.sha256(f"{size} {len(parts)}\n".encode())
    with open_regular(path, buffering=0) as file:
        for part in _with_gaps(parts, size):
            digest.update(f"{part.start} {part.bytes} {part.in_full}\n".encode())
            for start, length in _read_ranges(part, n_samples):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _with_gaps(parts: Sequence[Part], size: int) -> Iterator[Part]:
    """Yield the parts in order, and what lies between them (headers, directories) in full."""
    end = 0
    for part in parts:
        if part.start > end:
            yield Part(end, part.start - end, in_full=True)
        yield part
        end = max(end, part.start + part.bytes)
    if size > end:
        yield Part(end, size - end, in_full=True)


def _read_ranges(part: Part, n_samples: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of what is read of a part: all of it, or evenly spaced samples."""
    if not part.in_full and part.bytes > max(_FULL_BYTES, n_samples * _SAMPLE_BYTES):
        last = part.bytes - _SAMPLE_BYTES
        for i in range(n_samples):
            yield part.start + last * i // (n_samples - 1), _SAMPLE_BYTES
        return
    for offset in range(0, part.bytes, _FULL_BYTES):
        yield part.start + offset, min(_FULL_BYTES, part.bytes - offset)


def _hash_as_earlier(path: Path) -> str:
    """The size and 256 samples of 16 KiB of the file, regardless of what it holds."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open_regular(path) as file:
        for i in range(_EARLIER_SAMPLES):
            file.seek((size - _EARLIER_BYTES) * i // (_EARLIER_SAMPLES - 1))
            digest.update(file.read(_EARLIER_BYTES))
    return digest.hexdigest()
