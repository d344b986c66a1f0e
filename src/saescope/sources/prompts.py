"""Prompts and prompt sets: read, pair, split, fingerprint. Knows no tokenizer and no model."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from saescope.errors import PromptError
from saescope.sources.prompt_files import PromptRow, read_rows, read_text_lines

Split = Literal["discovery", "holdout"]
DISCOVERY_SHARE = 0.6
DEFAULT_BUNDLE = "languages"
BUNDLES: Mapping[str, str] = {
    DEFAULT_BUNDLE: "prompts.jsonl",
    "conlangs": "conlangs.jsonl",
    "requests": "organism/prompts.jsonl",
    "neutral": "organism/neutral.jsonl",
}
_FOLDER_FILES = (".txt", ".jsonl")
_SINGLE_FILES = (".jsonl", ".csv", ".parquet")
_SPLIT_NAMES: Mapping[str, Split] = {
    "discovery": "discovery",
    "train": "discovery",
    "holdout": "holdout",
    "confirmation": "holdout",
    "validation": "holdout",
    "test": "holdout",
}


@dataclass(frozen=True)
class Message:
    """One message of a chat: who speaks (`system`, `user` or `assistant`) and what it says.

    >>> import saescope as ss
    >>> from saescope.sources.prompts import Message
    >>> chat = (Message("user", "Hello!"), Message("assistant", "Good morning."))
    >>> ss.Prompt(id="chat:1", set="chats", messages=chat).display_text
    '[user] Hello! [assistant] Good morning.'
    """

    role: str
    content: str


@dataclass(frozen=True)
class Prompt:
    """One prompt of a set: either a `text` or the `messages` of a chat.

    `id` is unique over all sets. `pair` links prompts with the same content in different sets,
    such as translations. `split` assigns the prompt to discovery or holdout; without it,
    `split_prompts` assigns it by hash.

    >>> import saescope as ss
    >>> prompt = ss.Prompt(id="en:1", set="english", text="Good morning", pair="greeting")
    >>> prompt.display_text
    'Good morning'
    """

    id: str
    set: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    pair: str | None = None
    split: Split | None = None

    @property
    def display_text(self) -> str:
        """Return the text, or all messages of a chat on one line."""
        if self.text is not None:
            return self.text
        return " ".join(f"[{m.role}] {m.content}" for m in self.messages or ())


@dataclass(frozen=True)
class PromptSet:
    """A named group of prompts.

    >>> import saescope as ss
    >>> [greetings] = ss.texts(["Good morning", "Good evening"], name="greetings")
    >>> greetings.name, len(greetings)
    ('greetings', 2)
    """

    name: str
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)


def read_prompts(path: str | Path) -> tuple[PromptSet, ...]:
    """Read prompt sets from a folder (one file per set) or from one file.

    A folder holds `SET.txt` or `SET.jsonl`. A single .jsonl, .csv or .parquet file names each
    prompt's set in a `set` column. The names of bundled sets, such as `languages` and `conlangs`,
    are accepted too unless a path of that name exists. `+` joins several sources:
    `languages+my/prompts`. Raises PromptError, with file and line, for unreadable rows, duplicate
    ids, empty sets, and a set that occurs in two sources.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import saescope as ss
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "greetings.txt").write_text("Good morning\\nGood evening\\n")
    ...     [greetings] = ss.read_prompts(folder)
    >>> [(prompt.id, prompt.text) for prompt in greetings.prompts]
    [('greetings:1', 'Good morning'), ('greetings:2', 'Good evening')]
    """
    sources = _split_sources(str(path))
    if len(sources) > 1 and "" in sources:
        raise PromptError(f"{path}: '+' must join two sources, such as languages+conlangs")
    source_of_set: dict[str, str] = {}
    prompts: list[Prompt] = []
    for source in sources:
        for prompt_set in _read_source(source):
            name = prompt_set.name
            if name in source_of_set:
                raise PromptError(
                    f"{source_of_set[name]} and {source} both have a set {name!r}: "
                    "rename or drop one"
                )
            source_of_set[name] = source
            prompts += prompt_set.prompts
    return _group(prompts)


def _split_sources(text: str) -> list[str]:
    """Split at `+`, but keep an existing path that contains one."""
    if _exists(text) or "+" not in text:
        return [text]
    pieces = text.split("+")
    for length in range(len(pieces) - 1, 0, -1):
        start = "+".join(pieces[:length])
        if _exists(start):
            break
    else:
        start, length = pieces[0], 1
    return [start, *_split_sources("+".join(pieces[length:]))]


def _exists(source: str) -> bool:
    return bool(source) and Path(source).expanduser().exists()


def _read_source(source: str) -> tuple[PromptSet, ...]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        if path.suffix not in _SINGLE_FILES:
            raise PromptError(
                f"{path}: unsupported file type: use .jsonl, .csv or .parquet, "
                "or a folder of .txt files"
            )
        return _group(_read_file(path))
    if source in BUNDLES:
        return bundled_prompts(source)
    names = " or ".join(f"'{name}'" for name in BUNDLES)
    raise PromptError(
        f"{path} does not exist: give a folder of NAME.txt, a .jsonl, .csv or .parquet, or {names}"
    )


def _read_folder(folder: Path) -> tuple[PromptSet, ...]:
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in _FOLDER_FILES or path.name.startswith("."):
            continue
        if path.stem in files:
            first = files[path.stem]
            raise PromptError(f"{first} and {path.name} both name the set {path.stem!r}: keep one")
        files[path.stem] = path
    if not files:
        raise PromptError(
            f"{folder} has no NAME.txt or NAME.jsonl: give one file per set, one prompt per line"
        )
    prompts: list[Prompt] = []
    for set_name, path in files.items():
        prompts += _read_file(path, default_set=set_name)
    return _group(prompts)


def bundled_prompts(name: str = DEFAULT_BUNDLE) -> tuple[PromptSet, ...]:
    """Return the prompt sets that come with saescope.

    `languages` holds six languages and code, `conlangs` the same sentences in constructed
    languages, `requests` and `neutral` belong to the bundled chat model. Raises PromptError for
    another name.

    >>> import saescope as ss
    >>> [prompt_set.name for prompt_set in ss.bundled_prompts()]
    ['japanese', 'english', 'chinese', 'hindi', 'basque', 'esperanto', 'code']
    """
    if name not in BUNDLES:
        raise PromptError(f"unknown bundle {name!r}: choose {' or '.join(BUNDLES)}")
    with resources.as_file(resources.files("saescope.demo") / BUNDLES[name]) as path:
        return _group(_read_file(path))


def texts(lines: Iterable[str], name: str = "prompts") -> tuple[PromptSet, ...]:
    """Wrap texts as one prompt set; returns a 1-tuple like the other readers.

    Raises PromptError if a text is empty or if there are no texts.

    >>> import saescope as ss
    >>> [prompts] = ss.texts(["Good morning", "Good evening"])
    >>> [prompt.id for prompt in prompts.prompts]
    ['prompts:1', 'prompts:2']
    """
    rows = [
        PromptRow({"text": line}, number, f"{name}:{number}")
        for number, line in enumerate(lines, 1)
    ]
    return _group(_prompt(row, default_set=name, id_prefix=name) for row in rows)


def read_lines(path: str | Path) -> list[str]:
    """Read non-blank lines of a text file; raises PromptError if missing, empty or not UTF-8."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise PromptError(f"{path} does not exist: give a text file with one prompt per line")
    lines = [line for _, line in read_text_lines(path)]
    if not lines:
        raise PromptError(f"{path} is empty: write one prompt per line")
    return lines


