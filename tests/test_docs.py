"""README.md and docs/ are right: their commands run, their links lead somewhere."""

import re
from functools import cache
from pathlib import Path

import pytest

import saescope as ss
from documents import PAGES, ROOT, Page, agree, check_command, commands, read_page, run_page
from saescope.store.tables import FEATURE_COLUMNS, PROMPTS, RESID_COLUMNS, SCHEMA_VERSION, TOKENS

READ = [read_page(path) for path in PAGES]
each_page = pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_OTHERS_OPTIONS = {"--control-vector", "--control-vector-scaled"}  # llama.cpp's


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [p for p in READ if p.runs], ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page: Page, tmp_path: Path) -> None:
    differences = [text for shown in run_page(page, tmp_path) if (text := shown.differs())]
    assert not differences, "\n\n".join(differences)


@each_page
def test_commands_have_the_options_that_the_page_uses(page: Page) -> None:
    in_blocks = [line for b in page.blocks if b.language == "bash" for line in commands(b)]
    in_prose = [code for _, line in page.prose() for code in _CODE.findall(line)]
    for line in [*in_blocks, *in_prose]:
        if line.startswith("saescope ") and "…" not in line:
            check_command(line)


@cache
def _options_of_commands() -> set[str]:
    from saescope.surfaces.cli import app

    verbs = [name for name in app if not name.startswith("-")]
    arguments = [a for verb in verbs for a in app[verb].assemble_argument_collection()]
    return {"--help", *(name for argument in arguments for name in argument.names)}


@each_page
def test_options_in_prose_exist(page: Page) -> None:
    known = _options_of_commands() | _OTHERS_OPTIONS
    named = {option for _, line in page.prose() for option in _OPTION.findall(line)}
    assert named <= known


@each_page
def test_python_uses_public_names(page: Page) -> None:
    code = [b.text for b in page.blocks if b.language == "python"]
    for text in code:
        compile(text, page.name, "exec")
    code += [code for _, line in page.prose() for code in _CODE.findall(line)]
    for name in re.findall(r"\bss\.(\w+)", "\n".join(code)):
        assert hasattr(ss, name), name


def _anchors(path: Path) -> set[str]:
    """The anchors that a Markdown page gets for its headings."""
    if path.suffix != ".md":
        return set()
    headings = [line for _, line in read_page(path).prose() if line.startswith("#")]
    words = [re.sub(r"[^\w\- ]", "", h.lstrip("#").strip().lower()) for h in headings]
    return {text.replace(" ", "-") for text in words}


@each_page
def test_links_lead_somewhere(page: Page) -> None:
    for number, line in page.prose():
        for link in _LINK.findall(line):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = (page.path.parent / name).resolve() if name else page.path
            assert target.exists(), f"line {number}: {link}"
            assert not anchor or anchor in _anchors(target), f"line {number}: {link}"


def test_every_page_stands_in_the_table_of_contents() -> None:
    links = _LINK.findall((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    pages = {page.path.name for page in READ if page.path.parent == ROOT / "docs"}
    assert pages - {"README.md"} <= set(links)


@each_page
def test_lines_fit_100_columns(page: Page) -> None:
    wide = [n for n, line in page.prose() if len(line) > 100 and not line.startswith("|")]
    wide += [b.start + 1 for b in page.blocks for line in b.lines if len(line) > 100]
    assert not wide


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert len(text.encode()) <= 8_000


def test_the_page_about_runs_names_every_stored_column() -> None:
    text = (ROOT / "docs/run.md").read_text(encoding="utf-8")
    columns = {*PROMPTS.names, *TOKENS.names, *FEATURE_COLUMNS, *RESID_COLUMNS}
    assert {name for name in columns if f"`{name}`" not in text} == set()
    assert f"(schema {SCHEMA_VERSION}, normative)" in text


def test_the_layout_names_every_file() -> None:
    text = (ROOT / "docs/layout.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(?:[\w/]+/)?(\w+\.py)`", text))
    package = {path.name for path in (ROOT / "src").rglob("*.py")}
    commands_of_the_cli = {path.name for path in (ROOT / "src/saescope/surfaces/cli").glob("*.py")}
    assert package - commands_of_the_cli <= named
    others = ("tests", "proof", "training", "benchmarks")
    elsewhere = {path.name for folder in others for path in (ROOT / folder).rglob("*.py")}
    assert named <= package | elsewhere


# --- the harness itself


def _page(tmp_path: Path, text: str) -> Page:
    path = ROOT / "docs" / "none.md"
    file = tmp_path / "page.md"
    file.write_text(text, encoding="utf-8")
    read = read_page(file)
    return Page(path, read.lines, read.blocks)


def test_files_commands_and_python_of_a_page_share_its_folder(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        "<!-- file: sets/a.txt -->\n```text\nred\n```\n"
        "```bash\ncat sets/a.txt  # a comment\nls \\\n  sets\n```\n\n```text\nred\na.txt\n```\n"
        "```python\nx = 2\n```\nsome words\n```python\nprint(x)\n```\n```text\n3.5\n```\n"
        "<!-- not run: it fails -->\n```bash\nfalse\n```\n",
    )
    shown = run_page(page, tmp_path)
    assert [s.printed for s in shown] == [("red", "a.txt"), (), ("2",)]
    assert [s.differs() is None for s in shown] == [True, True, False]


def test_only_chosen_lines_are_shown(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        '```bash\nseq 9\n```\n\n<!-- output: 2 to 3, "5" -->\n```text\n…\n2\n3\n…\n5\n…\n```\n',
    )
    assert [s.differs() for s in run_page(page, tmp_path)] == [None]


def test_example_that_fails_shows_its_message(tmp_path: Path) -> None:
    page = _page(
        tmp_path,
        "<!-- fails: 2 -->\n```bash\nsaescope scan\n```\n```text\nsaescope: …\n```\n",
    )
    [shown] = run_page(page, tmp_path)
    assert shown.printed[0].startswith("saescope: ")
    with pytest.raises(AssertionError, match="exits with 2, not 0"):
        run_page(_page(tmp_path, "```bash\nsaescope scan\n```\n"), tmp_path)


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("2/5   92.9 / 1.4 %", "2/5 93.0 / 1.4 %", True),
        ("2/5 92.9 %", "2/6 92.9 %", False),
        ("q 7e-25", "q 1e-24", True),
        ("q 7e-25", "q 1e-9", False),
        ("runs/languages-0d9cc05f18bf", "runs/languages-31d9cc05f18b", True),
        ("took 1.5 s and 20 MB", "took 31 s and 4 MB", True),
        ("12 features", "24 features", False),
        ("fires", "fired", False),
    ],
)
def test_outputs_agree_but_for_what_machines_differ_in(
    shown: str, printed: str, same: bool
) -> None:
    assert agree([shown], [printed]) is same
