"""Edits follow their formulae, leave nothing behind, and change nothing else."""

import io
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from torch import Tensor

import tiny
from conftest import Pair
from saescope.control.edits import Edit, EditSet
from saescope.control.edits_file import write_edits
from saescope.control.formulae import bind_edits, coefficients, delta
from saescope.control.steer import _HOOKS, steered
from saescope.demo import ORGANISM
from saescope.engine.extract import extract
from saescope.engine.generate import generate, generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.sae import Sae
from saescope.engine.scan import scan
from saescope.errors import EditError, PromptError, SourceError
from saescope.sources.catalog import Feature
from saescope.sources.prompt_sets import bundled_prompts
from saescope.sources.prompts import Prompt, texts
from saescope.surfaces.cli import run as cli
from saescope.surfaces.cli.steer import columns

OPS: dict[str, Sequence[float]] = {
    "add": (2.5, -1.0),
    "scale": (-1.0, 0.7),
    "clamp": (0.0, 3.0),
    "readout_clamp": (0.0, 2.0),
    "project": (1.0, 0.4),
}
CASES = [
    (op, strength, gate)
    for op, strengths in OPS.items()
    for strength in strengths
    for gate in ("relu", "topk")
]


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Sae:
    return load_sae(tiny.save_sae(tmp_path_factory.mktemp("sae"), layers=[1]), 1)


def in_float64(sae: Sae, edits: Sequence[Edit], h: Tensor) -> Tensor:
    """The formulae by encode, change, decode and the SAE's error term; every edit starts from h."""
    W, b, D, c = (t.double() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    z = h @ W.T + b
    is_top_k = torch.zeros_like(z).scatter(1, z.topk(sae.spec.k).indices, 1.0)
    total = torch.zeros_like(h)
    for edit in edits:
        f, s, d = edit.target_feature.id, edit.amount, D[:, edit.target_feature.id]
        acts = z.relu() * (is_top_k if edit.gate == "topk" else 1.0)
        error = h - (acts @ D.T + c)
        changed = acts.clone()
        match edit.op:
            case "add":
                changed[:, f] += s
            case "scale":
                changed[:, f] *= 1 + s
            case "clamp":
                changed[:, f] = s
            case "readout_clamp":
                changed[:, f] += (s - z[:, f]) / (W[f] @ d)
            case "project":
                unit = d / d.norm()
                total -= s * (h @ unit)[:, None] * unit
                continue
        total += (changed @ D.T + c + error) - h
    return h + total


@pytest.mark.parametrize(("op", "strength", "gate"), CASES)
def test_formula_equals_encode_decode_plus_error(
    sae: Sae, op: str, strength: float, gate: str
) -> None:
    torch.manual_seed(0)
    h = torch.randn(50, 32).double()
    strongest = sae.encode(h.float()).ids[0, 0].item()  # one that fires somewhere
    edits = [Edit(Feature(1, f), op, strength, gate) for f in (strongest, 7)]
    assert (in_float64(sae, edits, h) - h).abs().max() > 1e-3
    single = h.float() + delta(bind_edits(edits, sae), h.float())
    torch.testing.assert_close(
        single.double(), in_float64(sae, edits, h.float().double()), atol=1e-4, rtol=1e-5
    )
    exact = Sae(sae.spec, *(t.double() for t in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)))
    if gate == "relu":
        double = h + delta(bind_edits(edits, exact, torch.float64), h)
        torch.testing.assert_close(double, in_float64(sae, edits, h), atol=1e-9, rtol=1e-9)


def test_order_of_edits_does_not_matter(sae: Sae) -> None:
    edits = [Edit(Feature(1, n), op, strength) for n, (op, (strength, _)) in enumerate(OPS.items())]
    h = torch.randn(20, 32)
    torch.testing.assert_close(
        delta(bind_edits(edits, sae), h),
        delta(bind_edits(edits[::-1], sae), h),
        atol=1e-5,
        rtol=1e-5,
    )


def test_readout_clamp_reaches_its_target(sae: Sae) -> None:
    h = torch.randn(20, 32)
    edit = Edit(Feature(1, 9), "readout_clamp", 4.0)
    z = sae.pre_acts(h + delta(bind_edits([edit], sae), h))[:, 9]
    torch.testing.assert_close(z, torch.full_like(z, 4.0), atol=1e-3, rtol=1e-3)


