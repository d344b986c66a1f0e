"""A run that is not as it was published answers nothing, and `verify` says what is wrong with it.

Every kind of damage is tried on a copy of one small run. Kinds in `SIGNED` renew the table's hash
and the manifest's digest: only what a table holds can tell.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from saescope.surfaces.cli import run as cli
from stored import edit_manifest, sign_table, write_run

Damage = Callable[[Path], object]
LAYER, RESID, PROMPTS, TOKENS = (
    f"{name}.parquet" for name in ("layer2", "resid2", "prompts", "tokens")
)
COMMANDS = ("contrast", "layers", "report", "verify")


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fires = np.random.default_rng(0).random((24 * 4, 12)) < 0.4
    fires[:, 3] = np.arange(24 * 4) < 48
    folder = tmp_path_factory.mktemp("runs") / "intact"
    lengths = {"red": [4] * 12, "blue": [4] * 12}
    return write_run(folder, lengths, {2: fires, 5: ~fires}).path


@pytest.fixture
def run(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "run"))


def column(name: str, change: Callable[[list[Any]], Any]) -> Callable[[pa.Table], pa.Table]:
    """A change of one column's values, which keeps its type."""

    def changed(table: pa.Table) -> pa.Table:
        index = table.column_names.index(name)
        values = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
        return table.set_column(index, name, values)

    return changed


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    """Another first value."""
    return lambda values: [value, *values[1:]]


def row(change: Callable[[list[Any]], list[Any]]) -> Callable[[list[Any]], list[Any]]:
    """Another list in the first row that has two entries."""

    def changed(rows: list[Any]) -> list[Any]:
        index = next(i for i, entries in enumerate(rows) if len(entries) > 1)
        return [*rows[:index], change(rows[index]), *rows[index + 1 :]]

    return changed


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.ParquetFile(path).read()), path)


