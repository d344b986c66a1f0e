"""Rows of prompt files: .txt (one prompt per line), .jsonl, .csv and .parquet."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saescope.errors import PromptError, first_line

COLUMNS = ("text", "messages", "set", "id", "pair", "split")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

NumberedRow = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True)
class PromptRow:
    """One row of a prompt file; `number` is 1-based, `location` is `FILE:NUMBER`."""

    values: Mapping[str, Any]
    number: int
    location: str

    def string(self, key: str) -> str | None:
        """Return a string, also from an integer `id` or `pair`; raises PromptError otherwise."""
        value = self.values.get(key)
        if value is None:
            return None
        if key in ("id", "pair") and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise self.error(f"`{key}` is a {type(value).__name__}, not a string")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(f"`{key}` has half of a surrogate pair, which no tokenizer can read")
        return value

    def objects(self, key: str) -> list[Any] | None:
        """Return a non-empty list, in CSV written as JSON; raises PromptError otherwise."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self.error(f"`{key}` is not JSON: {error}") from error
        if not isinstance(value, list) or not value:
            raise self.error(f"`{key}` is not a non-empty list")
        return value

    def error(self, reason: str) -> PromptError:
        """Return a PromptError that names this row's location."""
        return PromptError(f"{self.location}: {reason}")


def read_rows(path: Path) -> Iterator[PromptRow]:
    """Yield the rows of a prompt file; raises PromptError, with file and line, if unreadable."""
    read = _READERS[path.suffix]
    for number, values in read(path):
        yield PromptRow(values, number, f"{path}:{number}")


def read_text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a UTF-8 file's non-blank lines with 1-based numbers, without byte-order mark."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}") from error
    lines = data.removeprefix(_BYTE_ORDER_MARK).split(b"\n")
    for number, line in enumerate(lines, 1):
        text = _decode(line, f"{path}:{number}").removesuffix("\r")
        if text.strip():
            yield number, text


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
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise PromptError(f"{path}:{number}: a {kind}, not an object with text or messages")
        yield number, row


def _csv_rows(path: Path) -> Iterator[NumberedRow]:
    lines = list(read_text_lines(path))  # refuses bytes that are not UTF-8, with their line
    if not lines:
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for cells in reader:
                number = reader.line_num
                if None in cells or None in cells.values():
                    raise PromptError(f"{path}:{number}: has not as many cells as the header")
                yield number, {column: cell for column, cell in cells.items() if cell != ""}
        except csv.Error as error:
            raise PromptError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        stored = pq.read_schema(path).names
        columns = [name for name in stored if name in COLUMNS]
        rows = pq.ParquetFile(path).read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = first_line(error)
        raise PromptError(f"{path}: not a readable Parquet file: {reason}") from error
    for number, cells in enumerate(rows, 1):
        yield number, {column: cell for column, cell in cells.items() if cell is not None}


_READERS = {
    ".txt": _txt_rows,
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
