"""Prompt sets, read from folders, files and the bundled ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from urllib.parse import unquote

from saescope.errors import PromptError
from saescope.sources.prompt_files import FILE_TYPES, is_json_array, read_rows, read_text_lines
from saescope.sources.prompt_rows import prompt_of
from saescope.sources.prompts import Prompt, PromptSet, group_by_set

DEFAULT_BUNDLE = "languages"
BUNDLES: Mapping[str, str] = {
    DEFAULT_BUNDLE: "prompts.jsonl",
    "conlangs": "conlangs.jsonl",
    "requests": "organism/prompts.jsonl",
    "neutral": "organism/neutral.jsonl",
}
_NUMBERED_PART = re.compile(r"^part\b|^part_|^\d+$|\d{4}|-of-")


def read_prompts(path: str | Path) -> tuple[PromptSet, ...]:
    """Read prompt sets from a folder, a file or a bundle.

    A folder holds `SET.txt`, `SET.jsonl`, `SET.json` or `SET.csv`, or Parquet files, which are the
    parts of one table. A file name is the set of those rows that name no set. A single .jsonl,
    .json, .csv, .tsv or .parquet file names each prompt's set in a `set` or `label` column. A
    bundle is a name of `bundled_prompts`, such as `languages`, unless a path of that name exists.
    `+` joins several sources: `languages+my/prompts`. Raises PromptError for rows that cannot be
    read (with file and line), duplicate ids, empty files, and a set that occurs in two sources.

    >>> import tempfile
    >>> from pathlib import Path
    >>> import saescope as ss
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "greetings.txt").write_text("Good morning\\nGood evening\\n")
    ...     [greetings] = ss.read_prompts(folder)
    >>> [(prompt.id, prompt.text) for prompt in greetings.prompts]
    [('greetings:1', 'Good morning'), ('greetings:2', 'Good evening')]
    """
    sources = split_sources(str(path))
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
    return group_by_set(prompts)


def split_sources(text: str) -> list[str]:
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
    return [start, *split_sources("+".join(pieces[length:]))]


def _exists(source: str) -> bool:
    return bool(source) and Path(source).expanduser().exists()


def _read_source(source: str) -> tuple[PromptSet, ...]:
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        if path.suffix not in FILE_TYPES or path.suffix == ".txt":
            raise PromptError(
                f"{path}: unsupported file type: use .jsonl, .json, .csv, .tsv or .parquet, "
                "or a folder of .txt files"
            )
        return group_by_set(_read_file(path))
    if source in BUNDLES:
        return bundled_prompts(source)
    if path.exists():
        raise PromptError(f"cannot read {path}: it is no file and no folder")
    names = " or ".join(f"'{name}'" for name in BUNDLES)
    raise PromptError(
        f"{path} does not exist: give a folder of NAME.txt, a .jsonl, .csv or .parquet, or {names}"
    )


def _read_folder(folder: Path) -> tuple[PromptSet, ...]:
    """Read a file per set, and Parquet files as the parts of one table."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if not _names_a_set(path):
            continue
        if path.stem in files:
            first = files[path.stem]
            raise PromptError(f"{first} and {path.name} both name the set {path.stem!r}: keep one")
        files[path.stem] = path
    parts = _parquet_parts(folder)
    if not files and not parts:
        raise PromptError(
            f"{folder} has no NAME.txt or NAME.jsonl: give one file per set, one prompt per line"
        )
    prompts: list[Prompt] = []
    for set_name, path in files.items():
        prompts += _read_file(path, default_set=set_name)
    for part in parts:
        prompts += _read_part(folder, part)
    return group_by_set(prompts)


def _names_a_set(path: Path) -> bool:
    """Return whether a file of a folder holds a set; other JSON files may describe the folder."""
    if path.name.startswith(".") or path.suffix not in FILE_TYPES or path.suffix == ".parquet":
        return False
    return path.suffix != ".json" or is_json_array(path)


def _parquet_parts(folder: Path) -> list[Path]:
    """Return the Parquet files under a folder, without those that other programs hide."""
    found = []
    for path in sorted(folder.rglob("*.parquet")):
        inner = path.relative_to(folder).parts
        if path.is_file() and not any(name.startswith((".", "_")) for name in inner):
            found.append(path)
    return found


def _read_part(folder: Path, path: Path) -> list[Prompt]:
    """Read one part: `set=NAME` folders and columns name sets, else the file's name does.

    The name of a numbered part, such as `part-0001`, names no set.
    """
    inner = path.relative_to(folder).with_suffix("")
    columns = _hive_columns(inner.parts[:-1])
    name = "" if _NUMBERED_PART.search(path.stem) else path.stem
    prompts = []
    for row in read_rows(path):
        row = replace(row, values={**columns, **row.values})
        default_set = "" if row.string("label") else name
        prompts.append(prompt_of(row, default_set, id_prefix=inner.as_posix()))
    return prompts


def _hive_columns(folders: Sequence[str]) -> dict[str, str]:
    """Return the columns that names of folders hold, as `set=english`."""
    columns = {}
    for folder in folders:
        column, is_column, value = folder.partition("=")
        if is_column and value != "__HIVE_DEFAULT_PARTITION__":
            columns[column] = unquote(value)
    return columns


def bundled_prompts(name: str = DEFAULT_BUNDLE) -> tuple[PromptSet, ...]:
    """Return the prompt sets of a bundle, which comes with saescope.

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
        return group_by_set(_read_file(path))


def read_lines(path: str | Path) -> list[str]:
    """Read non-blank lines of a text file; raises PromptError if missing, empty or not UTF-8."""
    path = Path(path).expanduser()
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise PromptError(f"{path} {kind}: give a text file with one prompt per line")
    lines = [line for _, line in read_text_lines(path)]
    if not lines:
        raise PromptError(f"{path} is empty: write one prompt per line")
    return lines


def _read_file(path: Path, default_set: str = "") -> list[Prompt]:
    prompts = [prompt_of(row, default_set, id_prefix=path.stem) for row in read_rows(path)]
    if not prompts:
        raise PromptError(f"{path} is empty: a set needs at least one prompt")
    return prompts