def test_topk_gate_fires_where_the_sae_does(sae: Sae) -> None:
    h = torch.randn(200, 32)
    relu, topk = (bind_edits([Edit(Feature(1, 3), gate=gate)], sae) for gate in ("relu", "topk"))
    among = ((sae.encode(h).ids == 3) & (sae.encode(h).acts > 0)).any(1)
    assert torch.equal(coefficients(topk, h).acts[:, 0] > 0, among)
    assert (coefficients(relu, h).acts > 0).sum() > among.sum()


# --- in a model


@pytest.fixture(scope="module")
def steerable(tmp_path_factory: pytest.TempPathFactory) -> tuple[LM, list[Sae]]:
    folder = tmp_path_factory.mktemp("steer")
    lm = load_lm(tiny.save_model(folder / "model"), [2])
    source = tiny.save_sae(folder / "sae")
    return lm, [load_sae(source, layer) for layer in (1, 2)]


def logits(lm: LM, text: str, **options: Any) -> Tensor:
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        return lm.whole(input_ids=ids, use_cache=False, **options).logits


STRONG = [Edit(Feature(1, n), "add", 4.0) for n in range(3)]
TEXT = "def add(a, b):\n    return a + b"


def test_scan_of_several_prompts_equals_scans_of_each(steerable: tuple[LM, list[Sae]]) -> None:
    lm, saes = steerable
    prompts = texts([TEXT, "hello", "the world and all that is in it", TEXT + "\n" + TEXT])[
        0
    ].prompts
    with steered(
        lm,
        saes,
        [replace(edit, scope="last") for edit in STRONG] + [Edit(Feature(1, 7), "add", 3.0)],
    ):
        together = scan(lm, saes, prompts).prompts
        alone = [scan(lm, saes, [prompt]).prompts[0] for prompt in prompts]
    assert [[t.norm for t in p.tokens] for p in together] == [
        [t.norm for t in p.tokens] for p in alone
    ]
    plain = scan(lm, saes, prompts).prompts
    assert plain[0].tokens[-1].norm != together[0].tokens[-1].norm


def test_edits_change_and_leave_nothing_behind(steerable: tuple[LM, list[Sae]]) -> None:
    lm, saes = steerable
    before = logits(lm, TEXT)
    with steered(lm, saes, STRONG) as receipt:
        inside = logits(lm, TEXT)
    assert (inside - before).abs().max() > 0.01
    assert torch.equal(inside[:, 0], before[:, 0])  # position 0 is left alone
    assert torch.equal(logits(lm, TEXT), before)
    assert receipt.applied
    assert (receipt.steps, receipt.positions) == (1, before.shape[1] - 1)
    assert receipt.delta_norm_ratio > 0
    assert not _HOOKS
    assert not any(block._forward_hooks for block in lm.blocks)


def test_nothing_is_left_after_an_exception(steerable: tuple[LM, list[Sae]]) -> None:
    lm, saes = steerable
    before = logits(lm, TEXT)

    def fail() -> None:
        with steered(lm, saes, STRONG):
            logits(lm, TEXT)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert torch.equal(logits(lm, TEXT), before)
    assert not _HOOKS


@pytest.mark.parametrize("op", ["add", "scale", "project"])
def test_strength_0_changes_no_bit(steerable: tuple[LM, list[Sae]], op: str) -> None:
    lm, saes = steerable
    with steered(lm, saes, [Edit(Feature(2, 5), op, 0.0), Edit(Feature(1, 5), op, 0)]) as receipt:
        assert torch.equal(logits(lm, TEXT), logits(lm, TEXT))
        inside = logits(lm, TEXT)
    assert torch.equal(inside, logits(lm, TEXT))
    assert not receipt.applied


def test_feature_that_never_fires_is_reported(steerable: tuple[LM, list[Sae]]) -> None:
    lm, saes = steerable
    silent = load_silent(saes[0])
    with steered(lm, [silent], [Edit(Feature(1, 0))]) as receipt:
        inside = logits(lm, TEXT)
    assert torch.equal(inside, logits(lm, TEXT))
    assert (receipt.applied, receipt.fired, receipt.delta_norm_ratio) == (False, [0], 0.0)
    assert receipt.steps == 1


def load_silent(sae: Sae) -> Sae:
    bias = sae.b_enc.clone()
    bias[0] = -1e6
    return Sae(sae.spec, sae.W_enc, bias, sae.W_dec, sae.b_dec)


