"""The gguf package reads a control vector, and adding it in torch or llama.cpp equals the hook."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from saescope.control.edits import Edit
from saescope.control.exports.gguf import ARCHITECTURES, architecture, control_vector, export_gguf
from saescope.control.exports.settings import ExportSettings
from saescope.control.steer import steered
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.errors import EditError, ResourceError
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts

IDS = [5, 17, 80, 3, 200, 41, 7, 7, 130]


def everywhere(feature: str, strength: float, **options: Any) -> Edit:
    return Edit(feature, "add", strength, skip_sinks=False, **options)


EDITS = [everywhere("1/3", 4.0), everywhere("1/8", -2.5), everywhere("2/5", 3.0)]


@pytest.fixture(scope="module")
def steerable(tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, list[Sae]]:
    folder = tmp_path_factory.mktemp("gguf")
    lm = load_lm(tiny.save_model(folder / "model"), [2])
    return lm, [load_sae(tiny.save_sae(folder / "sae"), layer) for layer in (0, 1, 2)]


def exported(
    steerable: tuple[LM, list[Sae]], edits: Sequence[Edit], out: Path
) -> dict[str, np.ndarray]:
    export_gguf(steerable[0].source, steerable[1], edits, out)
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(out).tensors}


def test_gguf_package_reads_the_file(steerable: tuple[LM, list[Sae]], tmp_path: Path) -> None:
    result = export_gguf(steerable[0].source, steerable[1], EDITS, tmp_path / "a.gguf")
    assert (result.exact, result.files, result.limits) == (True, (tmp_path / "a.gguf",), ())
    assert list(tmp_path.iterdir()) == [tmp_path / "a.gguf"]
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    values = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    assert values == {
        "general.architecture": "controlvector",
        "controlvector.model_hint": "qwen3",
        "controlvector.layer_count": 2,
    }
    assert reader.fields["controlvector.layer_count"].types == [gguf.GGUFValueType.UINT32]
    assert [(t.name, list(t.shape), t.tensor_type) for t in reader.tensors] == [
        ("direction.1", [32], gguf.GGMLQuantizationType.F32),
        ("direction.2", [32], gguf.GGMLQuantizationType.F32),
    ]
    d = steerable[1][1].W_dec
    assert d is not None
    np.testing.assert_allclose(
        reader.tensors[0].data, (4 * d[:, 3] - 2.5 * d[:, 8]).numpy(), atol=1e-6
    )


def test_bytes_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    layers = {n: np.random.default_rng(n).normal(size=33).astype(np.float32) for n in (3, 1, 20)}
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 3)
    for layer in sorted(layers):
        writer.add_tensor(f"direction.{layer}", layers[layer])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert (tmp_path / "theirs.gguf").read_bytes() == control_vector(layers, "llama")


def test_adding_the_vector_gives_the_logits_of_the_hook(
    steerable: tuple[LM, list[Sae]], tmp_path: Path
) -> None:
    lm, saes = steerable
    directions = exported(steerable, EDITS, tmp_path / "a.gguf")
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        plain = lm.whole(input_ids=ids, use_cache=False).logits
        with steered(lm, saes, EDITS):
            hooked = lm.whole(input_ids=ids, use_cache=False).logits
        handles = [
            lm.blocks[int(name.partition(".")[2])].register_forward_hook(
                lambda _m, _i, out, vector=vector: out + torch.from_numpy(vector)
            )
            for name, vector in directions.items()
        ]
        added = lm.whole(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert (hooked - plain).abs().max() > 0.1
    torch.testing.assert_close(added, hooked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Edit("1/3", "scale"), "takes add edits, not scale"),
        (Edit("1/3", "clamp", 2.0), "steer it at run time"),
        (Edit("1/3", "project"), "a LoRA project"),
        (everywhere("0/3", 1.0), "adds nothing after block 0"),
        (
            Edit(op="add", strength=1.0, direction=Direction(3, np.ones(32))),
            "the model has layers 0-2",
        ),
        (
            Edit(op="add", strength=1.0, direction=Direction(1, np.ones(31))),
            "have width 31, but d_model is 32",
        ),
        (
            Edit(op="add", strength=1e5, direction=Direction(2, 1e34 * np.ones(32))),
            "more than float32 holds",
        ),
    ],
)
def test_edits_that_no_vector_expresses_are_refused(
    edit: Edit, why: str, steerable: tuple[LM, list[Sae]], tmp_path: Path
) -> None:
    edits = [edit] if edit.direction else [EDITS[0], edit]
    with pytest.raises(EditError, match=why):
        export_gguf(steerable[0].source, steerable[1], edits, tmp_path / "a.gguf")
    assert not list(tmp_path.iterdir())


def test_limits_are_reported_and_nothing_is_overwritten(
    steerable: tuple[LM, list[Sae]], tmp_path: Path
) -> None:
    edits = [Edit("1/3", "add", 1.0), everywhere("2/3", 1.0, scope="decode")]
    out, neutral = tmp_path / "a.gguf", texts(tiny.TEXTS)[0].prompts
    result = export_gguf(
        steerable[0].source, steerable[1], edits, out, ExportSettings(neutral=neutral)
    )
    assert not result.exact
    assert (
        result.measured["kl_base_vector"]["mean"]
        > result.measured["kl_steered_vector"]["mean"]
        > 1e-6
    )
    assert [("position 0" in limit, "decode" in limit) for limit in result.limits] == [
        (True, False),
        (False, True),
    ]
    before = (tmp_path / "a.gguf").read_bytes()
    with pytest.raises(ResourceError, match="exists"):
        export_gguf(steerable[0].source, steerable[1], EDITS, tmp_path / "a.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == before


def test_architecture_names_are_those_of_llama_cpp() -> None:
    plain = ["qwen2", "qwen3", "qwen3_moe", "llama", "gemma2", "gemma3", "gpt2", "phi3"]
    assert {*ARCHITECTURES.values(), *map(architecture, plain)} <= set(
        gguf.MODEL_ARCH_NAMES.values()
    )


# --- in llama.cpp itself, where llama-cpp-python is installed


def test_llama_cpp_gives_the_logits_of_the_hook(
    steerable: tuple[LM, list[Sae]], tmp_path: Path
) -> None:
    llama = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    lm, saes = steerable
    directions = exported(steerable, EDITS, tmp_path / "a.gguf")
    save_gguf(lm, tmp_path / "model.gguf")
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        plain = lm.whole(input_ids=ids, use_cache=False).logits[0]
        with steered(lm, saes, EDITS):
            hooked = lm.whole(input_ids=ids, use_cache=False).logits[0]
    theirs_plain, theirs = llama_logits(
        llama, tmp_path / "model.gguf", [{}, directions], lm.vocab_size
    )
    difference, difference_plain = (theirs - hooked).abs().max(), (theirs_plain - plain).abs().max()
    print(
        f"llama.cpp differs by {difference_plain:.1e} without the vector, {difference:.1e} with it"
    )
    torch.testing.assert_close(theirs_plain, plain, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(theirs, hooked, atol=1e-3, rtol=1e-3)
    assert (hooked - plain).abs().max() > 0.1


def save_gguf(lm: LM, path: Path) -> None:
    """The model in llama.cpp's format, without a vocabulary."""
    config = lm.whole.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, tensor in lm.whole.state_dict().items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        assert theirs is not None, name
        writer.add_tensor(theirs, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_logits(
    llama: Any, model: Path, ways: Sequence[dict[str, np.ndarray]], vocab: int
) -> list[Tensor]:
    """Logits of IDS under each control vector, laid out as llama.cpp's own loader does."""
    llama.llama_backend_init()
    loaded = llama.llama_model_load_from_file(
        str(model).encode(), llama.llama_model_default_params()
    )
    params = llama.llama_context_default_params()
    params.n_ctx, params.type_k, params.type_v, params.n_threads = 64, 0, 0, 1
    params.flash_attn_type = 0
    logits = []
    for directions in ways:
        context = llama.llama_init_from_model(loaded, params)
        if directions:
            last = max(int(name.partition(".")[2]) for name in directions)
            data = np.zeros((last, 32), np.float32)
            for name, vector in directions.items():
                data[int(name.partition(".")[2]) - 1] = vector
            pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            assert llama.llama_set_adapter_cvec(context, pointer, data.size, 32, 1, 3) == 0
        batch = llama.llama_batch_init(len(IDS), 0, 1)
        batch.n_tokens = len(IDS)
        for n, token in enumerate(IDS):
            batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.logits[n] = token, n, 1, True
            batch.seq_id[n][0] = 0
        assert llama.llama_decode(context, batch) == 0
        rows = [
            np.ctypeslib.as_array(llama.llama_get_logits_ith(context, n), (vocab,)).copy()
            for n in range(len(IDS))
        ]
        logits.append(torch.from_numpy(np.stack(rows)))
        llama.llama_batch_free(batch)
        llama.llama_free(context)
    llama.llama_model_free(loaded)
    return logits
