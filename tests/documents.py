"""The documents, executed: a page's commands and Python run in one folder, outputs are compared.

A page is plain Markdown. In it

- a ``bash`` or ``python`` block is run; Python blocks of a page share their names;
- a ``text`` block that follows one is its standard output;
- comments right above a block say what is special about it:

      <!-- file: prompts/red.txt -->   the block is the content of this file, written first
      <!-- not run: WHY -->            only checked: command-line options and Python names
      <!-- fails: 2 -->                the command exits with this code; its stderr is the output
      <!-- output: 1 to "words", 14 -->   only these lines are shown, by number or by words in
                                       them, until the ``end``; ``…`` stands for the others

Text must agree; numbers may differ as two machines do (`agree`). ``python -m tests.documents
--update`` runs all pages, or those named, and rewrites the outputs and images they show.
"""

import argparse
import contextlib
import io
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Commands print as on a plain terminal of 80 columns, and fetch nothing.
TERMINAL = {"TERM": "dumb", "TTY_COMPATIBLE": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
PAGE_WIDTH = 100  # wider lines are folded
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- ([a-z ]+?)(?:: (.*?))? -->$")
_PLACE = r'\d+|"[^"]*"|end'
_PART = re.compile(rf"({_PLACE})(?: to ({_PLACE}))?")
_FEATURE, _NUMBER = r"\b\d+/\d+\b", r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?"
_HASH = re.compile(r"\b(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{8,64}\b")
_MEASURED = re.compile(rf"{_NUMBER} (?=(?:s|ms|min|bytes|kB|MB|GB|GFLOP/s|tokens/s)\b)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `start` and `end` are the indices of its two fences."""

    language: str
    lines: tuple[str, ...]
    start: int
    end: int
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass(frozen=True)
class Page:
    """A Markdown file and its blocks in order."""

    path: Path
    lines: tuple[str, ...]
    blocks: tuple[Block, ...]

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def runs(self) -> bool:
        """Whether a test has something to execute."""
        return any(
            block.language in ("bash", "python") and "not run" not in block.marks
            for block in self.blocks
        )

    def output_of(self, block: Block) -> Block | None:
        """The ``text`` block that follows, with nothing but marks in between."""
        following = next((other for other in self.blocks if other.start > block.end), None)
        if following is None or following.language != "text":
            return None
        between = self.lines[block.end + 1 : following.start]
        only_marks = all(not line or _MARK.match(line) for line in between)
        return following if only_marks else None

    def prose(self) -> Iterator[tuple[int, str]]:
        """Lines outside of blocks, with their numbers."""
        inside = {n for block in self.blocks for n in range(block.start, block.end + 1)}
        return ((n + 1, line) for n, line in enumerate(self.lines) if n not in inside)


@dataclass(frozen=True)
class Shown:
    """What a page shows as a block's output, and what the block really printed."""

    block: Block
    output: Block | None
    printed: tuple[str, ...]

    def reads_differently(self) -> bool:
        """Whether anything but a hash, a time or a size is another one, spaces included."""
        if self.output is None:
            return False
        return [*map(unmeasured, self.output.lines)] != [*map(unmeasured, self.printed)]

    def differs(self) -> str | None:
        """What does not agree, or None."""
        if self.output is None or agree(self.output.lines, self.printed):
            return None
        printed = "\n".join(self.printed)
        return f"line {self.output.start + 1} shows\n{self.output.text}\nprinted was\n{printed}"


def read_page(path: Path) -> Page:
    """Parse a page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    start = None
    for n, line in enumerate(lines):
        fence = _FENCE.match(line)
        if start is not None:
            if line == "```":
                language = lines[start].removeprefix("```").strip()
                blocks.append(Block(language, tuple(lines[start + 1 : n]), start, n, marks))
                start, marks = None, {}
        elif fence:
            start = n
        elif mark := _MARK.match(line):
            marks[mark[1]] = mark[2] or ""
        elif line:
            marks = {}
    return Page(path, tuple(lines), tuple(blocks))


def commands(block: Block) -> list[str]:
    """The command lines of a ``bash`` block, continued lines joined, comments left out."""
    joined = block.text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if shlex.split(line, comments=True)]


def run_page(page: Page, folder: Path) -> list[Shown]:
    """Run a page's blocks in order, in `folder`."""
    shown = []
    names: dict[str, Any] = {"__name__": "page"}
    with _inside(folder):
        for block in page.blocks:
            if "not run" in block.marks:
                continue
            if name := block.marks.get("file"):
                Path(name).parent.mkdir(parents=True, exist_ok=True)
                Path(name).write_text(block.text + "\n", encoding="utf-8")
            elif block.language in ("bash", "python"):
                location = f"{page.name}, line {block.start + 1}"
                printed = (
                    _run_commands(block, location)
                    if block.language == "bash"
                    else _run_python(block, location, names)
                )
                output = page.output_of(block)
                for root in (folder, ROOT):
                    printed = printed.replace(f"{root}/", "")
                lines = _selected(printed, output)
                shown.append(Shown(block, output, lines))
    return shown


def update(page: Page, folder: Path) -> bool:
    """Run a page and rewrite the outputs and images it shows; whether the file changed."""
    lines = list(page.lines)
    for shown in reversed(run_page(page, folder)):
        if shown.output is not None and shown.reads_differently():
            lines[shown.output.start + 1 : shown.output.end] = shown.printed
    for image in (ROOT / "docs/images").iterdir():
        if (folder / image.name).is_file():
            shutil.copy(folder / image.name, image)
    changed = tuple(lines) != page.lines
    if changed:
        page.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return changed


def check_command(line: str) -> None:
    """Parse a `saescope` command line by the real options, without running it."""
    from saescope.surfaces.cli import app

    arguments, _ = _without_redirection(shlex.split(line, comments=True)[1:])
    app.parse_args(arguments, print_error=False, exit_on_error=False)


def agree(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether two outputs are the same but for what differs between machines."""
    return len(shown) == len(printed) and all(map(_lines_agree, shown, printed))


def _lines_agree(a: str, b: str) -> bool:
    """Equal in words, features and layout; numbers near each other, hashes, times and sizes any."""
    left, right = (re.split(f"({_FEATURE}|{_NUMBER})", _plain(line)) for line in (a, b))
    return len(left) == len(right) and all(map(_pieces_agree, left, right))


def _plain(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"─+", "─", unmeasured(line))).strip()


def unmeasured(line: str) -> str:
    """The text without its hashes, times and sizes."""
    return _MEASURED.sub("N ", _HASH.sub("HASH", line))


def _pieces_agree(a: str, b: str) -> bool:
    if a == b:
        return True
    if not (re.fullmatch(_NUMBER, a) and re.fullmatch(_NUMBER, b)):
        return False
    first, second = (float(text.replace(",", "")) for text in (a, b))
    if "e" in a + b:
        return max(first, second) <= 10 * min(first, second)
    last_place = 10.0 ** -max(len(text.partition(".")[2]) for text in (a, b))
    return abs(first - second) <= max(0.05 * max(first, second), 1.5 * last_place)


def _selected(printed: str, output: Block | None) -> tuple[str, ...]:
    """The lines of an output that its page shows."""
    lines = [part for line in printed.splitlines() for part in _folded(line.rstrip())]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    if output is None or "output" not in output.marks:
        return tuple(lines)
    chosen: list[str] = []
    after = 0  # index of the first line that is not looked at yet
    for first, last in _PART.findall(output.marks["output"]):
        start = _find_line(first, lines, after)
        stop = _find_line(last or first, lines, start) + 1
        if start > after:
            chosen.append("…")
        chosen += lines[start:stop]
        after = stop
    return (*chosen, "…") if after < len(lines) else tuple(chosen)


def _find_line(place: str, lines: Sequence[str], after: int) -> int:
    """The index of a line by its number, by words in it, or the last one by ``end``."""
    if place == "end":
        return len(lines) - 1
    if place.isdigit():
        return int(place) - 1
    words = place.strip('"')
    return next((n for n in range(after, len(lines)) if words in lines[n]), len(lines) - 1)


def _folded(line: str) -> list[str]:
    return [line] if len(line) <= PAGE_WIDTH else textwrap.wrap(line, PAGE_WIDTH)


def _run_commands(block: Block, where: str) -> str:
    expected = int(block.marks.get("fails", "0"))
    printed = ""
    for line in commands(block):
        code, out, err = _run_command(line)
        if code != expected:
            raise AssertionError(f"{where}: {line}\nexits with {code}, not {expected}\n{err}")
        printed += err if expected else out
    return printed


def _run_command(line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr; `saescope` runs in this process, which spares imports."""
    words = shlex.split(line, comments=True)
    if words[0] != "saescope":
        process = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        return process.returncode, process.stdout, process.stderr
    from saescope.surfaces.cli import run

    out, err = io.StringIO(), io.StringIO()
    arguments, into = _without_redirection(words[1:])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    if into is None:
        return code, out.getvalue(), err.getvalue()
    Path(into).write_text(out.getvalue(), encoding="utf-8")
    return code, "", err.getvalue()


def _without_redirection(words: Sequence[str]) -> tuple[Sequence[str], str | None]:
    """The words before ``> FILE``, and the file."""
    if ">" not in words:
        return words, None
    place = words.index(">")
    return words[:place], words[place + 1]


def _run_python(block: Block, where: str, names: dict[str, Any]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, where, "exec"), names)
    return out.getvalue()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in `folder`, in the `TERMINAL`.

    `src` leads to the repository's, as it does for a reader in a clone.
    """
    from saescope.surfaces.cli import progress

    (folder / "src").symlink_to(ROOT / "src")
    before = {name: os.environ.get(name) for name in TERMINAL}
    os.environ.update(TERMINAL)
    # How slow this machine is belongs on no page.
    quiet, progress.QUIET_SECONDS = progress.QUIET_SECONDS, math.inf
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        progress.QUIET_SECONDS = quiet
        (folder / "src").unlink()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def main() -> None:
    """Run pages; with --update, rewrite what they show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="Default: README.md and docs/*.md.")
    parser.add_argument("--update", action="store_true", help="Rewrite outputs that differ.")
    arguments = parser.parse_args()
    failed = False
    for path in arguments.pages or PAGES:
        page = read_page(path.resolve())
        with tempfile.TemporaryDirectory() as folder:
            if arguments.update:
                print(f"{page.name}: {'rewritten' if update(page, Path(folder)) else 'as it was'}")
                continue
            differences = [text for s in run_page(page, Path(folder)) if (text := s.differs())]
        print(f"{page.name}: {len(differences)} outputs differ", *differences, sep="\n")
        failed = failed or bool(differences)
    sys.exit(failed)


if __name__ == "__main__":
    main()