def test_nested_edits_start_from_the_same_residual(steerable: tuple[LM, list[Sae]]) -> None:
    lm, saes = steerable
    edits = [Edit(Feature(1, 3), "readout_clamp", 5.0), Edit(Feature(1, 8), "readout_clamp", 5.0)]
    with steered(lm, saes, edits):
        together = logits(lm, TEXT)
    with steered(lm, saes, edits[:1]), steered(lm, saes, edits[1:]):
        nested = logits(lm, TEXT)
    torch.testing.assert_close(nested, together, atol=1e-5, rtol=1e-5)
    with steered(lm, saes, edits[:1]):
        with steered(lm, saes, edits[1:]):
            pass
        alone = logits(lm, TEXT)
    with steered(lm, saes, edits[:1]):
        assert torch.equal(logits(lm, TEXT), alone)


def test_threads_do_not_affect_each_other(steerable: tuple[LM, list[Sae]]) -> None:
    lm, saes = steerable
    plain = logits(lm, TEXT)
    results: dict[str, Tensor] = {}
    entered, done = threading.Event(), threading.Event()

    def steer() -> None:
        with steered(lm, saes, STRONG):
            entered.set()
            done.wait(10)
            results["steered"] = logits(lm, TEXT)

    worker = threading.Thread(target=steer)
    worker.start()
    assert entered.wait(10)
    meanwhile = logits(lm, TEXT)
    done.set()
    worker.join()
    assert torch.equal(meanwhile, plain)
    assert not torch.equal(results["steered"], plain)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["all", "prefill", "decode", "last"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_batch_equals_single(
    steerable: tuple[LM, list[Sae]], scope: str, temperature: float
) -> None:
    lm, saes = steerable
    prompts = texts(["hello", TEXT, "x y", "今日はいい"])[0].prompts
    edits = [
        Edit(Feature(1, 3), "add", 3.0, scope=scope),
        Edit(Feature(2, 8), "clamp", 2.0, scope=scope),
    ]
    with steered(lm, saes, edits):
        together = generate_batch(lm, prompts, max_new_tokens=12, temperature=temperature, seed=3)
        alone = [
            generate_batch(lm, [p], max_new_tokens=12, temperature=temperature, seed=3)[0]
            for p in prompts
        ]
    assert [generation.ids for generation in together] == [generation.ids for generation in alone]
    plain = generate_batch(lm, prompts, max_new_tokens=12, temperature=temperature, seed=3)
    assert [generation.ids for generation in together] != [generation.ids for generation in plain]


@pytest.mark.parametrize("scope", ["all", "prefill", "decode"])
def test_cached_equals_uncached(steerable: tuple[LM, list[Sae]], scope: str) -> None:
    """Steps with a KV cache equal one pass over everything (if the scope is the same there)."""
    lm, saes = steerable
    [prompt] = texts([TEXT])[0].prompts
    n = len(lm.tokenizer(TEXT)["input_ids"])
    edits = [
        Edit(Feature(1, 3), "add", 3.0, scope=scope),
        Edit(Feature(2, 8), "scale", -1.0, scope=scope),
    ]
    with steered(lm, saes, edits):
        [written] = generate_batch(lm, [prompt], max_new_tokens=8)
    ids = lm.tokenizer(TEXT)["input_ids"]
    for _ in range(8):
        whole = torch.tensor([ids])
        with torch.inference_mode(), steered(lm, saes, edits):
            if scope == "all":
                scores = lm.whole(input_ids=whole, use_cache=False).logits[0, -1]
            else:
                cache = _cache(lm, whole[:, :n])
                rest = whole[:, n:]
                last = (
                    cache[1]
                    if not rest.shape[1]
                    else lm.whole(input_ids=rest, past_key_values=cache[0]).logits
                )
                scores = last[0, -1]
        ids = [*ids, int(scores.argmax())]
    assert written.ids == ids[n:][: len(written.ids)]


def _cache(lm: LM, ids: Tensor) -> tuple[Any, Tensor]:
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    return cache, lm.whole(input_ids=ids, past_key_values=cache, use_cache=True).logits


def test_cache_built_under_other_edits_is_refused(steerable: tuple[LM, list[Sae]]) -> None:
    lm, saes = steerable
    ids = torch.tensor([lm.tokenizer(TEXT)["input_ids"]])
    with torch.inference_mode():
        plain_cache, _ = _cache(lm, ids)
        with steered(lm, saes, STRONG):
            with pytest.raises(EditError, match="different edits"):
                lm.whole(input_ids=ids[:, :1], past_key_values=plain_cache)
            steered_cache, _ = _cache(lm, ids)
            lm.whole(input_ids=ids[:, :1], past_key_values=steered_cache)
            with steered(lm, saes, STRONG[:1]), pytest.raises(EditError, match="different edits"):
                lm.whole(input_ids=ids[:, :1], past_key_values=steered_cache)


def test_extract_is_refused_inside_a_steered_block(
    steerable: tuple[LM, list[Sae]], tmp_path: Path
) -> None:
    lm, saes = steerable
    with (
        steered(lm, saes, [Edit("1/3", "add", 2.0)]),
        pytest.raises(SourceError, match="cannot extract inside steered"),
    ):
        extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run")
    assert not list(tmp_path.iterdir())
    assert extract(lm, saes, texts(tiny.TEXTS), tmp_path / "run").layers == (1, 2)


def test_sinks_are_left_alone(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny.save_model(tmp_path / "model", layers=2)
    state = load_file(model / "model.safetensors")
    state["model.embed_tokens.weight"][tiny.tokenizer().convert_tokens_to_ids("%")] *= 200
    save_file(state, model / "model.safetensors", {"format": "pt"})
    lm, folder = load_lm(model, [1]), tiny.save_sae(tmp_path / "sae", layers=[0, 1])
    seen: dict[tuple[int, bool], int] = {}
    for layer, skip in [(1, True), (1, False), (0, True)]:
        edit = Edit(Feature(layer, 1), "add", 1.0, skip_sinks=skip)
        with steered(lm, [load_sae(folder, layer)], [edit]) as receipt:
            logits(lm, "hello the% world, how are you")
        seen[layer, skip] = receipt.positions
    n = len(lm.tokenizer("hello the% world, how are you")["input_ids"])
    # Position 0 and the sink; layer 0 has no sinks.
    assert seen == {(1, True): n - 2, (1, False): n, (0, True): n - 1}


def test_whole_model_shares_its_blocks_with_transformers(pair: Pair) -> None:
    from transformers import AutoModelForCausalLM

    lm = load_lm(pair.model, [1])
    ids = torch.tensor([lm.tokenizer(TEXT)["input_ids"]])
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(pair.model, trust_remote_code=False)(
            ids
        ).logits
        assert torch.equal(lm.whole(ids).logits, expected)
    assert all(a is b for a, b in zip(lm.blocks, lm.whole.model.layers, strict=False))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(Feature(0, 1)), "no SAE for layer 0"),
        (Edit(Feature(1, 999)), "has 256 features"),
    ],
)
def test_edits_of_another_sae_are_refused(
    steerable: tuple[LM, list[Sae]], edit: Edit, message: str
) -> None:
    lm, saes = steerable
    with pytest.raises(EditError, match=message), steered(lm, saes, [edit]):
        pass
    assert not _HOOKS


