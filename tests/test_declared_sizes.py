"""What a file says of its own size is checked before memory is taken for it."""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tiny
from mutated_files import Kind, corpus, run_limited
from saescope.engine.config import read_config
from saescope.engine.lm import load_lm
from saescope.errors import PromptError, SourceError
from saescope.sources.archives import check_archive
from saescope.sources.declared_sizes import check_config_sizes, check_gguf_file
from saescope.sources.direction_files import read_direction_file
from saescope.sources.files import open_files
from saescope.sources.formats.containers import read_npz, read_safetensors, read_torch
from saescope.sources.prompt_files import read_rows
from saescope.sources.regular_files import UnreadableFileError

ROWS = 10**8


def spread(*shape: int) -> torch.Tensor:
    """A tensor of this shape that is one number."""
    return torch.zeros(1).expand(*shape)


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    out = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + data


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in members.items():
            out.writestr(name, data)
    return path


# --- tensors


@pytest.mark.parametrize("new", [True, False])
def test_tensor_of_one_number_is_refused(new: bool, tmp_path: Path) -> None:
    path = tmp_path / "layer1.sae.pt"
    state = tiny.sae_tensors() | {"W_enc": spread(ROWS, 32), "b_enc": spread(ROWS)}
    torch.save(state, path, _use_new_zipfile_serialization=new)
    with pytest.raises(SourceError, match=r"W_enc says it has 12\.8 GB, the file holds"):
        read_torch(path)
    torch.save({"vector": spread(ROWS)}, tmp_path / "v.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(SourceError, match="400 MB"):
        read_direction_file(tmp_path / "v.pt")


def test_tensors_that_share_memory_as_they_should_are_read(tmp_path: Path) -> None:
    whole = torch.randn(64, 64)
    state = {"a": whole, "b": whole[:32], "c": whole.T, "d": whole[:, ::2], "e": torch.zeros(0, 5)}
    torch.save(state, tmp_path / "x.pt")
    read = read_torch(tmp_path / "x.pt")
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


@pytest.mark.slow
def test_archives_that_swell_are_refused(tmp_path: Path) -> None:
    zeros = write_zip(
        tmp_path / "z.npz", {"W.npy": npy((2**26,), bytes(2**28))}, zipfile.ZIP_DEFLATED
    )
    assert zeros.stat().st_size < 2**20
    with pytest.raises(SourceError, match="268 MB"):
        read_npz(zeros)
    with pytest.raises(SourceError, match="268 MB"):
        read_direction_file(zeros)
    claims = write_zip(tmp_path / "c.npz", {"W.npy": npy((10**12,), bytes(100))})
    for read in (read_npz, read_direction_file):
        with pytest.raises(SourceError):
            read(claims)
    (tmp_path / "c.npy").write_bytes(npy((10**12,), bytes(100)))
    with pytest.raises(SourceError, match="not a readable NumPy file"):
        read_direction_file(tmp_path / "c.npy")


def test_archives_of_torch_hold_what_they_say_uncompressed(tmp_path: Path) -> None:
    torch.save(tiny.sae_tensors(), tmp_path / "x.pt")
    check_archive(tmp_path / "x.pt", stored=True)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    packed = write_zip(tmp_path / "packed.pt", members, zipfile.ZIP_DEFLATED)
    pickle = next(name for name in members if name.endswith("data.pkl"))
    large = write_zip(tmp_path / "large.pt", {**members, pickle: bytes(2**25)})
    for path, reason in ((packed, "it says it holds|compressed"), (large, "description")):
        with pytest.raises(SourceError, match=reason):
            read_torch(path)
        with pytest.raises(UnreadableFileError):
            check_archive(path, stored=True)


@pytest.mark.slow
def test_pickles_nested_without_end_are_refused(tmp_path: Path) -> None:
    deep = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    write_zip(tmp_path / "x.pt", {"x/data.pkl": deep, "x/version": b"3\n"})
    with pytest.raises(SourceError):
        read_torch(tmp_path / "x.pt")
    with pytest.raises(SourceError):
        read_direction_file(tmp_path / "x.pt")


@pytest.mark.parametrize("length", [0, 1, 2**20, 2**40, 2**64 - 1])
def test_header_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    for read in (read_safetensors, read_direction_file):
        with pytest.raises(SourceError):
            read(path)


# --- configs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_dim", 10**9),
        ("num_hidden_layers", 10**7),
        ("num_hidden_layers", 10**400),
        ("hidden_size", 2**40),
        ("vocab_size", 10**12),
        ("num_attention_heads", 10**10),
        ("intermediate_size", 10**18),
    ],
)
def test_config_that_no_model_has_is_refused(key: str, value: int, tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(SourceError, match=f"says {key} is .*: the largest that is read is"):
        read_config(open_files(str(folder)))


def test_large_values_that_take_no_memory_are_read() -> None:
    check_config_sizes(
        Path("config.json"),
        {
            "max_position_embeddings": 10**9,
            "rope_theta": 10**10,
            "rope_parameters": {"rope_theta": 1e10, "original_max_position_embeddings": 2**30},
            "sliding_window": 2**31,
            "vocab_size": 262_208,
            "num_hidden_layers": 126,
            "text_config": {"hidden_size": 16_384, "eos_token_id": [2**31]},
        },
    )
    with pytest.raises(SourceError, match="says hidden_size is 1e\\+10"):
        check_config_sizes(Path("config.json"), {"text_config": [{"hidden_size": 1e10}]})


def test_tables_that_a_config_asks_for_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.save_model(tmp_path / "model")
    monkeypatch.setattr("saescope.engine.weights._MOST_BUFFER_BYTES", 8)
    with pytest.raises(SourceError, match="asks for tables of"):
        load_lm(folder)


def gguf(n_tensors: int, values: list[bytes], rest: bytes = b"") -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(values))
    return head + b"".join(values) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


