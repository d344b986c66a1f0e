"""Prompts and prompt sets: read, label, pair, split, fingerprint. Knows no tokenizer and no model."""

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from saescope.errors import PromptError

Split = Literal["discovery", "holdout"]
DISCOVERY_SHARE = 0.6
_SPLIT_WORDS: Mapping[str, Split] = {
    "discovery": "discovery", "train": "discovery",
    "holdout": "holdout", "confirmation": "holdout", "validation": "holdout", "test": "holdout",
}  # fmt: skip
_FIELDS = ("text", "messages", "set", "id", "pair", "split")
DEFAULT_BUNDLE = "languages"
BUNDLES: Mapping[str, str] = {
    DEFAULT_BUNDLE: "prompts.jsonl",
    "conlangs": "conlangs.jsonl",
    "requests": "organism/prompts.jsonl",
    "neutral": "organism/neutral.jsonl",
}


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """A text or a chat, in one set; `pair` names what it says, `split` the part it is kept for."""

    id: str
    set: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    pair: str | None = None
    split: Split | None = None

    @property
    def display_text(self) -> str:
        """The text, or the chat's turns on one line."""
        if self.text is not None:
            return self.text
        return " ".join(f"[{m.role}] {m.content}" for m in self.messages or ())


@dataclass(frozen=True)
class PromptSet:
    """A named group of prompts."""

    name: str
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)


def fingerprint(sets: Iterable[PromptSet]) -> str:
    """SHA-256 over every field of every prompt, in order."""
    text = json.dumps(
        [[s.name, [asdict(p) for p in s.prompts]] for s in sets], ensure_ascii=False, sort_keys=True
    )
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def read_prompts(path: str | Path) -> tuple[PromptSet, ...]:
    """Prompt sets from a folder (a file a set) or from one .jsonl, .csv or .parquet with a `set` column.

    The words `languages` and `conlangs`, where no such path exists, stand for the bundled sets; `+` joins several
    places, as in `languages+my/prompts`. Raises PromptError with file and line for anything unreadable, a duplicate
    id, a set in two places, or an empty set.
    """
    parts = _parts(str(path))
    if len(parts) > 1 and "" in parts:
        raise PromptError(
            f"{path}: a '+' stands between two prompt sets, as in {'+'.join(BUNDLES)}"
        )
    read = [_read_part(part) for part in parts]
    where: dict[str, str] = {}
    for part, sets in zip(parts, read, strict=True):
        for one in sets:
            if one.name in where:
                raise PromptError(
                    f"{where[one.name]} and {part} both have a set {one.name!r}: rename or drop one"
                )
            where[one.name] = part
    return _group(prompt for sets in read for one in sets for prompt in one.prompts)


def bundled_prompts(name: str = DEFAULT_BUNDLE) -> tuple[PromptSet, ...]:
    """The sets that come with saescope: `languages` (and code), which the embedded pair knows, or `conlangs`.

    Raises PromptError for another name.
    """
    if name not in BUNDLES:
        raise PromptError(f"no prompt sets {name!r} come with saescope: {' or '.join(BUNDLES)}")
    with resources.as_file(resources.files("saescope.demo") / BUNDLES[name]) as path:
        return _group(_read_file(path, default_set=None))


def _parts(text: str) -> list[str]:
    """What `+` joins; a path that exists may have a plus in its name."""
    if _exists(text) or "+" not in text:
        return [text]
    words = text.split("+")
    for n in range(len(words) - 1, 0, -1):
        if _exists(first := "+".join(words[:n])):
            return [first, *_parts("+".join(words[n:]))]
    return [words[0], *_parts("+".join(words[1:]))]


def _exists(part: str) -> bool:
    return bool(part) and Path(part).expanduser().exists()


def _read_part(part: str) -> tuple[PromptSet, ...]:
    path = Path(part).expanduser()
    if path.is_dir():
        files = sorted(
            p
            for p in path.iterdir()
            if p.suffix in (".txt", ".jsonl") and not p.name.startswith(".")
        )
        if not files:
            raise PromptError(
                f"{path} has no NAME.txt or NAME.jsonl: one file a set, a prompt a line"
            )
        _refuse_same_stem(files)
        return _group(p for file in files for p in _read_file(file, default_set=file.stem))
    if path.is_file():
        if path.suffix not in (".jsonl", ".csv", ".parquet"):
            raise PromptError(
                f"{path}: one file of sets is .jsonl, .csv or .parquet; for .txt give their folder"
            )
        return _group(_read_file(path, default_set=None))
    if part in BUNDLES:
        return bundled_prompts(part)
    names = " or ".join(f"'{name}'" for name in BUNDLES)
    raise PromptError(
        f"{path} does not exist: give a folder of NAME.txt, a .jsonl, .csv or .parquet, or {names}"
    )


def texts(lines: Iterable[str], name: str = "prompts") -> tuple[PromptSet, ...]:
    """Plain texts as one set."""
    return _group(
        _prompt({"text": line}, f"{name}:{n}", n, name, name) for n, line in enumerate(lines, 1)
    )