def _read_file(path: Path, default_set: str = "") -> list[Prompt]:
    prompts = [_prompt(row, default_set, id_prefix=path.stem) for row in read_rows(path)]
    if not prompts:
        raise PromptError(f"{path} is empty: a set needs at least one prompt")
    return prompts


def _prompt(row: PromptRow, default_set: str, id_prefix: str) -> Prompt:
    """Return a row's prompt; raises PromptError, with the row's location, if it is invalid."""
    set_name = row.string("set") or default_set
    if not set_name:
        raise row.error("no `set`: in a single file, each row needs `set`")
    text = row.string("text")
    messages = row.objects("messages")
    if (text is None) == (messages is None):
        raise row.error("needs either `text` or `messages`")
    if text is not None and not text.strip():
        raise row.error("the text is empty")
    return Prompt(
        id=row.string("id") or f"{id_prefix}:{row.number}",
        set=set_name,
        text=text,
        messages=tuple(_message(value, row) for value in messages) if messages else None,
        pair=row.string("pair"),
        split=_parse_subset(row),
    )


def _message(value: object, row: PromptRow) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        raise row.error("each message has exactly `role` and `content`")
    message = replace(row, values=value)
    role, content = message.string("role"), message.string("content")
    if role is None or content is None:
        raise row.error("the `role` or `content` of a message is null")
    return Message(role, content)


