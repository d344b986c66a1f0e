"""Names of models and SAEs as people write them: hub ids, addresses of the hub, paths inside.

`owner/name`, `gpt2`, `owner/name@revision`, `owner/name/folder/of/an/sae`, `hf://owner/name`, and
pages such as `https://huggingface.co/owner/name/tree/main`. Opens nothing.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from saescope.errors import SourceError

_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
_REPO_PART = re.compile(r"\w(?:[\w.-]*\w)?", re.ASCII)  # huggingface_hub's own rule
_MAX_REPO_CHARS = 96
# Pages of a repository: those whose next part is a revision, those that are about all of it.
_PAGES_AT_REVISION = ("tree", "blob", "resolve", "raw", "commit", "commits", "blame")
_OTHER_PAGES = ("discussions", "settings", "edit", "upload")
_OTHER_KINDS = ("datasets", "spaces", "collections", "papers", "docs", "blog", "posts")
_SPECIAL_REFS = ("pr", "convert")  # refs/pr/1 is one revision, although it has slashes
_DEFAULT_REVISION = "main"
# Files that describe an SAE or model: their page stands for their folder.
_DESCRIPTIONS = (".json", ".md", ".txt", ".yaml", ".yml", ".gitattributes")


@dataclass(frozen=True)
class HubRef:
    """A hub repository, a revision, and parts of a path within it."""

    repo: str
    revision: str | None = None
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        revision = f"@{self.revision.replace('/', '%2F')}" if self.revision else ""
        return "/".join([self.repo + revision, *self.parts])


def parse_hub_ref(text: str) -> HubRef | None:
    """Read a hub id or an address of the hub; None for anything else.

    Raises SourceError for addresses that name no repository of a model.

    >>> from saescope.sources.references import parse_hub_ref
    >>> parse_hub_ref("https://huggingface.co/Qwen/Qwen3-8B-Base/tree/main?x=1")
    HubRef(repo='Qwen/Qwen3-8B-Base', revision=None, parts=())
    >>> str(parse_hub_ref("hf.co/owner/name/blob/v1/layer_5/cfg.json"))
    'owner/name@v1/layer_5'
    >>> parse_hub_ref("gpt2").repo, parse_hub_ref("not a name")
    ('gpt2', None)
    """
    address = _path_of_address(text)
    if address is not None:
        return _parse_address(text, address)
    parts = text.split("/")
    if len(parts) > 1 and not parts[-1]:  # one slash at the end
        parts.pop()
    name, at, revision = parts[0].partition("@")
    if len(parts) > 1 and not at:
        owner = name
        name, at, revision = parts[1].partition("@")
        name, parts = f"{owner}/{name}", parts[1:]
    if not _is_repo(name) or (at and not revision) or not all(parts):
        return None
    revision, inside = _take_revision([revision, *parts[1:]])
    return HubRef(name, revision or None, inside)


def name_in_catalog(text: str) -> str:
    """The name of a model or SAE without its revision: what a catalog may know.

    >>> from saescope.sources.references import name_in_catalog
    >>> name_in_catalog("https://huggingface.co/Qwen/Qwen3-8B-Base/tree/v1")
    'Qwen/Qwen3-8B-Base'
    """
    if Path(text).expanduser().exists():
        return text
    ref = parse_hub_ref(text)
    return text if ref is None else "/".join([ref.repo, *ref.parts])


def plain_ref(text: str) -> str:
    """The shortest name of the same model or SAE; what is on this machine stays as it is.

    >>> from saescope.sources.references import plain_ref
    >>> plain_ref("https://huggingface.co/Qwen/Qwen3-8B-Base"), plain_ref("Qwen/Qwen3-8B-Base/")
    ('Qwen/Qwen3-8B-Base', 'Qwen/Qwen3-8B-Base')
    """
    if Path(text).expanduser().exists():
        return text
    ref = parse_hub_ref(text)
    return text if ref is None else str(ref)


def _path_of_address(text: str) -> str | None:
    """The path of an address of the hub, or None for what is no address.

    Raises SourceError for an address of another site.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() == "hf":
        return rest.partition("?")[0]
    if not separator:
        host = text.partition("/")[0].lower()
        if host not in _HOSTS:
            return None
        text = f"https://{text}"
    try:
        address = urlsplit(text)
    except ValueError as error:
        raise SourceError(f"{text} is not an address: {error}") from error
    mirror = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    if address.netloc.lower() not in (*_HOSTS, mirror.lower()) or not address.netloc:
        raise SourceError(
            f"{text} is not an address of the hub: download it and give its folder, "
            "or give a hub id such as Qwen/Qwen3-8B-Base"
        )
    return address.path


def _parse_address(text: str, path: str) -> HubRef:
    parts = [part for part in path.split("/") if part]
    if parts and parts[0] == "models":
        parts.pop(0)
    if not parts or parts[0] in _OTHER_KINDS:
        raise SourceError(f"{text} is not the address of a model or SAE on the hub")
    n_repo = 1  # an old repository without an owner, such as gpt2
    if len(parts) > 1 and parts[1] not in (*_PAGES_AT_REVISION, *_OTHER_PAGES):
        n_repo = 2
    repo, at, revision = "/".join(parts[:n_repo]).partition("@")
    rest = parts[n_repo:]
    if not _is_repo(repo):
        raise SourceError(f"{text} is not the address of a model or SAE on the hub")
    if rest and rest[0] in _OTHER_PAGES and not at:
        return HubRef(repo)
    if at:
        rest = [revision, *rest]
    elif rest and rest[0] in _PAGES_AT_REVISION:
        rest = rest[1:]
    else:
        rest = ["", *rest]
    at_revision, inside = _take_revision(rest)
    if inside and inside[-1].lower().endswith(_DESCRIPTIONS):
        inside = inside[:-1]
    if at_revision == _DEFAULT_REVISION:
        at_revision = ""
    return HubRef(repo, at_revision or None, inside)


def _take_revision(parts: list[str]) -> tuple[str, tuple[str, ...]]:
    """The revision at the start of these parts, and the path after it, both decoded."""
    n = 3 if parts[0:1] == ["refs"] and parts[1:2] and parts[1] in _SPECIAL_REFS else 1
    return unquote("/".join(parts[:n])), tuple(unquote(part) for part in parts[n:])


def _is_repo(name: str) -> bool:
    parts = name.split("/")
    return (
        len(name) <= _MAX_REPO_CHARS
        and all(_REPO_PART.fullmatch(part) for part in parts)
        and "--" not in name
        and ".." not in name
        and not name.endswith(".git")
    )
