"""A run's table files, read only if they are regular, whole, and as the manifest says.

The SHA-256 of a table is computed when the process first reads it. While the file stays the same
by its inode, size and times, later reads skip that.
"""

import hashlib
import os
import time
from collections.abc import Collection, Hashable
from pathlib import Path
from typing import BinaryIO, NamedTuple, final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from saescope.sources.regular_files import UnreadableFileError, check_regular, open_regular

_MAGIC = b"PAR1"  # at both ends of a Parquet file
_LEAST_BYTES = 12
_CHUNK_BYTES = 2**20
# Run-length encoding lets a few bytes stand for a billion rows. Tables of runs shrink by 2 to 20.
_SMALL = 256 * 2**20
_MOST_RATIO = 64
_BYTES_PER_VALUE = 8
# A file that changed so recently may change again within the same tick of its clock.
_SETTLED_NS = 100_000_000
_MOST_REMEMBERED = 10_000
_remembered: set[Hashable] = set()


@final
class TableDamage(Exception):
    """Why a table cannot be used, as the rest of a sentence about it: `is missing`."""


class TableRecord(NamedTuple):
    """What a manifest says of a table: its SHA-256, and its size (None in earlier versions)."""

    sha256: str
    size: int | None


class ReadTable(NamedTuple):
    """A table, and a key that is None if its file was modified a moment ago.

    Equal keys mean the same bytes.
    """

    table: pa.Table
    key: Hashable


def check_file(path: Path, record: TableRecord) -> None:
    """Raise TableDamage unless there is a regular file of the recorded size; reads nothing."""
    try:
        check_regular(path)
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise TableDamage(_reason(error)) from error
    _check_size(size, record)


def check_bytes(path: Path, record: TableRecord) -> None:
    """Raise TableDamage unless the file's size and SHA-256 are as recorded."""
    try:
        with open_regular(path) as file:
            _check_hash(file, record)
    except (OSError, ValueError) as error:
        raise TableDamage(_reason(error)) from error


def read_table(
    path: Path, record: TableRecord | None, names: Collection[str] | None = None
) -> ReadTable:
    """Read a table whose SHA-256 is as recorded, or whatever is there if `record` is None.

    With `names`, only these columns of it are read, in the file's order. Raises TableDamage.
    """
    try:
        with open_regular(path) as file:
            key = _identity(file) if record is None else _check_hash(file, record)
            return ReadTable(_parse(file, names), key)
    except (OSError, ValueError) as error:
        raise TableDamage(_reason(error)) from error


def is_remembered(key: Hashable) -> bool:
    """Return whether a check of these bytes has passed before in this process."""
    return key in _remembered


def remember(key: Hashable) -> None:
    """Note that a check has passed."""
    if len(_remembered) >= _MOST_REMEMBERED:
        _remembered.clear()
    _remembered.add(key)


def forget() -> None:
    """Let every check be made again, as in a new process."""
    _remembered.clear()


def _check_hash(file: BinaryIO, record: TableRecord) -> Hashable:
    _check_size(os.fstat(file.fileno()).st_size, record)
    identity = _identity(file)
    key = None if identity is None else (identity, record.sha256)
    if key is not None and is_remembered(key):
        return key
    _check_ends(file)  # before a file that only claims to be large is read
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
    file.seek(0)
    if digest.hexdigest() != record.sha256:
        raise TableDamage("was modified: its SHA-256 differs from the manifest")
    if key is not None:
        remember(key)
    return key


def _check_size(size: int, record: TableRecord) -> None:
    if record.size is not None and size != record.size:
        raise TableDamage(f"was modified: it has {size:,} bytes, the manifest says {record.size:,}")


def _identity(file: BinaryIO) -> Hashable:
    """Return what changes when the file does; None if it changed a moment ago."""
    status = os.fstat(file.fileno())
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) < _SETTLED_NS:
        return None
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _check_ends(file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    ends = b""
    if size >= _LEAST_BYTES:
        ends = file.read(len(_MAGIC))
        file.seek(-len(_MAGIC), os.SEEK_END)
        ends += file.read(len(_MAGIC))
        file.seek(0)
    if ends != 2 * _MAGIC:
        raise TableDamage("is damaged: it is no whole Parquet file")


def _parse(file: BinaryIO, names: Collection[str] | None) -> pa.Table:
    """Return the table in a file, if its values fit their types and its size."""
    _check_ends(file)
    limit = max(_SMALL, _MOST_RATIO * os.fstat(file.fileno()).st_size)
    try:
        schema = pq.ParquetFile(file).schema_arrow
        read = [name for name in schema.names if names is None or name in names]
        texts = [name for name in read if pa.types.is_string(schema.field(name).type)]
        # A long string that occurs a million times is stored, and here read, once.
        opened = pq.ParquetFile(file, read_dictionary=texts)
        _refuse_larger(_declared_bytes(opened.metadata), limit)
        table = opened.read(None if names is None else read)
        for name in texts:
            _refuse_larger(_text_bytes(table[name]), limit)
        index_of = {name: index for index, name in enumerate(table.column_names)}
        for name in texts:
            table = table.set_column(index_of[name], name, table[name].cast(pa.string()))
        table.validate(full=True)
    except (pa.ArrowException, MemoryError, OverflowError, KeyError) as error:
        raise TableDamage("is damaged: its Parquet content cannot be read") from error
    return table


def _declared_bytes(metadata: pq.FileMetaData) -> int:
    declared = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(metadata.num_columns):
            column = row_group.column(index)
            values = max(column.num_values, row_group.num_rows)
            declared += max(column.total_uncompressed_size, values * _BYTES_PER_VALUE)
    return declared


def _text_bytes(column: pa.ChunkedArray) -> int:
    total = 0
    for chunk in column.chunks:
        lengths = pc.take(pc.binary_length(chunk.dictionary), chunk.indices)
        total += pc.sum(lengths.cast(pa.int64())).as_py() or 0
    return total


def _refuse_larger(size: int, limit: int) -> None:
    if size > limit:
        raise TableDamage(f"is damaged: its content would take {size:,} bytes")


def _reason(error: Exception) -> str:
    match error:
        case FileNotFoundError() | NotADirectoryError():
            return "is missing"
        case UnreadableFileError():
            return f"is damaged: {error}"
        case OSError():
            return f"cannot be read: {error.strerror or error}"
        case _:
            return f"cannot be read: {error}"
