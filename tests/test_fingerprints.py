"""A fingerprint tells a changed file from the old one, cheaply and without trusting the clock."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from saescope.errors import ResourceError
from saescope.sources import file_cache, fingerprints
from saescope.sources.file_parts import file_parts
from saescope.sources.fingerprints import fingerprint, fingerprint_like, whole_hash

MIB = 2**20


@pytest.fixture(autouse=True)
def _all_files_are_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fingerprints, "_WHOLE_LIMIT", 0)
    # So that samples cover a small share, as they do of a real checkpoint's tensors.
    monkeypatch.setattr(fingerprints, "_SAMPLES", 64)
    monkeypatch.setenv("SAESCOPE_CACHE", str(tmp_path / "cache"))


def tensors() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "large.0": torch.randn(1024, 1024, generator=random),
        "norm": torch.randn(64, generator=random),
        "large.1": torch.randn(1024, 1024, generator=random),
        "bias": torch.randn(1000, generator=random),
    }


def save_safetensors(path: Path, values: dict[str, torch.Tensor], note: str = "") -> None:
    save_file(values, path, {"note": note})  # two entries have no fixed order


def save_torch(path: Path, values: dict[str, torch.Tensor], note: str = "") -> None:
    torch.save({**values, "note": note}, path)


def save_npz(path: Path, values: dict[str, torch.Tensor], note: str = "") -> None:
    np.savez(path, **{name: value.numpy() for name, value in values.items()}, note=np.array(note))
    path.with_name(f"{path.name}.npz").rename(path)


def save_gguf(path: Path, values: dict[str, torch.Tensor], note: str = "") -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("note", note)
    writer.add_array("words", ["a", "longer one", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_bool("yes", True)
    for name, value in values.items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


Save = Callable[..., None]
FORMATS: dict[str, Save] = {
    "safetensors": save_safetensors,
    "pt": save_torch,
    "npz": save_npz,
    "gguf": save_gguf,
}


@pytest.fixture(params=FORMATS)
def save(request: pytest.FixtureRequest) -> Save:
    return FORMATS[request.param]


def test_equal_files_have_equal_fingerprints(save: Save, tmp_path: Path) -> None:
    paths = [tmp_path / name / "file" for name in "ab"]
    for path in paths:
        path.parent.mkdir()
        save(path, tensors())
    assert fingerprint(paths[0]) == fingerprint(paths[1])
    assert fingerprint(paths[0]).startswith("parts-sha256:")


@pytest.mark.parametrize(
    ("name", "where"), [("norm", 63), ("bias", 0), ("bias", 500), ("large.1", slice(None))]
)
def test_a_changed_tensor_is_seen(
    save: Save, tmp_path: Path, name: str, where: int | slice
) -> None:
    path = tmp_path / "file"
    save(path, tensors())
    before = fingerprint(path)
    changed = tensors()
    changed[name][where] *= 5
    save(path, changed)
    assert fingerprint(path) != before


def test_changed_metadata_is_seen(save: Save, tmp_path: Path) -> None:
    path = tmp_path / "file"
    save(path, tensors(), "a")
    before = fingerprint(path)
    save(path, tensors(), "b")
    assert fingerprint(path) != before


@pytest.mark.parametrize("form", ["pt", "npz"])
def test_an_archive_tells_any_rewritten_byte(form: str, tmp_path: Path) -> None:
    """Its directory holds a checksum of each entry."""
    path = tmp_path / "file"
    FORMATS[form](path, tensors())
    before = fingerprint(path)
    changed = tensors()
    changed["large.0"][700, 123] += 1
    FORMATS[form](path, changed)
    assert fingerprint(path) != before


def test_parts_are_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "file"
    save_safetensors(path, tensors())
    assert sorted(part.bytes for part in file_parts(path)) == [256, 4000, 4 * MIB, 4 * MIB]
    save_gguf(path, tensors())
    starts = [int(tensor.data_offset) for tensor in gguf.GGUFReader(path).tensors]
    assert [part.start for part in file_parts(path)] == sorted(starts)


def test_every_byte_of_a_plain_file_is_in_one_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"plain" * 10_001)
    end = 0
    for part in file_parts(path):
        assert part.start == end
        end += part.bytes
    assert end == path.stat().st_size


def damaged() -> dict[str, bytes]:
    overlapping = {"a": {"data_offsets": [0, 90]}, "b": {"data_offsets": [10, 5000]}}
    odd = {"a": {"data_offsets": "none"}}
    forms = {}
    for name, header in {"overlapping": overlapping, "odd": odd}.items():
        text = json.dumps(header).encode()
        forms[name] = len(text).to_bytes(8, "little") + text + bytes(200)
    return {
        **forms,
        "empty": b"",
        "endless header": b"\xff" * 8 + b"{}",
        "half a zip": b"PK\x03\x04" + bytes(500),
        "half a gguf": b"GGUF" + bytes(4) + b"\xff" * 16,
        "endless array": b"GGUF\3\0\0\0"
        + bytes(8)
        + b"\1"
        + bytes(7)
        + bytes(8)
        + (9).to_bytes(4, "little")
        + (9).to_bytes(4, "little")
        + b"\xff" * 8,
    }


@pytest.mark.parametrize("form", damaged())
def test_a_damaged_file_has_a_fingerprint_of_all_its_bytes(form: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = damaged()[form]
    path.write_bytes(data)
    before = fingerprint(path)
    for index in (0, len(data) // 2, len(data) - 1):
        if data:
            path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
            assert fingerprint(path) != before


def test_small_files_are_hashed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_WHOLE_LIMIT", 64 * MIB)
    path = tmp_path / "file"
    save_safetensors(path, tensors())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint(path) == f"sha256:{digest}"
    assert whole_hash(path) == digest


def test_fingerprints_of_earlier_versions_can_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        for _ in range(65):
            file.write(bytes(range(256)) * 4096)
    earlier = "sampled-sha256:e3212beb2904f88fc3dafa118f8972ff416cc8bef189db18926a281e7865791c"
    assert fingerprint_like(path, earlier) == earlier
    assert fingerprint_like(path, "parts-sha256:…") == fingerprint(path)


# --- hashes are remembered until the file changes


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, once each time."""
    paths: list[Path] = []
    compute = fingerprints._hash_parts

    def counted(path: Path) -> str:
        paths.append(path)
        return compute(path)

    monkeypatch.setattr(fingerprints, "_hash_parts", counted)
    return paths


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_cache, "_SETTLED_NS", -(10**12))


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "file"
    save_safetensors(path, tensors())
    assert fingerprint(path) == fingerprint(path)
    assert len(reads) == 1
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (whole_hash(path), whole_hash(path)) == (digest, digest)
    fingerprint(path)
    assert len(reads) == 1


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_a_file_with_its_time_set_back_is_read_again(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file"
    save_safetensors(path, tensors())
    before, stat = fingerprint(path), path.stat()
    changed = load_file(path)
    changed["norm"] += 1
    time.sleep(0.02)  # beyond the resolution of the filesystem's clock
    target = path if how == "in place" else tmp_path / "other"
    save_safetensors(target, changed)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    target.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert fingerprint(path) != before


def test_a_file_changed_moments_ago_is_not_remembered(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "file"
    save_safetensors(path, tensors())
    assert fingerprint(path) == fingerprint(path)
    assert len(reads) == 2
    assert not (tmp_path / "cache").exists()


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    save_safetensors(path, tensors())

    def slow(path: Path) -> str:
        path.write_bytes(b"other")
        return "?"

    monkeypatch.setattr(fingerprints, "_hash_parts", slow)
    with pytest.raises(ResourceError, match="changed while it was read"):
        fingerprint(path)


@pytest.mark.usefixtures("settled")
def test_without_a_cache_folder_nothing_is_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    path = tmp_path / "file"
    save_safetensors(path, tensors())
    assert fingerprint(path) == fingerprint(path)
    assert len(reads) == 2
