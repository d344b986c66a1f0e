"""The bench makes files that saescope reads, and its tables show exactly what was measured."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks.goals import goals_table
from benchmarks.limits import hard_limit
from benchmarks.make_model import make
from benchmarks.options import Bench
from benchmarks.report import README, render, write
from benchmarks.results import Record, Results
from benchmarks.shapes import Shape
from benchmarks.subject import SubjectResults
from benchmarks.subjects import SUBJECTS
from saescope.engine.load import load_sae

SHAPE = Shape("Small", 2, 256, 64, 4, 2, 16, 8_192, True, 4_096)


def test_sae_without_decoder_takes_half_the_disk_and_is_readable(tmp_path: Path) -> None:
    with_decoder = make(SHAPE, tmp_path, [0])
    without = make(SHAPE, tmp_path, [0, 1], decoders=False)
    whole = with_decoder.sae / "layer0.sae.pt"
    encoder_file = without.sae / "layer0.sae.pt"
    assert whole.stat().st_size == encoder_file.stat().st_size
    assert encoder_file.stat().st_blocks < 0.6 * whole.stat().st_blocks
    sae, complete = load_sae(encoder_file.parent, 0), load_sae(whole.parent, 0)
    assert torch.equal(sae.W_enc, complete.W_enc)
    assert sae.W_dec is not None
    assert not sae.W_dec.any()
    unmapped = torch.load(encoder_file, weights_only=True)  # verifies the checksums too
    assert torch.equal(unmapped["b_dec"], torch.load(whole, weights_only=True)["b_dec"])
    assert not torch.equal(load_sae(without.sae, 1).W_enc, sae.W_enc)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Three rounds of the short prompts, one failed peer, and one record of another machine."""
    file = tmp_path / "results.jsonl"
    written = Results(file, "here")
    rates = {"rates": {"bfloat16, linear, 64 rows": 2e11, "float32, linear, 64 rows": 4e11}}
    written.add(Record("short", "rates", "here", rates))
    process = {"load_s": 1.0, "wall_s": 4.0, "peak_rss": 2e9, "peak_anonymous": 5e8}
    for speed in (90.0, 110.0, 100.0):
        cut = {"tokens_per_s": speed, **process}
        written.add(Record("short", "transformers", "here", cut))
        ours = {"tokens_per_s": 2 * speed, **process, "shared": 0.98}
        written.add(Record("short", "saescope", "here", ours))
    written.add(Record("short", "nnsight", "here", error="installation failed: no such version"))
    written.add(Record("short", "saescope", "elsewhere", {"tokens_per_s": 1e9}))
    return Results(file, "here")


def test_table_shows_what_was_measured_and_what_was_not(results: Results, tmp_path: Path) -> None:
    subject = SUBJECTS["short"]
    setup = Bench((subject,), tmp_path).setup(subject)
    text = render(SubjectResults(subject, setup, results))
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 2:
            rows[cells[1]] = cells
    assert rows["transformers, cut"][2] == "100 (90–110)"
    assert rows["**saescope**"][2] == "200 (180–220)"  # without the other machine's record
    operations = setup.shape.token_operations(setup.layer)
    assert rows["**saescope**"][3] == f"{200 * operations / 2e11:.2f}"
    assert rows["**saescope**"][4] == f"{200 * operations / 4e11:.2f}"
    assert "no such version" in rows["nnsight, `tracer.stop()`"][2]
    assert rows["the article's loop"][2] == "not measured"
    assert setup.shape.token_operations(13) == pytest.approx(1.54e9, rel=0.01)


def test_goals_are_judged_by_medians(results: Results) -> None:
    text = goals_table({"qwen3-1.7b": results})
    line = next(line for line in text.splitlines() if "relative to cut transformers" in line)
    assert line.split("|")[2:5] == [" at least 1.00 ", " 2.00 ", " yes "]
    assert "| not measured | – |" in text


def test_interrupted_bench_continues(results: Results) -> None:
    with results.file.open("a") as file:
        file.write('{"subject": "short", "task": "sae')  # killed while writing
    resumed = Results(results.file, "here")
    assert len(resumed.of("short", "saescope")) == 3
    assert resumed.n_ignored == 1
    resumed.add(Record("short", "saescope", "here", {"tokens_per_s": 1.0}))
    assert len(Results(results.file, "here").of("short", "saescope")) == 4
    resumed.forget("short")
    assert not Results(results.file, "here").records


def test_table_replaces_the_text_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    other = "<!-- cuda short -->\n<!-- /cuda short -->\n"
    readme.write_text(f"a\n<!-- short -->\nold\n<!-- /short -->\nb\n{other}")
    assert write("short", "new\n", readme)
    assert readme.read_text() == f"a\n<!-- short -->\nnew\n<!-- /short -->\nb\n{other}"
    assert not write("long", "new\n", readme)


def test_readme_has_markers_for_every_subject() -> None:
    text = README.read_text()
    for subject in SUBJECTS.values():
        keys = [subject.name]
        if "cuda" in subject.devices:
            keys.append(f"cuda {subject.name}")
        for key in keys:
            assert f"<!-- {key} -->" in text
            assert f"<!-- /{key} -->" in text


def test_hard_limit_holds_for_commands_with_its_prefix() -> None:
    with hard_limit(200 * 10**6) as limit:
        python = [*limit.prefix, sys.executable, "-c"]
        small = subprocess.run([*python, "x = b'1' * 10**7"])
        large = subprocess.run([*python, "x = b'1' * 10**9"], stderr=subprocess.DEVNULL)
    assert small.returncode == 0
    assert large.returncode != 0


def test_benchmark_modules_import_in_one_direction() -> None:
    folder = Path(benchmarks.__file__).parent
    imports: dict[str, set[str]] = {}
    for file in folder.rglob("*.py"):
        module_path = file.relative_to(folder.parent).with_suffix("").parts
        names = imports.setdefault(".".join(module_path).removesuffix(".__init__"), set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    remaining = dict(imports)
    while remaining:
        leaves = [
            name for name, others in remaining.items() if not others & remaining.keys() - {name}
        ]
        assert leaves, f"import circle among {sorted(remaining)}"
        for name in leaves:
            del remaining[name]
