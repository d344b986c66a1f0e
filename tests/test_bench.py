"""The bench's own parts: what it makes is what saescope reads, and its tables say what was measured."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.goals import goals_table
from benchmarks.limits import hard_limit
from benchmarks.make_model import make
from benchmarks.report import README, rendered, write
from benchmarks.results import Record, Results
from benchmarks.run import Bench
from benchmarks.shapes import Shape
from benchmarks.subjects import SUBJECTS
from saescope.engine.load import load_sae

SHAPE = Shape("Small", 2, 256, 64, 4, 2, 16, 8_192, True, 4_096)


def test_sae_without_decoder_takes_half_the_disk_and_is_read(tmp_path: Path) -> None:
    with_decoder = make(SHAPE, tmp_path, [0])
    without = make(SHAPE, tmp_path, [0, 1], decoders=False)
    whole, half = (made.sae / "layer0.sae.pt" for made in (with_decoder, without))
    assert whole.stat().st_size == half.stat().st_size
    assert half.stat().st_blocks < 0.6 * whole.stat().st_blocks
    sae, same = load_sae(half.parent, 0), load_sae(whole.parent, 0)
    assert torch.equal(sae.W_enc, same.W_enc)
    assert sae.W_dec is not None
    assert not sae.W_dec.any()
    unmapped = torch.load(half, weights_only=True)  # checksums hold too
    assert torch.equal(unmapped["b_dec"], torch.load(whole, weights_only=True)["b_dec"])
    assert not torch.equal(load_sae(without.sae, 1).W_enc, sae.W_enc)


def _results(folder: Path) -> Results:
    results = Results(folder / "r.jsonl", "here")
    rates = {"rates": {"bfloat16, linear, 64 rows": 2e11, "float32, linear, 64 rows": 4e11}}
    results.add(Record("short", "rates", "here", rates))
    for speed in (90.0, 110.0, 100.0):
        figures = {
            "tokens_per_s": speed,
            "load_s": 1.0,
            "wall_s": 4.0,
            "peak_rss": 2e9,
            "peak_anonymous": 5e8,
        }
        results.add(Record("short", "transformers", "here", figures))
        results.add(
            Record(
                "short", "saescope", "here", figures | {"tokens_per_s": 2 * speed, "shared": 0.98}
            )
        )
    results.add(Record("short", "nnsight", "here", error="cannot be installed: no such version"))
    results.add(Record("short", "saescope", "elsewhere", {"tokens_per_s": 1e9}))
    return Results(folder / "r.jsonl", "here")


def test_table_says_what_was_measured_and_what_was_not(tmp_path: Path) -> None:
    place = Bench((), None, None, "cpu", tmp_path, 5, 0, False, False).place(SUBJECTS["short"])
    text = rendered(SUBJECTS["short"], _results(tmp_path), place)
    lines = {
        cells[1].strip(): cells
        for cells in (line.split("|") for line in text.splitlines())
        if len(cells) > 2
    }
    assert lines["transformers, one line"][2].strip() == "100 (90–110)"
    assert (
        lines["**saescope**"][2].strip() == "200 (180–220)"
    )  # the other machine's record is not counted
    operations = place.shape.token_operations(place.layer)
    assert lines["**saescope**"][3].strip() == f"{200 * operations / 2e11:.2f}"
    assert lines["**saescope**"][4].strip() == f"{200 * operations / 4e11:.2f}"
    assert "no such version" in lines["nnsight, `tracer.stop()`"][2]
    assert lines["the article's loop"][2].strip() == "not measured"
    assert place.shape.token_operations(13) == pytest.approx(1.54e9, rel=0.01)


def test_goals_are_judged_by_medians(tmp_path: Path) -> None:
    text = goals_table({"qwen3-1.7b": _results(tmp_path)})
    line = next(line for line in text.splitlines() if "times one line of transformers" in line)
    assert line.split("|")[2:5] == [" at least 1.00 ", " 2.00 ", " yes "]
    assert "| not measured | – |" in text


def test_bench_goes_on_where_it_stopped(tmp_path: Path) -> None:
    results = _results(tmp_path)
    with results.file.open("a") as file:
        file.write('{"subject": "short", "task": "sae')  # killed while writing
    again = Results(results.file, "here")
    assert len(again.of("short", "saescope")) == 3
    assert again.others == 1
    again.add(Record("short", "saescope", "here", {"tokens_per_s": 1.0}))
    assert len(Results(results.file, "here").of("short", "saescope")) == 4
    again.forget("short")
    assert not Results(results.file, "here").records


def test_table_replaces_what_is_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(
        "a\n<!-- short -->\nold\n<!-- /short -->\nb\n<!-- cuda short -->\n<!-- /cuda short -->\n"
    )
    assert write("short", "new\n", readme)
    assert readme.read_text().startswith(
        "a\n<!-- short -->\nnew\n<!-- /short -->\nb\n<!-- cuda short -->\n<!-- /"
    )
    assert not write("long", "new\n", readme)


def test_every_subject_has_its_place() -> None:
    text = README.read_text()
    for subject in SUBJECTS.values():
        keys = [subject.name] + [f"cuda {subject.name}"] * ("cuda" in subject.devices)
        assert all(f"<!-- {key} -->" in text and f"<!-- /{key} -->" in text for key in keys)


def test_hard_limit_holds_for_its_commands() -> None:
    with hard_limit(200 * 10**6) as limit:
        fits = subprocess.run([*limit.prefix, sys.executable, "-c", "x = b'1' * 10**7"])
        too_much = subprocess.run(
            [*limit.prefix, sys.executable, "-c", "x = b'1' * 10**9"], stderr=subprocess.DEVNULL
        )
    assert fits.returncode == 0
    assert too_much.returncode != 0
