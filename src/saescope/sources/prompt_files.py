"""Rows of prompt files: .txt (one prompt per line), .jsonl, .json, .csv, .tsv and .parquet."""

import csv
import io
import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.errors import PromptError, first_line
from saescope.sources.chats import HALF_SURROGATE, has_half_surrogates
from saescope.sources.machine import show_bytes
from saescope.sources.mistaken import refuse_lfs_pointer
from saescope.sources.regular_files import (
    MOST_TEXT_BYTES,
    check_regular,
    open_regular,
    read_bytes,
)
from saescope.strict_json import from_json

_NAMES = ("id", "pair", "set", "label")
COLUMNS = (
    *("text", "prompt", "messages", "conversations", "conversation", "system", "split"),
    *_NAMES,
)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What the rows of any Parquet file may take, and how much more than the file's own bytes.
_FREE_BYTES, _MOST_GROWTH = 2**27, 50
_BATCH_ROWS, _ROW_BYTES = 256, 64
_DELIMITERS = ",;\t|"
_csv_limit = threading.Lock()

NumberedRow = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class PromptRow:
    """One row of a prompt file; `number` is 1-based, `location` is `FILE:NUMBER`."""

    values: Mapping[str, Any]
    number: int
    location: str

    def string(self, key: str) -> str | None:
        """Return a string, also from a number that is a name; raises PromptError otherwise."""
        value = self.values.get(key)
        if key in _NAMES and isinstance(value, int | float) and not isinstance(value, bool):
            value = _name_of_number(value)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.error(f"`{key}` is a {type(value).__name__}, not a string")
        if has_half_surrogates(value):
            raise self.error(f"`{key}` has {HALF_SURROGATE}")
        return value

    def objects(self, key: str) -> list[Any] | None:
        """Return a non-empty list, in CSV written as JSON; raises PromptError otherwise."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                value = from_json(value)
            except ValueError as error:
                raise self.error(f"`{key}` is not JSON: {error}") from error
        if not isinstance(value, list) or not value:
            raise self.error(f"`{key}` is not a non-empty list")
        return value

    def error(self, reason: str) -> PromptError:
        """Return a PromptError that names this row's location."""
        return PromptError(f"{self.location}: {reason}")


def _name_of_number(value: int | float) -> str | None:
    """Return 7 for 7.0, which stands in tables with missing values; None for a missing value."""
    if isinstance(value, float) and math.isnan(value):
        return None
    is_whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if is_whole else str(value)


def read_rows(path: Path) -> Iterator[PromptRow]:
    """Yield the rows of a prompt file; raises PromptError, with file and line, if unreadable."""
    for number, values in FILE_TYPES[path.suffix](path):
        yield PromptRow(values, number, f"{path}:{number}")


def is_json_array(path: Path) -> bool:
    """Return whether a file begins as a JSON array does."""
    try:
        with open_regular(path) as file:
            beginning: bytes = file.read(1024)
    except OSError:
        return False
    return beginning.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"[")


def read_text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a UTF-8 file's non-blank lines with 1-based numbers, without byte-order mark."""
    refuse_lfs_pointer(path, PromptError)
    lines = _read_bytes(path).removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    for number, line in enumerate(lines, 1):
        text = _decode(line, f"{path}:{number}").removesuffix("\r")
        if text.strip():
            yield number, text


def _read_bytes(path: Path) -> bytes:
    try:
        return read_bytes(path, MOST_TEXT_BYTES)
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}") from error


def _decode(line: bytes, location: str) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start
        raise PromptError(
            f"{location}: not UTF-8 (byte {position}): save the file as UTF-8"
        ) from error
    if "\0" in text:
        raise PromptError(f"{location}: has a NUL character: save the file as UTF-8 text")
    return text


def _txt_rows(path: Path) -> Iterator[NumberedRow]:
    for number, line in read_text_lines(path):
        yield number, {"text": line}


def _jsonl_rows(path: Path) -> Iterator[NumberedRow]:
    for number, line in read_text_lines(path):
        row = _parse_json(line, f"{path}:{number}")
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise PromptError(f"{path}:{number}: a {kind}, not an object with text or messages")
        yield number, row


