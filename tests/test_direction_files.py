"""Files of directions that other tools wrote: which layer they mean, and what is refused."""

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tiny
from saescope.control.edits import Edit, EditSet, parse_edit
from saescope.control.edits_file import read_edits, write_edits
from saescope.control.steer import steered
from saescope.engine.lm import load_lm
from saescope.errors import EditError, SourceError
from saescope.sources.directions import Direction, read_direction

V = np.arange(1, 5, dtype=np.float32)


def save_control_vector(path: Path, vectors: dict[int, np.ndarray[Any, Any]], **texts: str) -> Path:
    """Written by the `gguf` package, in the calls of repeng's and EasySteer's export_gguf."""
    writer = gguf.GGUFWriter(str(path), "controlvector")
    writer.add_string("controlvector.model_hint", "qwen3")
    writer.add_uint32("controlvector.layer_count", len(vectors))
    writer.add_float32("controlvector.explained_variance.3", 0.5)
    writer.add_array("controlvector.tags", ["a", "b"])
    for key, text in texts.items():
        writer.add_string(f"controlvector.{key}", text)
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_control_vectors_are_read_at_the_layer_they_name(tmp_path: Path, dtype: type) -> None:
    vectors = {layer: (V * layer).astype(dtype) for layer in (1, 2, 17, 35)}
    path = save_control_vector(tmp_path / "cv.gguf", vectors, method="diffmean")
    for layer, vector in vectors.items():
        direction = read_direction(path, layer=layer)
        assert direction == Direction(layer, vector, "cv", origin="GGUF control vector of qwen3")
        assert read_direction(path, f"direction.{layer}") == direction
        assert parse_edit(f"{path}@{layer} add 2").direction == direction
    with pytest.raises(SourceError, match=r"layers 1-2, 17, 35, none of layer 4: .*as cv.gguf@17"):
        read_direction(path, layer=4)
    with pytest.raises(EditError, match=r"choose one, as cv\.gguf@17"):
        parse_edit(f"{path} add 2")