def read_lines(path: str | Path) -> list[str]:
    """The non-empty lines of a text file; raises PromptError for a missing, empty or wrongly encoded one."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise PromptError(f"{path} does not exist: give a text file, a prompt a line")
    lines = [line for _, line in _lines(path)]
    if not lines:
        raise PromptError(f"{path} is empty: a prompt a line")
    return lines


def split_prompts(
    prompts: Sequence[Prompt], share: float = DISCOVERY_SHARE, seed: int = 0
) -> list[Split]:
    """Which part each prompt is for: its own `split`, or else by hash, `share` of every set to discovery.

    Prompts of one pair stay on one side in every set, so a sentence never helps to confirm its own translation.
    """
    members: defaultdict[str, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        members[split_key(prompt)].append(i)
    # Keys that occur in the same sets are divided together: each set then gets its share to within one prompt.
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for key, rows in members.items():
        alike[tuple(sorted({prompts[i].set for i in rows}))].append(key)
    parts: list[Split] = ["holdout"] * len(prompts)
    for keys in alike.values():
        ordered = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
        for key in ordered[: round(share * len(ordered))]:
            for i in members[key]:
                parts[i] = "discovery"
    return [prompt.split or part for prompt, part in zip(prompts, parts, strict=True)]


def split_key(prompt: Prompt) -> str:
    """What stays on one side of the split: a pair, or a prompt that has none."""
    return f"pair\0{prompt.pair}" if prompt.pair is not None else f"id\0{prompt.set}\0{prompt.id}"


def _group(prompts: Iterable[Prompt]) -> tuple[PromptSet, ...]:
    by_set: dict[str, list[Prompt]] = {}
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(
                f"prompt id {prompt.id!r} occurs twice: ids must be unique over all sets"
            )
        seen.add(prompt.id)
        by_set.setdefault(prompt.set, []).append(prompt)
    if not by_set:
        raise PromptError("no prompts: every file is empty")
    return tuple(PromptSet(name, tuple(members)) for name, members in by_set.items())


def _refuse_same_stem(files: Sequence[Path]) -> None:
    stems: dict[str, Path] = {}
    for file in files:
        if file.stem in stems:
            raise PromptError(
                f"{stems[file.stem]} and {file.name} both name the set {file.stem!r}: keep one"
            )
        stems[file.stem] = file


def _read_file(path: Path, default_set: str | None) -> list[Prompt]:
    match path.suffix:
        case ".txt":
            rows: Iterator[tuple[int, Mapping[str, Any]]] = (
                (n, {"text": line}) for n, line in _lines(path)
            )
        case ".jsonl":
            rows = _jsonl_rows(path)
        case ".csv":
            rows = _csv_rows(path)
        case _:
            rows = _parquet_rows(path)
    prompts = [_prompt(row, f"{path}:{n}", n, default_set or "", path.stem) for n, row in rows]
    if not prompts:
        raise PromptError(f"{path} is empty: a set needs at least one prompt")
    return prompts


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines with their 1-based numbers, without a byte-order mark; refuses what is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise PromptError(
                f"{path}:{number}: not UTF-8 (byte {error.start}): save the file as UTF-8"
            ) from error
        if "\0" in text:
            raise PromptError(f"{path}:{number}: has a NUL character: is it a text file in UTF-8?")
        if text.strip():
            yield number, text


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (
            ValueError,
            RecursionError,
        ) as error:  # ValueError: also a number of over 4,300 digits
            raise PromptError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise PromptError(
                f"{path}:{number}: a {type(row).__name__}, not an object with text or messages"
            )
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = "\n".join(line for _, line in _lines(path))  # only to refuse bad bytes with their line
    if not text:
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    raise PromptError(
                        f"{path}:{reader.line_num}: has not as many cells as the header"
                    )
                yield reader.line_num, {key: value for key, value in row.items() if value != ""}
        except csv.Error as error:
            raise PromptError(f"{path}:{reader.line_num + 1}: not CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = [name for name in pq.read_schema(path).names if name in _FIELDS]
        rows = pq.ParquetFile(path).read(columns=columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise PromptError(
            f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}"
        ) from error
    for number, row in enumerate(rows, 1):
        yield number, {key: value for key, value in row.items() if value is not None}


def _prompt(row: Mapping[str, Any], at: str, number: int, default_set: str, stem: str) -> Prompt:
    name = _string(row, "set", at) or default_set
    if not name:
        raise PromptError(f"{at}: no `set`: every prompt of a single file names its set")
    text, messages = _string(row, "text", at), _messages(row.get("messages"), at)
    if (text is None) == (messages is None):
        raise PromptError(f"{at}: needs either `text` or `messages`")
    if text is not None and not text.strip():
        raise PromptError(f"{at}: the text is empty")
    split = _string(row, "split", at)
    if split is not None and split not in _SPLIT_WORDS:
        raise PromptError(
            f"{at}: split {split!r} is not one of {', '.join(get_args(Split))} (or train, test)"
        )
    return Prompt(
        id=_string(row, "id", at) or f"{stem}:{number}",
        set=name,
        text=text,
        messages=messages,
        pair=_string(row, "pair", at),
        split=_SPLIT_WORDS[split] if split else None,
    )


def _string(row: Mapping[str, Any], key: str, at: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        if value is not None and any("\ud800" <= c <= "\udfff" for c in value):
            raise PromptError(
                f"{at}: `{key}` has half of a surrogate pair, which no tokenizer can read"
            )
        return value
    if key in ("id", "pair") and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise PromptError(f"{at}: `{key}` is a {type(value).__name__}, not a string")


def _messages(value: Any, at: str) -> tuple[Message, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):  # a CSV cell can hold them only as JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{at}: `messages` is not JSON: {error}") from error
    if not isinstance(value, list) or not value:
        raise PromptError(f"{at}: `messages` is not a non-empty list")
    for turn in value:
        if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
            raise PromptError(f"{at}: each message has exactly `role` and `content`")
    return tuple(Message(_required(t, "role", at), _required(t, "content", at)) for t in value)


def _required(turn: Mapping[str, Any], key: str, at: str) -> str:
    text = _string(turn, key, at)
    if text is None:
        raise PromptError(f"{at}: a message's `{key}` is null")
    return text
