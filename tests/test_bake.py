"""A bake equals its hook or says how far it is; transformers loads it, or nothing is left."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaModel

import tiny
from saescope.control.baking.bake import bake
from saescope.control.baking.bake_result import BakeResult
from saescope.control.baking.residual_map import ResidualMap, projection, readout_clamp
from saescope.control.baking.settings import BakeSettings
from saescope.control.edits import Edit, Op
from saescope.engine.load import load_sae
from saescope.errors import EditError, ResourceError, SourceError
from saescope.sources.directions import Direction
from saescope.sources.prompts import texts
from saescope.surfaces.cli import run as cli
from test_architectures import SIZES, save

NEUTRAL = texts(tiny.TEXTS)[0].prompts
RANDOM = np.random.default_rng(0)
D = [torch.from_numpy(RANDOM.normal(size=32)) for _ in range(3)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def along(n: int, op: Op = "project", strength: float = 1.0, layer: int = 1) -> Edit:
    direction = Direction(layer, D[n].numpy(), f"d{n}")
    return Edit(direction=direction, op=op, strength=strength)


def model_of(name: str, folder: Path, **changes: Any) -> Path:
    """A random checkpoint whose norms are not all alike."""
    model = save(name, folder, **changes)
    random = torch.Generator().manual_seed(1)
    for path in model.glob("*.safetensors"):
        state = load_file(path)
        for key, tensor in state.items():
            if "norm" in key or ".ln_" in key:
                state[key] = (tensor.float() + 0.2 * torch.rand(tensor.shape, generator=random)).to(
                    tensor.dtype
                )
        save_file(state, path, {"format": "pt"})
    return model


# --- the same by hand, in float64: whole models of transformers, and hooks that are written here


def whole(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, trust_remote_code=False
    ).eval()
    model.set_experts_implementation("eager")  # the others know no float64
    return model


def scores(model: Any, folder: Path) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    with torch.inference_mode():
        logits = [model(torch.tensor([tokenizer(p.text)["input_ids"]])).logits[0] for p in NEUTRAL]
    return torch.cat(logits).log_softmax(-1)


def kl(a: Tensor, b: Tensor) -> float:
    return float((a.exp() * (a - b)).sum(-1).mean())


def without(h: Tensor, share: float = 1.0, which: Sequence[int] = (0, 1)) -> Tensor:
    """h without its component in the span of these directions, by least squares."""
    basis = torch.linalg.qr(torch.stack([D[n] for n in which], dim=1))[0]
    return h - share * (h @ basis) @ basis.T


def output(change: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_m: nn.Module, _i: Any, out: Any) -> Any:
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    return hook


def decoder(model: Any) -> Any:
    return model.transformer if hasattr(model, "transformer") else model.model


def blocks(model: Any) -> Any:
    inner = decoder(model)
    return inner.h if hasattr(inner, "h") else inner.layers


def at_every_write(model: Any, change: Callable[[Tensor], Tensor]) -> ExitStack:
    """Hooks on the embedding (of tokens and positions) and on each attention and MLP."""
    stack = ExitStack()
    embeddings = [m for m in decoder(model).modules() if isinstance(m, nn.Embedding)]
    names = ("self_attn", "linear_attn", "attn", "mlp")
    writers = [getattr(b, name) for b in blocks(model) for name in names if hasattr(b, name)]
    for module in (*embeddings, *writers):
        stack.callback(module.register_forward_hook(output(change)).remove)
    return stack


def after_norms(model: Any, above: int, share: float) -> ExitStack:
    """What a norm divides by its size is projected before it is multiplied by its weight."""
    stack = ExitStack()
    names = ("input_layernorm", "post_attention_layernorm")
    gemma = ("input_layernorm", "pre_feedforward_layernorm")
    norms = [
        getattr(block, name)
        for block in blocks(model)[above + 1 :]
        for name in (gemma if hasattr(block, gemma[1]) else names)
    ]

    def hook(norm: Any, inputs: Any, _out: Tensor) -> Tensor:
        h = inputs[0]
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        unit = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
        plus = 1.0 if "Gemma" in type(norm).__name__ or "3_5" in type(norm).__name__ else 0.0
        return without(unit, share) * (plus + norm.weight)

    for norm in (*norms, decoder(model).norm):
        stack.callback(norm.register_forward_hook(hook).remove)
    return stack


EXACT = ["qwen3", "qwen3 moe", "qwen3.5", "qwen3.5 moe", "llama", "gpt2", "phi", "phi3"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_every_write_equals_the_hook_at_every_write(name: str, tmp_path: Path) -> None:
    share = 1.0 if name != "llama" else 0.6
    tied = {"tie_word_embeddings": True} if name == "qwen3" else {}
    model = model_of(name, tmp_path / "model", **tied)
    baked = bake(
        model,
        (),
        [along(0, strength=share), along(1, strength=share)],
        tmp_path / "out",
        neutral=NEUTRAL,
    )
    assert (baked.method, baked.exact, baked.why_not) == ("every-write", True, None)
    base = whole(model)
    plain = scores(base, model)
    with at_every_write(base, lambda h: without(h, share)):
        hooked = scores(base, model)
    written = scores(whole(tmp_path / "out"), tmp_path / "out")
    assert kl(hooked, written) < 1e-11
    assert kl(plain, written) > 1e-3
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.largest < 1e-9
    assert baked.kl_base_baked is not None
    assert baked.kl_base_baked.mean == pytest.approx(kl(plain, written), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["qwen3", "qwen3 moe", "qwen3.5", "qwen3.5 moe", "llama", "gemma2", "gemma3"]
)
def test_readers_above_equals_the_hook_after_the_norms(name: str, tmp_path: Path) -> None:
    share = 1.0 if name != "qwen3" else 0.3
    model = model_of(name, tmp_path / "model")
    edits = [along(0, strength=share), along(1, strength=share)]
    baked = bake(
        model, (), edits, tmp_path / "out", BakeSettings(method="readers-above"), neutral=NEUTRAL
    )
    assert baked.exact
    base = whole(model)
    with after_norms(base, 1, share):
        hooked = scores(base, model)
    written = scores(whole(tmp_path / "out"), tmp_path / "out")
    # Models compute their norms in float32, whatever they are given.
    assert kl(hooked, written) < 1e-10
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.largest < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gemma3 with images"])
def test_norm_after_the_writers_makes_a_bake_approximate(name: str, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "model")
    baked = bake(
        model, (), [along(0)], tmp_path / "out", BakeSettings(method="every-write"), neutral=NEUTRAL
    )
    assert not baked.exact
    assert "a following norm rescales" in str(baked.why_not)
    assert baked.kl_hook_baked is not None
    assert baked.kl_base_baked is not None
    assert 1e-7 < baked.kl_hook_baked.mean < 0.2 * baked.kl_base_baked.mean
    assert any("Image and audio" in line for line in baked.notes) == ("images" in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exact"), [("llama", True), ("gpt2", True), ("phi", True), ("qwen3", False)]
)
def test_bias_equals_a_constant_after_the_layer(name: str, exact: bool, tmp_path: Path) -> None:
    model = model_of(name, tmp_path / "model")
    baked = bake(
        model, (), [along(0, "add", 2.0), along(1, "add", -1.0)], tmp_path / "out", neutral=NEUTRAL
    )
    assert (baked.method, baked.exact) == ("bias", exact)
    base = whole(model)
    plain = scores(base, model)
    with ExitStack() as stack:
        hook = output(lambda h: h + (2 * D[0] - D[1]).float().double())
        stack.callback(blocks(base)[1].register_forward_hook(hook).remove)
        hooked = scores(base, model)
    written = scores(whole(tmp_path / "out"), tmp_path / "out")
    assert kl(hooked, written) < (1e-11 if exact else 0.02 * kl(plain, hooked))
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.mean == pytest.approx(kl(hooked, written), rel=1e-2, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["next-layer", "writers-up-to"])
def test_approximate_methods_report_their_distance(method: Any, tmp_path: Path) -> None:
    model = model_of("qwen3", tmp_path / "model")
    baked = bake(
        model,
        (),
        [along(0)],
        tmp_path / "out",
        BakeSettings(method=method, force=True),
        neutral=NEUTRAL,
    )
    assert not baked.exact
    base = whole(model)
    with ExitStack() as stack:
        change = output(lambda h: without(h, 1.0, [0]))
        stack.callback(blocks(base)[1].register_forward_hook(change).remove)
        hooked = scores(base, model)
    written = scores(whole(tmp_path / "out"), tmp_path / "out")
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.mean == pytest.approx(kl(hooked, written), rel=1e-3)
    assert baked.kl_hook_baked.mean > 1e-5


@pytest.mark.slow
def test_readout_clamp_of_features_is_exact_at_every_write(tmp_path: Path) -> None:
    """It is a linear map and a constant without a gate: every read-out is its target everywhere."""
    model = model_of("qwen3", tmp_path / "model")
    sae = load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1)
    edits = [Edit("1/3", "readout_clamp", 2.0), Edit("1/9", "readout_clamp", -1.0)]
    baked = bake(model, [sae], edits, tmp_path / "out", neutral=NEUTRAL)
    assert baked.exact
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.largest < 1e-9
    resids: list[Tensor] = []

    def record(resid: Tensor) -> Tensor:
        resids.append(resid)
        return resid

    written = whole(tmp_path / "out")
    for block in blocks(written):
        block.register_forward_hook(output(record))
    scores(written, tmp_path / "out")
    for resid in resids:
        z = sae.pre_acts(resid[0])[:, [3, 9]]
        torch.testing.assert_close(z, torch.tensor([2.0, -1.0]).expand_as(z), atol=1e-4, rtol=0)


# --- maps of the residual


def test_projection_ignores_order_and_dependence_of_directions() -> None:
    h = torch.randn(5, 32, dtype=torch.float64)
    a, b = projection(D, [1.0, 0.5, 0.2]), projection(D[::-1], [0.2, 0.5, 1.0])
    torch.testing.assert_close(a(h), b(h))
    span = projection([*D[:2], D[0] + D[1]], [0.7] * 3)
    torch.testing.assert_close(span(h), without(h, 0.7))
    torch.testing.assert_close(
        projection(D[:1], [1.0])(h), h - (h @ D[0])[:, None] * D[0] / (D[0] @ D[0])
    )
    with pytest.raises(EditError, match="give them the same strength"):
        projection([D[0], 2 * D[0]], [1.0, 0.5])


def test_projection_holds_past_a_norm() -> None:
    gain, u = torch.rand(32, dtype=torch.float64) + 0.5, torch.randn(6, 32, dtype=torch.float64)
    m = projection(D[:2], [1.0, 1.0])
    torch.testing.assert_close(m.after_norm(gain)(gain * u), gain * m(u))
    removed = gain * m.before_norm(gain)(u) @ m.V
    torch.testing.assert_close(removed, torch.zeros_like(removed))
    gain[3] = 0
    removed = gain * m.before_norm(gain)(u) @ m.V
    torch.testing.assert_close(removed, torch.zeros_like(removed))
    # Past a zero the map reads the other coordinates alone.
    assert m.share_at_zeros(gain) == pytest.approx(float(m.V[3].pow(2).sum() / 2))
    u[:, 3] = 0
    torch.testing.assert_close(m.after_norm(gain)(gain * u), gain * m(u))


def test_readout_clamps_reach_their_targets_together() -> None:
    w, d = torch.randn(2, 3, 32, dtype=torch.float64)
    b, target = torch.randn(2, 3, dtype=torch.float64)
    m: ResidualMap = readout_clamp(w, b, d, target)
    z = m(torch.randn(7, 32, dtype=torch.float64)) @ w.T + b
    torch.testing.assert_close(z, target.expand_as(z))


# --- what is written


@pytest.mark.slow
def test_written_files_are_those_of_the_model(tmp_path: Path) -> None:
    model = model_of("qwen3", tmp_path / "model", tie_word_embeddings=True, dtype=torch.bfloat16)
    baked = bake(model, (), [along(0)], tmp_path / "out", neutral=NEUTRAL)
    index = {
        f: json.loads((f / "model.safetensors.index.json").read_text())
        for f in (model, tmp_path / "out")
    }
    before, after = (index[f]["weight_map"] for f in index)
    assert after.pop("lm_head.weight") == before["model.embed_tokens.weight"]
    assert before == after
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert 0 < sum(sizes) - index[tmp_path / "out"]["metadata"]["total_size"] < 2000 * len(sizes)
    assert set(baked.files) == {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "saescope_bake.json", "generation_config.json", "tokenizer.json"} <= set(
        baked.files
    )
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=False)
    assert stock.dtype == torch.bfloat16
    head = (
        AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
        .get_output_embeddings()
        .weight
    )
    assert torch.equal(stock.lm_head.weight, head)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)(
        "hello there", return_tensors="pt"
    )["input_ids"]
    assert (
        stock.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0).shape[1]
        > ids.shape[1]
    )
    card = (tmp_path / "out/README.md").read_text()
    assert "Exact up to rounding." in card
    assert "| d0@1 | project | 1 | 1 |" in card
    manifest = json.loads((tmp_path / "out/saescope_bake.json").read_text())
    assert manifest["model"]["files"].keys() == {"config.json", *set(before.values())}
    assert manifest["bake"]["kl_hook_baked"]["p99"] >= 0
    assert set(manifest["lost_to_rounding"]) == {
        n for n in before if "embed" in n or "o_proj" in n or "down" in n
    }


def test_rounding_loss_is_reported(tmp_path: Path) -> None:
    model = model_of("qwen3", tmp_path / "model", dtype=torch.bfloat16)
    losses = {}
    for strength in (1.0, 0.001):
        out = tmp_path / f"out{strength}"
        baked = bake(model, (), [along(0, strength=strength)], out, BakeSettings(measure=False))
        assert baked.kl_hook_baked is None
        losses[strength] = baked.to_dict()["rounding"]
    assert 1e-4 < losses[1.0]["mean"] <= losses[1.0]["worst"] < 0.05
    assert losses[0.001]["mean"] > 0.3  # too small a change for bfloat16
    unit = D[0].float() / D[0].float().norm()
    before, after = (
        {k: t.float() for path in f.glob("*.safetensors") for k, t in load_file(path).items()}
        for f in (model, tmp_path / "out1.0")
    )
    worst = losses[1.0]["tensor"]
    axis = [-1] if "embed" in worst else [0]
    by_hand = torch.tensordot(after[worst], unit, dims=(axis, [0])).norm()
    by_hand /= torch.tensordot(before[worst], unit, dims=(axis, [0])).norm()
    assert float(by_hand) == pytest.approx(losses[1.0]["worst"], rel=1e-3)


# --- what cannot be


REFUSED = [
    (
        Edit("1/3", "scale", -1.0),
        {},
        r"scale depends on.*method='\S+' with convert='project': KL \S+ nats per token",
    ),
    (
        Edit("1/3", "clamp", 0.0),
        {"measure": False},
        r"clamp depends on the feature's activation.*is not measured",
    ),
    (
        Edit("1/3", "add", 1.0, scope="last"),
        {"measure": False},
        "its scope is last.*bake the same add without its scope, with convert='project'",
    ),
    (
        Edit("1/3", "project", 1.0, when="1/4"),
        {},
        r"only if 1/4.*method='\S+' with convert='project': KL \S+ nats per token",
    ),
    (Edit("1/3", "project", 1.0, when="0/4 > 2"), {}, r"only if 0/4 > 2.*is not measured"),
    (Edit("1/3", "scale", 2.0), {}, "amplifies an activation"),
    (Edit("1/3", "clamp", 3.0), {"convert": "project"}, "amplifies an activation"),
    (Edit("1/3", "scale", 0.0), {}, "nothing to bake"),
    (Edit("1/3", "add", 1.0), {"method": "every-write"}, "does not support add: use 'bias'"),
    (Edit("1/3", "project"), {"method": "bias"}, "does not support project: use 'every-write' or"),
    (along(0, layer=3), {"method": "next-layer"}, "needs a layer after 3, which is the last one"),
    (along(0, layer=7), {}, "the model has layers 0-3"),
    (Edit("1/3", "project"), {"neutral": []}, "no neutral text"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "options", "message"), REFUSED, ids=[message[:20] for _, _, message in REFUSED]
)
def test_edits_that_weights_cannot_represent_are_refused(
    edit: Edit, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = dict(options)
    neutral = settings.pop("neutral", NEUTRAL)
    model, sae = (
        save("qwen3", tmp_path / "model"),
        load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1),
    )
    with pytest.raises(Exception, match=message) as error:
        bake(model, [sae], [edit], tmp_path / "new/out", BakeSettings(**settings), neutral=neutral)
    assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "sae"]


@pytest.mark.slow
def test_converted_edits_are_compared_with_the_edits(tmp_path: Path) -> None:
    model, sae = (
        save("qwen3", tmp_path / "model"),
        load_sae(tiny.save_sae(tmp_path / "sae", layers=[1]), 1),
    )
    baked = bake(
        model,
        [sae],
        [Edit("1/3", "scale", -2.0)],
        tmp_path / "o",
        BakeSettings(convert="project"),
        neutral=NEUTRAL,
    )
    assert (baked.exact, baked.converted) == (False, True)
    assert baked.kl_hook_baked == baked.kl_steered_baked
    assert baked.kl_hook_baked is not None
    assert baked.kl_hook_baked.mean > 1e-5


@pytest.mark.parametrize("method", ["readers-above", "next-layer"])
def test_norms_that_subtract_a_mean_are_refused(method: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"its norms are not .*use method=every-write"):
        bake(
            save("gpt2", tmp_path / "model"),
            (),
            [along(0)],
            tmp_path / "out",
            BakeSettings(method=method),
        )


class OddConfig(LlamaConfig):
    """Llama with a part that nobody knows."""

    model_type = "odd"
    odd: str = "writes"


class OddLayer(LlamaDecoderLayer):
    """Writes to the residual, or reads it, by one more matrix than is known."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.odd = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.writes = config.odd == "writes"

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Any:
        if self.writes:
            return super().forward(hidden_states, **kwargs) + self.odd(
                self.post_attention_layernorm(hidden_states)
            )
        gate = torch.tanh(self.odd(hidden_states)).mean(-1, keepdim=True)
        return hidden_states + (1 + gate) * (
            super().forward(hidden_states, **kwargs) - hidden_states
        )


