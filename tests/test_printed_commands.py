"""What commands tell people to type works when it is typed."""

import ast
import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from documents import ROOT, check_command
from outputs import FOLDER, TERMINAL
from saescope.surfaces.cli import COMMANDS, app
from saescope.surfaces.cli import run as cli

VERBS = {command.verb for commands in COMMANDS.values() for command in commands}
# A command within a sentence ends where its options, values in capitals and quoted texts end.
_WORDS = r"""(?:\ (?:--[\w-]+|[A-Z]+\b|"[^"]*"|'[^']*'|[\w.-]*[/.]\w[\w./-]*))*"""
_IN_TEXT = re.compile(rf"\bsaescope ([a-z]+)\b({_WORDS})")
_ON_A_LINE = re.compile(r"^(?:\$|\ ) +?(saescope .*?)(?: {2,}.*)?$", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_NO_VERBS = {"finds", "needs", "evaluation", "report"}  # words after the program's name

Captured = pytest.CaptureFixture[str]


def typed(text: str) -> Iterator[str]:
    """Commands of a text that are complete: on a line of their own."""
    return (line.strip() for line in _ON_A_LINE.findall(text))


def mentioned(text: str) -> Iterator[tuple[str, list[str]]]:
    """Verbs and options of the commands that a text names anywhere."""
    for verb, words in _IN_TEXT.findall(text):
        yield verb, _OPTION.findall(words)


def options(verb: str) -> set[str]:
    return {name for one in app[verb].assemble_argument_collection() for name in one.names}


def test_commands_are_found_in_texts() -> None:
    text = 'Try:\n  saescope scan "a  b"   tokens\nsee saescope profile run/x --json, or others'
    assert list(typed(text)) == ['saescope scan "a']  # a line ends at two spaces
    assert list(typed("$ saescope verify run --full\n")) == ["saescope verify run --full"]
    assert list(mentioned(text)) == [("scan", []), ("profile", ["--json"])]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_commands_of_outputs_parse(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    commands = list(typed(text))
    assert commands[0].startswith("saescope")
    for command in commands:
        check_command(command)


def _texts_of_code() -> Iterator[tuple[str, str]]:
    """Strings of the package that may be shown: all but docstrings."""
    for path in sorted((ROOT / "src/saescope").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            is_shown = isinstance(node, ast.Constant) and id(node) not in statements
            if is_shown and isinstance(node.value, str):
                yield path.name, node.value
    for path in sorted((ROOT / "src/saescope").rglob("*.html")):
        yield path.name, html.unescape(path.read_text(encoding="utf-8"))


def test_commands_named_in_messages_exist() -> None:
    named = 0
    for name, text in _texts_of_code():
        for verb, given in mentioned(text):
            if verb in VERBS:
                named += 1
                assert set(given) <= options(verb), (name, verb, given)
            else:
                assert verb in _NO_VERBS, (name, verb)
    assert named >= 8


def test_options_named_by_the_command_line_exist() -> None:
    known = {option for verb in VERBS for option in options(verb)} | {"--help", "--version"}
    for path in sorted((ROOT / "src/saescope/surfaces/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = set(_OPTION.findall(node.value)) - {"--no-"}
                assert named <= known, path.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and a prompt set of one set."""
    folder = tmp_path_factory.mktemp("hints")
    rows = '{"text": "a red dog", "set": "x"}\n{"text": "a blue dog", "set": "x"}\n'
    (folder / "one.jsonl").write_text(rows, encoding="utf-8")
    more = rows + rows.replace('"x"', '"y"')
    (folder / "two.jsonl").write_text(more * 3, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli(["contrast", "two.jsonl", "--layers", "2", "--out", "run"]) == 0
    return folder


# A command that is refused or noted on, what it says, and the command with that done.
HINTS = [
    ("scna run", "did you mean scan?", "scan run"),
    ('scan "a dog" --layrs 2', "did you mean --layers?", 'scan "a dog" --layers 2'),
    ("profile run --n 3", "unknown option --n: see saescope profile --help", "profile --help"),
    (
        "evaluate --prompts p --pattern x",
        "--pattern: see saescope evaluate --help",
        "evaluate --help",
    ),
    (
        "detect run --target x --against y z",
        "repeat an option for each of its values; see saescope detect --help",
        "detect run --target x --against y",
    ),
    ("scan the dog --layers 2 --edit 3", "--edit: see saescope scan --help", ""),
    ('scan "a dog" --device cuda', "pass --device cpu", 'scan "a dog" --device cpu'),
    (
        'scan "a dog" --model saescope-tiny-chat',
        "pass --sae too",
        'scan "a dog" --model saescope-tiny-chat --sae saescope-tiny-sae',
    ),
    (
        "fitness two.jsonl --base saescope-tiny",
        "pass --sae and --model too",
        "fitness two.jsonl --base saescope-tiny --sae saescope-tiny-sae"
        " --model saescope-tiny-chat --out fit",
    ),
    (
        "contrast two.jsonl --memory 1MB --out small",
        "raise the memory budget to ",
        "contrast two.jsonl --memory {memory} --out small",
    ),
    (
        "plan --memory 1MB",
        "instead: raise the memory budget to ",
        "plan --memory {memory}",
    ),
    ("fetch --memory 1MB", "saescope plan with the same options", "plan --memory 0.7GB"),
    (
        "export --format neuronpedia --out features",
        "give a run made before with --run RUN",
        "export --format neuronpedia --run run --out features --no-logits",
    ),
    (
        'export --edit "2/7 scale -1" --format lora --out lora',
        'export its direction as "2/7 project 1"',
        'export --edit "2/7 project 1" --format lora --out lora --no-measure',
    ),
    ("diff saescope-tiny", "--b requires an argument", "diff saescope-tiny --b saescope-tiny"),
    (
        "detect run --target x --min-rate 0.1",
        "--max-other must be below --min-rate",
        "detect run --target x --min-rate 0.1 --max-other 0",
    ),
    (
        "detect run --target x --transfer :y",
        "give NAME or NAME:OTHER",
        "detect run --target x --transfer y:x",
    ),
    ('steer "a dog"', 'an edit such as "17/23991 scale -1"', ""),
    (
        'steer "a dog" --edit "2/7 blow"',
        "is not one of add, scale, clamp",
        'steer "a dog" --edit "2/7 add 1" --max-new-tokens 1',
    ),
    ("layers run --feature five", "for instance 17/23991", "layers run --feature 2/5"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "hint", "onward"), HINTS, ids=[one[0] for one in HINTS])
def test_what_a_refusal_proposes_works(
    line: str,
    hint: str,
    onward: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
) -> None:
    monkeypatch.chdir(folder)
    for name, value in TERMINAL.items():
        monkeypatch.setenv(name, value)
    words = shlex.split(line)
    code = cli(words)
    shown = capsys.readouterr()
    text = " ".join(f"{shown.out} {shown.err}".split())
    assert hint in text
    assert code in ([0] if words[0] == "fetch" else [1, 2])
    if words[0] in VERBS:
        proposed = set(_OPTION.findall(hint)) - {"--help"}
        rejected = {word for word in words if f"unknown option {word}:" in text}
        assert proposed - rejected <= options(words[0])
    if onward:
        memory = re.search(r"raise the memory budget to (\S+)", text)
        onward = onward.format(memory=memory and memory[1])
        assert cli(shlex.split(onward)) == 0


def test_a_cache_that_the_environment_keeps_offline_is_named_so(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    line = ["diff", "saescope-tiny", "nobody/nothing-of-this-name"]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli(line) == 2
    assert "fetch it once without HF_HUB_OFFLINE=1" in capsys.readouterr().err
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert cli([*line, "--offline"]) == 2
    assert "fetch it once without --offline" in capsys.readouterr().err


def test_commands_of_a_report_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(folder)
    assert cli(["report", "run"]) == 0
    page = html.unescape((folder / "run.html").read_text(encoding="utf-8"))
    blocks = re.findall(r"<code>(saescope [^<]*)</code>", page)
    commands = [line for block in blocks for line in block.splitlines()]
    assert {command.split()[1] for command in commands} >= {"rerun", "verify"}
    for command in commands:
        check_command(command)
        if command.split()[1] == "verify":
            assert cli(shlex.split(command)[1:]) == 0


def test_the_guide_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(folder)
    assert cli([]) == 0
    commands = [shlex.split(line)[1:] for line in typed(capsys.readouterr().out)]
    assert [words[0] for words in commands] == ["demo", "scan", "contrast", "contrast"]
    assert cli(commands[1]) == 0  # the others are examples of the documents


def test_a_run_of_an_earlier_version_is_named(capsys: Captured) -> None:
    from saescope.store.sae_fit import SaeFits
    from saescope.surfaces.cli.show import print_sae_fits, stdout

    print_sae_fits(stdout(), SaeFits({2: None}, {}), "my runs/old")
    [command] = re.findall(
        "saescope rerun .*(?= records)", " ".join(capsys.readouterr().out.split())
    )
    assert shlex.split(command)[2:] == ["my runs/old", "--out", "my runs/old-again"]
    check_command(command)


def test_a_file_of_edits_is_named_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    header = 'model = "saescope-tiny"\nsae = "saescope-tiny-sae"\nd_sae = 512\n'
    edit = '[[edit]]\nfeature = "2/7"\nop = "scale"\nstrength = -1.0\n'
    for text, where in (("color = 3\n", "the file"), (f"{edit}color = 3\n", "edit 1")):
        Path("e.toml").write_text(header + text, encoding="utf-8")
        assert cli(["steer", "a dog", "--edits", "e.toml"]) == 2
        assert f"saescope: e.toml: {where} has an unknown key 'color'" in capsys.readouterr().err