def flip(name: str) -> Damage:
    def damage(run: Path) -> None:
        data = bytearray((run / name).read_bytes())
        data[len(data) // 2] ^= 1
        (run / name).write_bytes(data)

    return damage


def replaced(name: str, make: Damage) -> Damage:
    """Something else in the place of a file."""

    def damage(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return damage


def edited(change: Callable[[dict[str, Any]], object], sign: bool = False) -> Damage:
    return lambda run: edit_manifest(run, change, sign)


def bytes_of_manifest(data: bytes) -> Damage:
    return lambda run: (run / "manifest.json").write_bytes(data)


def earlier(damage: Damage) -> Damage:
    """The damage in a run of an earlier version, without digest and sizes."""

    def damaged(run: Path) -> None:
        edit_manifest(run, lambda manifest: (manifest.pop("digest"), manifest.pop("bytes")))
        damage(run)

    return damaged


def sae(**fields: Any) -> Damage:
    """Another SAE in the manifest, as if it had been published so."""
    return edited(lambda manifest: manifest["job"]["saes"][0].update(fields), sign=True)


def longer(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def sparse(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(2**40)


FILES: dict[str, Damage] = {
    **{f"bit flipped in {name}": flip(name) for name in (LAYER, RESID, PROMPTS, TOKENS)},
    **{
        f"{name} missing": (lambda run, name=name: (run / name).unlink())
        for name in (LAYER, RESID, PROMPTS, TOKENS)
    },
    "cut off": lambda run: os.truncate(run / LAYER, 300),
    "empty": lambda run: os.truncate(run / LAYER, 0),
    "longer": lambda run: longer(run / LAYER),
    "a terabyte of nothing": lambda run: sparse(run / LAYER),
    "a terabyte of nothing, earlier version": earlier(lambda run: sparse(run / LAYER)),
    "no Parquet": lambda run: (run / LAYER).write_text("x" * 500),
    "another layer's table": lambda run: shutil.copy(run / "layer5.parquet", run / LAYER),
    "bit flipped, earlier version": earlier(flip(LAYER)),
    "cut off, earlier version": earlier(lambda run: os.truncate(run / LAYER, 300)),
    "a folder": replaced(LAYER, Path.mkdir),
    "a FIFO": replaced(LAYER, os.mkfifo),
    "a device": replaced(LAYER, lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": replaced(LAYER, lambda path: path.symlink_to(path)),
    "activations doubled": lambda run: rewrite(
        run / LAYER, column("acts", lambda rows: [[2 * act for act in row] for row in rows])
    ),
    "sets swapped": lambda run: rewrite(run / PROMPTS, column("set", lambda sets: sets[::-1])),
    "another text": lambda run: rewrite(run / PROMPTS, column("text", first("other"))),
}
MANIFEST: dict[str, Damage] = {
    "another model's name": edited(lambda m: m["job"]["model"].update(repo="other")),
    "another model's name, earlier version": earlier(
        edited(lambda m: m["job"]["model"].update(repo="other"))
    ),
    "another command": edited(lambda m: m.update(command={"verb": "profile", "request": {}})),
    "another option": edited(lambda m: m["command"]["options"].update(alpha=0.5)),
    "another input": edited(lambda m: m["inputs"].update(model="/tmp/other")),
    "another SAE": edited(lambda m: m["inputs"]["saes"].update({"2": "other"})),
    "kernels": edited(lambda m: m.update(kernels={"float32": "onednn"})),
    "special tokens": edited(lambda m: m.update(special_tokens=[1])),
    "files": edited(lambda m: m.update(files={})),
    "time": edited(lambda m: m.update(created="2001-01-01T00:00:00+00:00")),
    "fit": edited(lambda m: m["sae_fit"].update({"2": None})),
    "another hash": edited(lambda m: m["tables"].update({LAYER: "0" * 64}), sign=True),
    "no hash": edited(lambda m: m["tables"].update({LAYER: "x"}), sign=True),
    "another size": edited(lambda m: m["bytes"].update({LAYER: 1}), sign=True),
    "no size": edited(lambda m: m["bytes"].pop(LAYER), sign=True),
    "size of another type": edited(lambda m: m["bytes"].update({LAYER: "1"}), sign=True),
    "digest removed": edited(lambda m: m.pop("digest")),
    "digest of another type": edited(lambda m: m.update(digest=1)),
    "table not listed": edited(lambda m: m["tables"].pop(LAYER), sign=True),
    "table of elsewhere": edited(lambda m: m["tables"].update({"../x": "0" * 64}), sign=True),
    "tables are a list": edited(lambda m: m.update(tables=[]), sign=True),
    "no job": edited(lambda m: m.pop("job"), sign=True),
    "job is a list": edited(lambda m: m.update(job=[]), sign=True),
    "dtype": edited(lambda m: m["job"].update(dtype="bfloat16"), sign=True),
    "tokens per batch": edited(lambda m: m["job"].update(batch_tokens=True), sign=True),
    "no SAEs": edited(lambda m: m["job"].update(saes=[]), sign=True),
    "no model": edited(lambda m: m["job"].pop("model"), sign=True),
    "the layer twice": sae(layer=5),
    "a layer that the model has not": sae(layer=99),
    "a layer in words": sae(layer="2"),
    "fewer features": sae(d_sae=4),
    "k above the width": sae(k=10**9),
    "another width of the residual": sae(d_model=8),
    "an unknown field": sae(colour="red"),
    "no verb": edited(lambda m: m.update(command={}), sign=True),
    "inputs of another form": edited(lambda m: m.update(inputs={"model": 1, "saes": []}), True),
    "half a surrogate pair": edited(lambda m: m.update(created="\ud800")),
    "schema 999": edited(lambda m: m.update(schema=999), sign=True),
    "schema true": edited(lambda m: m.update(schema=True), sign=True),
    "schema in words": edited(lambda m: m.update(schema="3"), sign=True),
    "a list of schemas": edited(lambda m: m.update(schema=[3]), sign=True),
    "manifest empty": bytes_of_manifest(b""),
    "manifest cut off": lambda run: os.truncate(run / "manifest.json", 400),
    "manifest a list": bytes_of_manifest(b"[]"),
    "manifest not UTF-8": bytes_of_manifest(b'{"schema": "\xff"}'),
    "manifest nested": bytes_of_manifest(b'{"a":' * 50_000),
    "manifest with a long number": bytes_of_manifest(b'{"schema": 1%s}' % (b"0" * 5000)),
    "manifest too large": lambda run: sparse(run / "manifest.json"),
    "manifest missing": lambda run: (run / "manifest.json").unlink(),
    "manifest a FIFO": replaced("manifest.json", os.mkfifo),
    "manifest a folder": replaced("manifest.json", Path.mkdir),
    "manifest a device": replaced("manifest.json", lambda path: path.symlink_to("/dev/zero")),
}
SIGNED: Mapping[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "activation 0": (LAYER, column("acts", row(lambda acts: [*acts[:-1], 0.0]))),
    "activation below 0": (LAYER, column("acts", row(lambda acts: [*acts[:-1], -1.0]))),
    "activation no number": (LAYER, column("acts", row(lambda acts: [*acts[:-1], np.nan]))),
    "activation infinite": (LAYER, column("acts", row(lambda acts: [np.inf, *acts[1:]]))),
    "activations not sorted": (LAYER, column("acts", row(lambda acts: acts[::-1]))),
    "an id twice": (LAYER, column("ids", row(lambda ids: [ids[1], *ids[1:]]))),
    "an id twice in each token": (
        LAYER,
        column("ids", lambda rows: [[ids[0]] * len(ids) if ids else ids for ids in rows]),
    ),
    "id above the width": (LAYER, column("ids", row(lambda ids: [12, *ids[1:]]))),
    "more ids than activations": (LAYER, column("ids", row(lambda ids: [*ids, 11]))),
    "no id": (LAYER, column("ids", row(lambda ids: [None, *ids[1:]]))),
    "more than k": (
        LAYER,
        lambda table: column("acts", row(lambda _: [9.0] * 12))(
            column("ids", row(lambda _: [*range(12)]))(table)
        ),
    ),
    "norm no number": (LAYER, column("norm", first(np.nan))),
    "norm infinite": (LAYER, column("norm", first(np.inf))),
    "norm below 0": (LAYER, column("norm", first(-1.0))),
    "no norm": (LAYER, column("norm", first(None))),
    "border infinite": (LAYER, column("border", first(np.inf))),
    "error of one token": (LAYER, column("error", first(1.0))),
    "rows cut off": (LAYER, lambda table: table.slice(0, len(table) - 3)),
    "rows twice": (LAYER, lambda table: pa.concat_tables([table, table])),
    "no rows": (LAYER, lambda table: table.slice(0, 0)),
    "column missing": (LAYER, lambda table: table.drop_columns(["border"])),
    "column added": (LAYER, lambda table: table.append_column("x", table["norm"])),
    "column twice": (LAYER, lambda table: table.append_column("norm", table["norm"])),
    "columns in another order": (LAYER, lambda table: table.select(table.column_names[::-1])),
    "another type": (
        LAYER,
        lambda table: table.set_column(0, "norm", table["norm"].cast(pa.float64())),
    ),
    "no lists": (LAYER, lambda table: table.set_column(1, "ids", table["norm"])),
    "a billion rows in few bytes": (
        LAYER,
        lambda _: pa.table({"norm": pa.nulls(40_000_000, pa.float32())}),
    ),
    "prompt of a token": (TOKENS, column("prompt", lambda prompts: prompts[::-1])),
    "prompt that is not there": (TOKENS, column("prompt", first(99))),
    "position": (TOKENS, column("pos", first(1))),
    "id of a token": (TOKENS, column("token_id", first(-1))),
    "no token": (TOKENS, column("token", first(None))),
    "tokens cut off": (TOKENS, lambda table: table.slice(0, len(table) - 1)),
    "prompt's id twice": (PROMPTS, column("id", lambda ids: [ids[1], *ids[1:]])),
    "no id of a prompt": (PROMPTS, column("id", first(None))),
    "no set": (PROMPTS, column("set", first(None))),
    "no text": (PROMPTS, column("text", first(None))),
    "number of tokens": (PROMPTS, column("n_tokens", first(5))),
    "no tokens": (PROMPTS, column("n_tokens", first(0))),
    "tokens below 0": (PROMPTS, column("n_tokens", first(-(2**31)))),
    "split": (PROMPTS, column("split", first("train"))),
    "prompts cut off": (PROMPTS, lambda table: table.slice(0, len(table) - 1)),
    "no prompts": (PROMPTS, lambda table: table.slice(0, 0)),
    "messages no JSON": (PROMPTS, column("messages", first("{"))),
    "messages nested": (PROMPTS, column("messages", first("[" * 50_000))),
    "messages a number": (PROMPTS, column("messages", first("1"))),
}


def signed(name: str, change: Callable[[pa.Table], pa.Table]) -> Damage:
    def damage(run: Path) -> None:
        rewrite(run / name, change)
        sign_table(run, name)

    return damage


KINDS = FILES | MANIFEST | {name: signed(*kind) for name, kind in SIGNED.items()}


@pytest.mark.slow
def test_the_intact_run_answers(intact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert cli([command, str(intact)]) == 0
    assert "is whole" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_from_a_damaged_run(
    run: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    KINDS[kind](run)
    for command in COMMANDS:
        code = cli([command, str(run)])
        shown = capsys.readouterr()
        assert code == 2 or (command == "verify" and code == 1), command
        if code == 2:
            assert not shown.out, command
            assert len(shown.err.strip().splitlines()) == 1, command
    assert not run.with_suffix(".html").exists()


def test_many_kinds_are_tried() -> None:
    assert len(KINDS) >= 100