def test_control_vectors_of_bfloat16_are_read(tmp_path: Path) -> None:
    path = tmp_path / "cv.gguf"
    writer = gguf.GGUFWriter(str(path), "controlvector")
    data = torch.from_numpy(V).to(torch.bfloat16).view(torch.uint8).numpy()
    writer.add_tensor("direction.3", data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_direction(path) == Direction(3, V, "cv", origin="GGUF control vector")


def test_a_control_vector_is_added_to_what_its_block_writes(tmp_path: Path) -> None:
    folder = tiny.save_model(tmp_path / "model")
    lm = load_lm(folder)
    generator = np.random.default_rng(0)
    vectors = {layer: generator.normal(size=lm.spec.d_model).astype(np.float32) for layer in (1, 2)}
    path = save_control_vector(tmp_path / "cv.gguf", vectors)
    edits = [
        Edit(direction=read_direction(path, layer=layer), op="add", strength=1, skip_sinks=False)
        for layer in vectors
    ]
    model = lm.blocks
    seen: dict[int, torch.Tensor] = {}
    ids = torch.arange(5)[None]
    with torch.no_grad():
        # llama.cpp: cur = build_cvec(cur, il) after block il, for the tensor direction.{il}
        def adding(layer: int) -> Any:
            def hook(_module: Any, _inputs: Any, output: Any) -> Any:
                hidden = output[0] if isinstance(output, tuple) else output
                hidden = hidden + torch.from_numpy(vectors[layer])
                seen[layer] = hidden
                return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

            return hook

        handles = [model[layer].register_forward_hook(adding(layer)) for layer in vectors]
        expected = lm.model(ids).last_hidden_state
        for handle in handles:
            handle.remove()
        with steered(lm, (), edits):
            torch.testing.assert_close(lm.model(ids).last_hidden_state, expected)
        assert not torch.allclose(lm.model(ids).last_hidden_state, expected)


def test_edits_of_a_control_vector_are_written_and_read_back(tmp_path: Path) -> None:
    path = save_control_vector(tmp_path / "cv.gguf", {1: V, 2: V * 2})
    edit_set = EditSet("m", "", (parse_edit(f"{path}@2 add 1"),))
    write_edits(edit_set, tmp_path / "there" / "edits.toml")
    assert read_edits(tmp_path / "there" / "edits.toml") == edit_set
    (tmp_path / "edits.toml").write_text(
        'model = "m"\n[[edit]]\ndirection = "cv.gguf"\nlayer = 2\nop = "add"\nstrength = 1'
    )
    assert read_edits(tmp_path / "edits.toml").edits == edit_set.edits


@contextmanager
def class_named(name: str) -> Iterator[type]:
    """A class that pickles under this name, as if its library were installed."""
    module_name, _, class_name = name.rpartition(".")
    parts = module_name.split(".")
    added = [".".join(parts[: n + 1]) for n in range(len(parts))]
    added = [part for part in added if part not in sys.modules]
    for part in added:
        sys.modules[part] = types.ModuleType(part)
    kind = type(class_name, (), {"__module__": module_name, "__qualname__": class_name})
    setattr(sys.modules[module_name], class_name, kind)
    try:
        yield kind
    finally:
        for part in added:
            del sys.modules[part]


OBJECTS: dict[str, dict[str, Any]] = {
    "repeng.extract.ControlVector": {"model_type": "qwen3", "directions": {3: V, 5: V * 2}},
    "easysteer.steer.utils.StatisticalControlVector": {
        "method": "pca", "directions": {3: V, 5: V * 2}, "metadata": {"n": 3}, "model_type": "x",
    },
    "steering_vectors.steering_vector.SteeringVector": {
        "layer_activations": {3: torch.from_numpy(V), 5: torch.from_numpy(V * 2)[None]},
        "layer_type": "decoder_block",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_steering_libraries_are_read_without_them(name: str, tmp_path: Path) -> None:
    path = tmp_path / "vector.pt"
    with class_named(name) as kind:
        instance = kind()
        vars(instance).update(OBJECTS[name])
        torch.save(instance, path)
    assert name.partition(".")[0] not in sys.modules
    assert read_direction(path, layer=5) == Direction(5, V * 2, "vector")
    assert read_direction(path, layer=3) == Direction(3, V, "vector")


LAYOUTS: dict[str, tuple[Any, int]] = {
    "by layer": ({3: torch.from_numpy(V), 5: torch.ones(4)}, 3),
    "by text": ({"3": V, "5": V * 2}, 3),
    "layer_3": ({"layer_3": V, "layer_5": V * 2}, 3),
    "layers.3": ({"layers.3": V, "layers.5": V * 2}, 3),
    "module": ({"model.layers.3": V, "model.layers.5": V * 2}, 3),
    "transformer lens": ({"blocks.3.hook_resid_post": V, "blocks.6.hook_resid_post": V * 2}, 3),
    "input of the next": ({"blocks.4.hook_resid_pre": V, "blocks.6.hook_resid_pre": V * 2}, 3),
    "directions": ({"model_type": "qwen3", "directions": {3: V, 5: V * 2}}, 3),
    "activations": ({"layer_activations": {3: V}, "layer_type": "decoder_block"}, 3),
    "beside its layer": ({"vector": torch.from_numpy(V), "layer": 3, "method": "caa"}, 3),
    "bfloat16": ({3: torch.from_numpy(V).bfloat16()}, 3),
    "parameter": ({3: torch.nn.Parameter(torch.from_numpy(V))}, 3),
    "1 x 1 x d": ({3: torch.from_numpy(V)[None, None]}, 3),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_dicts_that_torch_saved_are_read(name: str, tmp_path: Path) -> None:
    content, layer = LAYOUTS[name]
    torch.save(content, tmp_path / "mine.pt")
    assert read_direction(tmp_path / "mine.pt", layer=layer) == Direction(layer, V, "mine")


@pytest.mark.parametrize("name", ["bare.pt", "bare.npy", "bare.npz", "bare array.pt"])
def test_a_bare_vector_needs_its_layer(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    match path.suffix, path.stem:
        case ".npy", _:
            np.save(path, V)
        case ".npz", _:
            np.savez(path, V)
        case _, stem:
            torch.save(V if "array" in stem else torch.from_numpy(V), path)
    assert read_direction(path, layer=17) == Direction(17, V, path.stem)
    assert parse_edit(f"'{path}@17' project").direction == Direction(17, V, path.stem)
    with pytest.raises(SourceError, match="does not say its layer: add it, as FILE@17"):
        read_direction(path)


def test_numpy_archives_are_read_by_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{"16": V, "17": V * 2})
    np.savez(tmp_path / "b.npz", **{"direction.16": V.astype(np.float64), "direction.17": V * 2})
    for name in ("a", "b"):
        assert read_direction(tmp_path / f"{name}.npz", layer=16) == Direction(16, V, name)
    save_file({"model.layers.16": torch.from_numpy(V)}, tmp_path / "c.safetensors")
    assert read_direction(tmp_path / "c.safetensors") == Direction(16, V, "c")


class Opens:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("ran.txt", "w")


REFUSED: dict[str, tuple[Any, str]] = {
    "code": ({3: Opens()}, "refused: it holds a .*open.*save the vectors alone"),
    "parts": ({"layer_activations": {3: V}, "layer_type": "mlp"}, "directions of 'mlp'"),
    "module": ({"model.layers.3.mlp": V}, "no direction of the residual"),
    "embedding": ({"blocks.0.hook_resid_pre": V}, "no direction of the residual"),
    "matrix": (torch.ones(5, 4), "2 dimensions, not 1"),
    "list": ([torch.ones(4)], "holds a list: save one vector"),
    "integers": ({3: torch.ones(4, dtype=torch.int64)}, "int64 is not of floating point"),
    "nothing": ({"a": 1}, "holds no vectors: it has a"),
    "deep": ({"directions": {"vectors": {"directions": {"vectors": {"a": {}}}}}}, "holds"),
    "sparse": ({3: torch.ones(4).to_sparse()}, "holds no vectors"),
    "nan": ({3: V * np.nan}, "not finite"),
    "objects": ({3: np.array([None, 3], dtype=object)}, "object is not of floating point|refused"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_contents_are_refused_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = REFUSED[name]
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(SourceError, match=message) as caught:
        read_direction(tmp_path / "a.pt", layer=3)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran.txt").exists()


def test_truncated_files_are_refused_in_one_line(tmp_path: Path) -> None:
    save_control_vector(tmp_path / "a.gguf", {1: V, 2: V * 2})
    torch.save({3: V}, tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", V)
    np.save(tmp_path / "a.npy", V)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        short = path.with_name(f"short{path.suffix}")
        for n in {0, 3, 4, 20, len(data) // 2, len(data) - 20}:
            short.write_bytes(data[:n])
            with pytest.raises(SourceError) as caught:
                read_direction(short, layer=2)
            assert "\n" not in str(caught.value)


def test_sizes_that_a_file_only_claims_are_refused(tmp_path: Path) -> None:
    good = save_control_vector(tmp_path / "good.gguf", {1: V}).read_bytes()
    path = tmp_path / "bad.gguf"
    for start in range(4, len(good) - V.nbytes, 4):
        path.write_bytes(good[:start] + b"\xff\xff\xff\x7f" + good[start + 4 :])
        with suppress(SourceError):  # anything else, such as a MemoryError, fails
            assert read_direction(path, layer=1).values.shape == V.shape


def test_other_gguf_files_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_tensor("blk.0.attn_norm.weight", V)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match="GGUF of a 'llama', not a control vector"):
        read_direction(tmp_path / "model.gguf")