def _json_rows(path: Path) -> Iterator[NumberedRow]:
    """Yield the objects or texts of an array with their 1-based numbers, or JSON lines."""
    if not is_json_array(path):
        yield from _jsonl_rows(path)
        return
    # Lines are decoded one by one, so that an error has its line.
    text = "\n".join(line for _, line in read_text_lines(path))
    for number, row in enumerate(_parse_json(text, str(path)), 1):
        if not isinstance(row, dict | str):
            kind = type(row).__name__
            raise PromptError(f"{path}:{number}: a {kind}, not an object with text or messages")
        yield number, {"text": row} if isinstance(row, str) else row


def _parse_json(text: str, location: str) -> Any:
    try:
        return from_json(text)
    except ValueError as error:
        raise PromptError(f"{location}: not JSON: {error}") from error


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    lines = list(read_text_lines(path))  # refuses bytes that are not UTF-8, with their line
    if not lines:
        return
    text = _read_bytes(path).removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    reader = csv.DictReader(
        io.StringIO(text, newline=""), strict=True, delimiter=_delimiter(lines[0][1])
    )
    with _cells_of_any_length(text):
        try:
            rows = [(reader.line_num, cells) for cells in reader]
        except csv.Error as error:
            raise PromptError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from error
    for number, cells in rows:
        if None in cells or None in cells.values():
            raise PromptError(f"{path}:{number}: has not as many cells as the header")
        yield number, {column.strip(): cell for column, cell in cells.items() if cell != ""}


def _delimiter(header: str) -> str:
    """Return the character between the names of a header: the one that gives most known columns."""

    def known_columns(delimiter: str) -> int:
        return sum(name.strip(' "') in COLUMNS for name in header.split(delimiter))

    return max(_DELIMITERS, key=known_columns)


@contextmanager
def _cells_of_any_length(text: str) -> Iterator[None]:
    """Within the context, cells may be longer than the csv module's limit of 131,072 characters."""
    with _csv_limit:
        before = csv.field_size_limit()
        csv.field_size_limit(max(before, len(text)))
        try:
            yield
        finally:
            csv.field_size_limit(before)


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_lfs_pointer(path, PromptError)
    try:
        check_regular(path)
        file = pq.ParquetFile(path.absolute())
        schema = file.schema_arrow
        columns = [name for name in schema.names if name in COLUMNS]
        rows = _rows_within_limit(file, columns, path.stat().st_size)
    except (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        reason = first_line(error)
        raise PromptError(f"{path}: not a readable Parquet file: {reason}") from error
    class_names = _class_names(schema.metadata or {})
    for number, cells in enumerate(rows, 1):
        present = {column: cell for column, cell in cells.items() if cell is not None}
        for column, names in class_names.items():
            value = present.get(column)
            if isinstance(value, int) and 0 <= value < len(names):
                present[column] = names[value]
        yield number, present


def _rows_within_limit(file: Any, columns: list[str], file_bytes: int) -> list[dict[str, Any]]:
    """Return all rows; raises ValueError if they are far more than the file has bytes for.

    Equal values are stored once: a few kilobytes can hold a text a million times.
    """
    limit = _FREE_BYTES + _MOST_GROWTH * file_bytes
    said = sum(
        file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups)
    )
    rows: list[dict[str, Any]] = []
    n_bytes = 0
    if said <= limit:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
            rows += batch.to_pylist()
            texts = (value for row in rows[-batch.num_rows :] for value in row.values())
            n_chars = sum(len(value) for value in texts if isinstance(value, str))
            n_bytes += max(batch.nbytes, n_chars) + batch.num_rows * _ROW_BYTES
            if n_bytes > limit:
                break
    if max(said, n_bytes) > limit:
        raise ValueError(f"its rows take more than {show_bytes(limit)}: split it")
    return rows


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """Return the names that Hugging Face's data sets give to the integers of a column."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in features[column]["names"]]
            for column in _NAMES
            if features.get(column, {}).get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


FILE_TYPES = {
    ".txt": _txt_rows,
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