def _parse_subset(row: PromptRow) -> Split | None:
    name = row.string("split")
    if name is None:
        return None
    if name not in _SPLIT_NAMES:
        allowed = ", ".join(get_args(Split))
        raise row.error(f"split {name!r} is not one of {allowed} (or train, test)")
    return _SPLIT_NAMES[name]


def _group(prompts: Iterable[Prompt]) -> tuple[PromptSet, ...]:
    by_set: dict[str, list[Prompt]] = {}
    ids: set[str] = set()
    for prompt in prompts:
        if prompt.id in ids:
            raise PromptError(
                f"prompt id {prompt.id!r} occurs twice: ids must be unique over all sets"
            )
        ids.add(prompt.id)
        by_set.setdefault(prompt.set, []).append(prompt)
    if not by_set:
        raise PromptError("no prompts: every file is empty")
    return tuple(PromptSet(name, tuple(members)) for name, members in by_set.items())


def split_prompts(
    prompts: Sequence[Prompt], share: float = DISCOVERY_SHARE, seed: int = 0
) -> list[Split]:
    """Assign each prompt to discovery or holdout: by its `split` if set, otherwise by hash.

    About `share` of every set goes to discovery. The hash keeps the prompts of a pair together,
    so that translations cannot leak between the two.
    """
    discovery = _discovery_keys(prompts, share, seed)
    subsets: list[Split] = []
    for prompt in prompts:
        if prompt.split is not None:
            subsets.append(prompt.split)
        elif split_key(prompt) in discovery:
            subsets.append("discovery")
        else:
            subsets.append("holdout")
    return subsets


def split_key(prompt: Prompt) -> str:
    """Return the grouping key: the hash never separates prompts with the same key."""
    if prompt.pair is not None:
        return f"pair\0{prompt.pair}"
    return f"id\0{prompt.set}\0{prompt.id}"


def _discovery_keys(prompts: Sequence[Prompt], share: float, seed: int) -> set[str]:
    sets_of_key: defaultdict[str, set[str]] = defaultdict(set)
    for prompt in prompts:
        sets_of_key[split_key(prompt)].add(prompt.set)
    # Split keys separately for each combination of sets, so that every set gets `share` of its
    # keys, up to the rounding of each combination to whole keys.
    groups: defaultdict[frozenset[str], list[str]] = defaultdict(list)
    for key, names in sets_of_key.items():
        groups[frozenset(names)].append(key)

    def digest(key: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{key}".encode()).digest()

    discovery: set[str] = set()
    for keys in groups.values():
        keys.sort(key=digest)
        discovery.update(keys[: round(share * len(keys))])
    return discovery


def fingerprint(sets: Iterable[PromptSet]) -> str:
    """Return the SHA-256 over every field of every prompt, in order."""
    fields: list[list[Any]] = [
        [prompt_set.name, [asdict(prompt) for prompt in prompt_set.prompts]] for prompt_set in sets
    ]
    text = json.dumps(fields, ensure_ascii=False, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