class OddModel(LlamaModel):
    config_class = OddConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(OddLayer(config, n) for n in range(config.num_hidden_layers))
        self.post_init()


class OddForCausalLM(LlamaForCausalLM):
    config_class = OddConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = OddModel(config)
        self.post_init()


AutoConfig.register("odd", OddConfig)
AutoModel.register(OddConfig, OddModel)
AutoModelForCausalLM.register(OddConfig, OddForCausalLM)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["every-write", "readers-above"])
@pytest.mark.parametrize("odd", ["writes", "reads"])
def test_unknown_writers_and_readers_are_detected(odd: str, method: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    OddForCausalLM(OddConfig(**SIZES, odd=odd)).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")

    def attempt() -> BakeResult:
        return bake(
            tmp_path / "model",
            (),
            [along(0)],
            tmp_path / "out",
            BakeSettings(method=method),
            neutral=NEUTRAL,
        )

    if (odd, method) == ("reads", "every-write"):
        assert attempt().exact  # this method does not change readers
        return
    with pytest.raises(SourceError, match=rf"'odd': block 0 {odd} .*not known"):
        attempt()
    assert not (tmp_path / "out").exists()


# --- whole or not at all


SCRIPT = """
import os, sys
sys.path[:0] = {path!r}
import numpy as np, torch
from saescope.control.baking.bake import bake
from saescope.control.edits import Edit, Op
from saescope.sources.directions import Direction
import tiny
from saescope.sources.prompts import texts
torch.set_num_threads(1)

def attempt(at, signal):
    calls = 0
    def progress(what, done, total):
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal)
    edit = Edit(direction=Direction(1, np.arange(1.0, 33.0), "d"), op="project")
    bake("model", (), [edit], "out", neutral=texts(tiny.TEXTS)[0].prompts, progress=progress)

for at, signal in {kills!r}:
    if (child := os.fork()) == 0:
        try:
            attempt(at, signal)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), *sorted(os.listdir()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to be killed")
def test_killed_bake_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    model_of("qwen3", tmp_path / "model")
    kills = [(2, 9), (6, 9), (30, 9), (10, 2), (10**6, 9)]
    script = SCRIPT.format(path=[entry for entry in sys.path if entry], kills=kills)
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.stdout.splitlines() == [
        "-9 .out.partial model",
        "-9 .out.partial model",
        "-9 .out.partial model",
        "130 model",  # interrupted: it cleared up after itself and the one before
        "0 model out",
    ], process.stderr


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen3", tmp_path / "model")
    before = sorted(tmp_path.iterdir())

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device; nothing was left"):
        bake(model, (), [along(0)], tmp_path / "new/out", BakeSettings(measure=False))
    assert sorted(tmp_path.iterdir()) == before
    monkeypatch.undo()
    monkeypatch.setattr("saescope.store.atomic.free_disk", lambda _path: 1000)
    with pytest.raises(ResourceError, match=r"needs .* MB, 1 kB are free"):
        bake(model, (), [along(0)], tmp_path / "out", BakeSettings(measure=False))


def test_index_may_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    model = model_of("qwen3", tmp_path / "model")
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["lm_head.weight"] = "../other.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(SourceError, match="names a file in another folder"):
        bake(model, (), [along(0)], tmp_path / "out")


# --- on the command line


@pytest.mark.slow
def test_bake_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--model", "saescope-tiny-chat", "--sae", "saescope-tiny-chat-sae"]
    sets = tmp_path / "neutral"
    sets.mkdir()
    (sets / "a.txt").write_text("The red dog sleeps.\nThe hill is old.\n")
    command = [
        "bake",
        "--edit",
        "2/412 project",
        "--neutral",
        str(sets),
        "--out",
        str(tmp_path / "out"),
        *pair,
    ]
    assert cli([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["method"], result["exact"]) == ("every-write", True)
    assert {"mean", "p95", "p99"} <= result["kl_hook_baked"].keys()
    assert "model.safetensors" in result["files"]
    assert cli(command) == 2
    assert "exists: choose another place" in capsys.readouterr().err
    gated = ["bake", "--edit", "2/412 scale -3", "--neutral", str(sets)]
    assert cli([*gated, "--out", str(tmp_path / "o2"), *pair]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "nats per token" in line
    assert cli([*command[:-5], str(tmp_path / "o3"), *pair, "--method", "readers-above"]) == 0
    shown = capsys.readouterr().out
    assert "readers-above, exact" in " ".join(shown.split())
