"""Numbers out of range are refused before anything is loaded, by the name that was typed."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import saescope as ss
from saescope.arguments import ranges_of
from saescope.jobs.registry import REQUESTS
from saescope.jobs.request import _nested
from saescope.surfaces.cli import app, run
from saescope.surfaces.cli.naming import as_typed, options_of, typed_names

SOURCES = Path(ss.__file__).parent
ABSURD = ["-1", "nan", "inf", "-inf", "1e30", str(2**70), "x", "1,", "9" * 5000]
REQUIRED = {
    "scan": ["hi"],
    "steer": ["hi", "--edit", "0/1"],
    "detect": ["languages", "--target", "en"],
    "select": ["languages", "--target", "en"],
    "evaluate": ["--prompts", "requests", "--edit", "0/1"],
    "diff": ["a", "b"],
    "bake": ["--edit", "0/1", "--out", "baked"],
    "export": ["--format", "saelens", "--out", "exported"],
    "report": ["run"],
    "rerun": ["run"],
    "verify": ["run"],
}


def numeric_options() -> Iterator[tuple[str, str, str]]:
    """Yield each command with each of its options that is a number: verb, field and option."""
    for verb, request in sorted(REQUESTS.items()):
        names = typed_names(app[verb])
        for dataclass in _nested(request):
            for field, hint in get_type_hints(dataclass).items():
                if field in names and re.search(r"\b(int|float)\b", str(hint)):
                    yield verb, field, names[field]


NUMERIC = sorted(set(numeric_options()))


def test_every_number_has_a_range() -> None:
    for request in REQUESTS.values():
        for dataclass in _nested(request):
            for field, hint in get_type_hints(dataclass).items():
                if re.search(r"\b(int|float)\b", str(hint)):
                    assert field in ranges_of(dataclass), (dataclass, field)
    assert len(NUMERIC) > 60


@pytest.mark.slow
def test_absurd_numbers_are_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def ran(*_: Any) -> None:
        raise AssertionError("the command ran")

    monkeypatch.chdir(tmp_path)
    for request in REQUESTS.values():
        monkeypatch.setattr(request, "run", ran)
    first = {option: verb for verb, _, option in NUMERIC}
    for n, (option, verb) in enumerate(first.items()):
        for value in (ABSURD[n % len(ABSURD)], ABSURD[(n + 4) % len(ABSURD)]):
            if value == "-1" and option in ("--sweep", "--strengths"):
                continue  # edits that are turned round
            code = run([verb, *REQUIRED.get(verb, []), option, value])
            out, err = capfd.readouterr()
            assert (code, out) == (2, ""), (verb, option, value, err)
            [line] = err.splitlines()
            assert line.startswith("saescope: "), line
            assert option in line, line
            assert len(line) < 200, line


def test_python_is_told_of_the_argument() -> None:
    with pytest.raises(ss.ArgumentError, match=r"^n_top must be at least 1, got 0$") as raised:
        ss.ContrastSettings(n_top=0).check()
    assert raised.value.name == "n_top"
    for request in (
        lambda: REQUESTS["steer"]("hi", seed=-1),  # type: ignore[call-arg]
        lambda: REQUESTS["steer"].from_dict({"prompt": "hi", "seed": -1}),
    ):
        with pytest.raises(ss.ArgumentError, match=r"^seed must be 0 or more, got -1$"):
            request()


def test_texts_name_options_as_typed() -> None:
    with options_of(lambda: app["detect"]):
        assert as_typed("lower min_rate, or set keep_pos0=True") == (
            "lower --min-rate, or set --keep-pos0"
        )
        assert as_typed("pass k=N; give sae= too") == "pass --k N; give --sae too"
        unchanged = "a/max_other/b.txt, 'min_rate', the seed, no_such_option=1"
        assert as_typed(unchanged) == unchanged
    with options_of(lambda: app["bake"]):
        assert as_typed("set measure=False, or convert='project'") == (
            "set --no-measure, or --as project"
        )
    assert as_typed("lower min_rate") == "lower min_rate"


def messages(file: Path) -> Iterator[str]:
    """Yield the texts of all exceptions that a file raises, as far as they are constant."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for argument in node.exc.args:
                if isinstance(argument, ast.Constant | ast.JoinedStr):
                    yield _text(argument)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "X"


def test_messages_of_the_library_name_arguments_only() -> None:
    names = {field for _, field, _ in NUMERIC}
    for verb in REQUESTS:
        names |= typed_names(app[verb]).keys()
    n_messages = 0
    for file in SOURCES.rglob("*.py"):
        if file.is_relative_to(SOURCES / "surfaces" / "cli"):
            continue
        for text in messages(file):
            n_messages += 1
            # Options of other programs, such as vLLM's, are theirs.
            assert not re.search(r"(?<![\w-])--[a-z]", text), (file, text)
            for said in re.findall(r"\b(?:pass|set) ([a-z_]\w*)(?![\w=])", text):
                assert said not in names, f"{file}: write {said}= in {text!r}"
    assert n_messages > 300


def test_every_default_lies_in_its_range() -> None:
    for request in REQUESTS.values():
        for dataclass in _nested(request):
            for field in fields(dataclass):
                limits = ranges_of(dataclass).get(field.name)
                if limits is not None and not is_dataclass(field.default):
                    limits.check(field.name, field.default)