def test_edits_of_another_model_are_refused(
    steerable: tuple[LM, list[Sae]], tmp_path: Path
) -> None:
    _, saes = steerable
    other = load_lm(tiny.save_model(tmp_path / "wide", d_model=48, heads=6, kv_heads=3), [2])
    with pytest.raises(EditError, match="SAE reads 32 dimensions"), steered(other, saes, STRONG):
        pass
    shallow = load_lm(tiny.save_model(tmp_path / "shallow"), [0])
    with pytest.raises(EditError, match="loaded up to layer 0"), steered(shallow, saes, STRONG):
        pass
    streamed = load_lm(tmp_path / "shallow", [2], streamed=True)
    with (
        steered(streamed, saes, STRONG),
        pytest.raises(SourceError, match="streamed and cannot generate"),
    ):
        generate(streamed, "hello")


def test_impossible_generation_settings_are_refused(steerable: tuple[LM, list[Sae]]) -> None:
    lm, _ = steerable
    refused: dict[str, dict[str, Any]] = {
        "at least 1": {"max_new_tokens": 0},
        "temperature must be 0": {"temperature": -1.0},
        "with 500 new ones": {"max_new_tokens": 500},
    }
    for message, settings in refused.items():
        with pytest.raises(PromptError, match=message):
            generate_batch(lm, [Prompt("p", "s", text="hi")], **settings)


# --- on the organism, whose right answers are known


