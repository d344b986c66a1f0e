"""Only regular files are read, and no more of them than a limit."""

import os
import stat
from pathlib import Path

import pytest

from saescope.sources.regular_files import (
    UnreadableFileError,
    open_regular,
    read_bytes,
    read_json,
)


@pytest.mark.parametrize("kind", ["FIFO", "socket", "folder", "device"])
@pytest.mark.parametrize("linked", [False, True])
def test_other_kinds_are_refused_without_waiting(kind: str, linked: bool, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    elif kind == "folder":
        path.mkdir()
    else:
        path = Path("/dev/zero")
    if linked:
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    with pytest.raises(UnreadableFileError) as caught:
        open_regular(path)
    assert str(caught.value) == f"it is a {kind}, not a file"


def test_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(UnreadableFileError, match="it has 5 bytes, more than 4 bytes"):
        read_bytes(path, 4)
    with path.open("wb") as file:
        file.truncate(2**40)  # no block of it is on the disk
    with pytest.raises(UnreadableFileError, match=r"1\.1 TB"):
        read_bytes(path, 4)


def test_json_of_any_kind_is_read_or_a_value_error(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for text in ("[" * 10**6, '{"a":' * 10**5, "1" * 10**5, "", "{", "\ud800"):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError):  # noqa: PT011
            read_json(path)
    path.write_text('{"a": [1]}')
    assert read_json(path) == {"a": [1]}