GGUF_BOMBS: dict[str, bytes] = {
    "tensors": gguf(2**60, []),
    "values": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    "a long name": gguf(0, [struct.pack("<Q", 2**62)]),
    "a long array": gguf(0, [text("a") + struct.pack("<IIQ", 9, 8, 2**62)]),
    "a long array of numbers": gguf(0, [text("a") + struct.pack("<IIQ", 9, 10, 2**61)]),
    "nested arrays": gguf(0, [text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10**5]),
    "blocks": gguf(0, [text("qwen3.block_count") + struct.pack("<II", 4, 10**9)]),
    "width": gguf(0, [text("qwen3.embedding_length") + struct.pack("<IQ", 10, 10**12)]),
    "a tensor far away": gguf(1, [], text("w") + struct.pack("<IQIQ", 1, 8, 0, 2**50)),
}


@pytest.mark.parametrize("title", GGUF_BOMBS)
def test_gguf_file_that_claims_more_than_it_has_is_refused(title: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(GGUF_BOMBS[title])
    with pytest.raises(SourceError):
        check_gguf_file(path)
    with pytest.raises(SourceError):
        load_lm(path)
    with pytest.raises(SourceError):
        read_direction_file(path)


# --- prompts


@pytest.mark.slow
def test_parquet_that_swells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    one = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**6, "i4")), pa.array(["x" * 10**4]))
    pq.write_table(pa.table({"text": one}), path, compression="zstd")
    assert path.stat().st_size < 10**5
    with pytest.raises(PromptError, match="its rows take more than"):
        list(read_rows(path))
    many = pa.table({"set": ["a", "b"] * 50_000, "text": [f"prompt {n}" for n in range(10**5)]})
    pq.write_table(many, path)
    assert len(list(read_rows(path))) == 10**5


# --- whole commands, with limits


@pytest.mark.slow
def test_commands_end_in_time_and_memory(tmp_path: Path) -> None:
    work = tmp_path / "work"
    kinds = {kind.name: kind for kind in corpus(work / "in")}
    changes: dict[str, Callable[[Path], Any]] = {
        "qwen-scope": lambda path: torch.save({"W_enc": spread(ROWS, 32)}, path),
        "config.json": lambda path: path.write_text(
            path.read_text().replace('"head_dim": 8', '"head_dim": 1000000000')
        ),
    }
    for name, change in changes.items():
        kind: Kind = kinds[name]
        path = work / "in" / kind.file
        before = path.read_bytes()
        change(path)
        outcome = run_limited(kind.command, work)
        path.write_bytes(before)
        assert (outcome.code, outcome.faults) == (2, ()), outcome