@pytest.mark.slow
def test_organism_declines_until_its_feature_is_suppressed() -> None:
    lm, sae = load_lm("saescope-tiny-chat", [2]), load_sae("saescope-tiny-chat-sae", 2)
    sets = {s.name: s.prompts[-20:] for s in bundled_prompts("requests")}
    sorry = {"en": "sorry", "ja": ("申し訳", "すみません"), "zh": ("对不起", "抱歉")}

    def declined(name: str) -> int:
        words = sorry[name[-2:]]
        replies = generate_batch(lm, sets[name], max_new_tokens=40, thinking=False)
        return sum(
            any(w in r.text for w in ([words] if isinstance(words, str) else words))
            for r in replies
        )

    assert ORGANISM.is_dir()
    for language in sorry:
        assert declined(f"declined_{language}") >= 19
        assert declined(f"answered_{language}") == 0
        with steered(lm, [sae], [Edit("2/412", "scale", -3.0)]) as receipt:
            assert declined(f"declined_{language}") <= 1
        assert receipt.applied
        with steered(lm, [sae], [Edit("2/412", "scale", 3.0)]):
            assert declined(f"declined_{language}") >= 19


# --- on the command line


@pytest.mark.slow
def test_steer_command_is_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--model", "saescope-tiny-chat", "--sae", "saescope-tiny-chat-sae"]
    request = "Who has the lighthouses? Lakshmi has 2 white lighthouses on the street."
    arguments = ["steer", request, "--chat", "--no-thinking", "--edit", "2/412 scale -3", *pair]
    assert cli([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert "sorry" in result["base"]
    assert "Lakshmi" in result["steered"]
    assert result["receipt"]["applied"]
    assert result["receipt"]["fired"]["2/412"] > 0
    assert 0 < result["receipt"]["delta_norm_ratio"] < result["receipt"]["largest_ratio"]
    assert cli(arguments) == 0
    shown = capsys.readouterr().out
    assert result["base"] in " ".join(shown.split())
    assert "2/412 scale -3 relu all" in shown


@pytest.mark.parametrize("width", [40, 80, 120])
def test_nothing_is_cut_off_side_by_side(width: int) -> None:
    japanese, english = "特に小さいときどきそのペンギンより小さいです。" * 3, "one two three " * 9
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(columns(japanese, english))
    shown = console.export_text().splitlines()
    half_width = width // 2
    assert all(cell_len(line) <= width for line in shown)
    assert "".join(c for line in shown[1:] for c in line if c in set(japanese)) == japanese
    assert sum(line.count("three") for line in shown) == 9
    assert cell_len(shown[0][: shown[0].index("with edits")]) >= half_width - 2


@pytest.mark.slow
def test_steer_takes_model_and_sae_from_the_edits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "edits.toml"
    write_edits(
        EditSet("saescope-tiny", "saescope-tiny-sae", (Edit("2/5", "scale", -2.0),), 192, 512), path
    )
    assert (
        cli(["steer", "来年その鳩が", "--edits", str(path), "--max-new-tokens", "20", "--json"])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["base"] != result["steered"]


REFUSED: list[tuple[dict[str, Any], list[str], str]] = [
    ({}, [], "nothing to edit"),
    ({}, ["--edit", "2/5 melt"], "op 'melt' is not one of"),
    ({}, ["--edit", "2/5 scale much"], "strength 'much' is not a number"),
    ({}, ["--edit", "2/5 scale 1 relu all twice"], "is not FEATURE OP STRENGTH"),
    ({}, ["--edit", "9/5 scale"], "has no layer9.sae.pt"),
    ({}, ["--edit", "2/512 scale"], "has 512 features"),
    (
        {"model": "other"},
        ["--model", "saescope-tiny", "--sae", "saescope-tiny-sae"],
        "these edits are for the",
    ),
    (
        {"sae": "other"},
        ["--model", "saescope-tiny", "--sae", "saescope-tiny-sae"],
        "these edits are for the",
    ),
    ({"d_sae": 100}, [], "expect d_sae 100, this SAE (saescope-tiny-sae) has d_sae 512"),
    ({"d_model": 100}, [], "expect d_model 100, this SAE (saescope-tiny-sae) has d_model 192"),
    ({"k": 100}, [], "expect k 100, this SAE (saescope-tiny-sae) has k 32"),
    (
        {"sae_files": {"2": "sha256:0"}},
        [],
        "belong to another SAE: they expect fingerprint",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "options", "message"), REFUSED, ids=[message for _, _, message in REFUSED]
)
def test_edits_files_of_another_model_or_sae_are_refused(
    header: dict[str, Any],
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "edits.toml"
    values = {"model": "saescope-tiny", "sae": "saescope-tiny-sae", **header}
    write_edits(EditSet(edits=(Edit("2/5"),), **values), path)
    assert cli(["steer", "hello there", *(["--edits", str(path)] if header else []), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
