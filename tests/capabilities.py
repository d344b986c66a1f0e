"""What saescope does with one checkpoint, each answer compared with transformers on the same files.

A capability equals transformers, is labelled approximate and says why, or is refused in one
sentence. A wrong value raises AssertionError.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor, nn

import kinds
import reference
import tiny
from saescope.control.baking.bake import bake
from saescope.control.baking.settings import BakeSettings
from saescope.control.edits import Edit
from saescope.control.evaluation.behaviour import PhraseJudge
from saescope.control.evaluation.evaluate import evaluate
from saescope.control.evaluation.settings import EvaluateSettings, ReferenceData
from saescope.control.exports.export_result import ExportResult
from saescope.control.exports.gguf import export_gguf
from saescope.control.exports.lora import export_lora
from saescope.control.exports.settings import ExportSettings
from saescope.control.steer import steered
from saescope.engine.anatomy import read_anatomy
from saescope.engine.batches import plan_batches
from saescope.engine.contents import Contents
from saescope.engine.forward import compute_residuals
from saescope.engine.generate import generate_batch
from saescope.engine.lm import LM, load_lm
from saescope.engine.load import load_sae
from saescope.engine.plan import plan_job
from saescope.engine.sae import Sae
from saescope.engine.scan import scan
from saescope.errors import SaescopeError
from saescope.sources.directions import Direction
from saescope.sources.files import open_files
from saescope.sources.job_plan import JobOptions
from saescope.sources.prompts import texts

with warnings.catch_warnings(action="ignore"):
    from peft import PeftModel

EDITED_LAYER = 1
NEW_TOKENS = 10  # more than the sliding windows of `kinds.py` hold
PROMPTS = texts([tiny.TEXTS[0], tiny.TEXTS[1], "x"])[0].prompts
NEUTRAL = texts([tiny.TEXTS[3]], "neutral")[0].prompts
ADD = Edit(f"{EDITED_LAYER}/3", "add", 6.0, skip_sinks=False)
DIRECTION = np.random.default_rng(3).normal(size=kinds.D_MODEL)
UNIT = torch.from_numpy(DIRECTION / np.linalg.norm(DIRECTION)).float()
PROJECT = Edit(direction=Direction(EDITED_LAYER, DIRECTION, "d"), op="project")
IDS = torch.tensor([[5, 17, 80, 3, 200, 41, 7, 7, 130, 99, 250, 12]])
Hook = Callable[[nn.Module, Any, Any], Any]


@dataclass(frozen=True)
class Outcome:
    """How a capability ends: a word for the table and, unless it is "yes", a sentence."""

    word: str
    why: str = ""


YES = Outcome("yes")


@dataclass(frozen=True)
class Subject:
    """A checkpoint on disk, as saescope opens it and as transformers does."""

    kind: kinds.Kind
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def sae(self) -> Path:
        return self.folder / "sae"

    @cached_property
    def lm(self) -> LM:
        return load_lm(self.model, dtype="float32", device="cpu")

    @cached_property
    def saes(self) -> list[Sae]:
        return [load_sae(self.sae, layer, decoder=True) for layer in range(kinds.LAYERS)]

    @cached_property
    def stock(self) -> Any:
        return self.opened(self.model)

    def opened(self, folder: Path) -> Any:
        """The model that stock transformers makes of a folder."""
        stock = kinds.stock_class(self.kind)
        model = stock.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        return model.eval()

    @cached_property
    def ids(self) -> list[list[int]]:
        return [tiny.tokenizer()(prompt.text)["input_ids"] for prompt in PROMPTS]

    @cached_property
    def greedy(self) -> list[list[int]]:
        return [greedy(self.stock, ids) for ids in self.ids]

    @cached_property
    def greedy_with_addition(self) -> list[list[int]]:
        with self.with_addition():
            return [greedy(self.stock, ids) for ids in self.ids]

    @property
    def addition(self) -> Tensor:
        W_dec = self.saes[EDITED_LAYER].W_dec
        assert W_dec is not None
        return ADD.amount * W_dec[:, ADD.target_feature.id]

    @contextmanager
    def with_addition(self) -> Iterator[None]:
        """Within the context, transformers' model runs under the edit `ADD`."""
        block = reference.blocks(self.stock)[EDITED_LAYER]
        with hooked([block], lambda resid: resid + self.addition):
            yield

    @cached_property
    def projected_logits(self) -> Tensor:
        """Logits of transformers' model, its every write to the residual projected by a hook."""
        files = open_files(str(self.model))
        anatomy, path = read_anatomy(files), Contents.open(files, torch.float32).decoder_path
        names = {path + site for _, site in anatomy.sites}
        names |= {path + w.name.removesuffix(".weight") for w in anatomy.writes if w.layer < 0}
        modules = [self.stock.get_submodule(name) for name in names]
        with hooked(modules, lambda resid: resid - (resid @ UNIT)[..., None] * UNIT):
            return logits(self.stock)

    @cached_property
    def plain_logits(self) -> Tensor:
        return logits(self.stock)


def subject(kind: kinds.Kind, folder: Path) -> Subject:
    """Writes a checkpoint of this kind, and SAEs of all its layers."""
    kinds.save(kind, folder / "model")
    tiny.save_sae(folder / "sae", range(kinds.LAYERS), d_model=kinds.D_MODEL, d_sae=64)
    return Subject(kind, folder)


def outcome(capability: str, subject: Subject) -> Outcome:
    """What the capability does, or the sentence that refuses it."""
    try:
        return CAPABILITIES[capability](subject)
    except SaescopeError as error:
        sentence = str(error).replace(str(subject.model), "MODEL").replace("\u2026", "...")
        assert "\n" not in sentence
        return Outcome("refused", sentence)


@contextmanager
def hooked(modules: Sequence[nn.Module], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context, the modules' outputs are changed."""

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=ids, use_cache=False).logits[0]
        return found


def residuals(model: Any, ids: Sequence[int]) -> list[Tensor]:
    """Every block's output, by transformers' model."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        for block in reference.blocks(model):
            keep = lambda _m, _i, output: seen.append(reference.tensor(output)[0])  # noqa: E731
            stack.callback(block.register_forward_hook(keep).remove)
        logits(model, torch.tensor([ids]))
    assert len(seen) == kinds.LAYERS
    return seen


def greedy(model: Any, ids: Sequence[int]) -> list[int]:
    """What transformers' generate continues with, without the end token."""
    given = torch.tensor([ids])
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        out = model.generate(given, attention_mask=torch.ones_like(given), **options)
    end = tiny.tokenizer().eos_token_id
    return [token for token in out[0, len(ids) :].tolist() if token != end]


def uncached(model: Any, ids: Sequence[int]) -> list[int]:
    """The same without a KV cache: the whole text is read again for every token."""
    row = list(ids)
    for _ in range(NEW_TOKENS):
        row.append(int(logits(model, torch.tensor([row]))[-1].argmax()))
    end = tiny.tokenizer().eos_token_id
    new = row[len(ids) :]
    return new[: new.index(end)] if end in new else new


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether the largest difference is this small a share of the largest value."""
    difference = float((found - expected).abs().max())
    return difference <= tolerance * float(expected.abs().max())


# --- capabilities


def scans(on: Subject) -> Outcome:
    """Norm of the residual at every position and layer, of prompts of three lengths."""
    result = scan(on.lm, on.saes, PROMPTS)
    for prompt, ids in zip(result.prompts, on.ids, strict=True):
        for layer, resid in enumerate(residuals(on.stock, ids)):
            norms = torch.tensor([token.norm[layer] for token in prompt.tokens])
            assert close(norms, resid.norm(dim=-1)), f"norms of layer {layer}"
    return YES


def generates(on: Subject) -> Outcome:
    """Greedy tokens of single prompts and of a batch, with a KV cache and without."""
    together = generate_batch(on.lm, PROMPTS, max_new_tokens=NEW_TOKENS)
    assert [reply.ids for reply in together] == on.greedy, "a batch"
    for prompt, expected in zip(PROMPTS, on.greedy, strict=True):
        [alone] = generate_batch(on.lm, [prompt], max_new_tokens=NEW_TOKENS)
        assert alone.ids == expected, "one prompt"
    assert uncached(on.stock, on.ids[0]) == on.greedy[0], "without a KV cache"
    return YES


def steers(on: Subject) -> Outcome:
    """Greedy tokens under an `add` edit, equal to those under a hook; at strength 0, the base's."""
    assert on.greedy_with_addition != on.greedy
    for edit, expected in (
        (ADD, on.greedy_with_addition),
        (Edit(ADD.feature, "add", 0.0, skip_sinks=False), on.greedy),
    ):
        with steered(on.lm, on.saes, [edit]):
            replies = generate_batch(on.lm, PROMPTS, max_new_tokens=NEW_TOKENS)
        assert [reply.ids for reply in replies] == expected, f"strength {edit.amount}"
    return YES


def evaluates(on: Subject) -> Outcome:
    """Replies with and without the edit, no change at strength 0, and a verdict with controls."""
    judge = PhraseJudge("vowels", {"en": ["a", "e", "i", "o", "u"]})
    settings = EvaluateSettings(draws=1, max_new_tokens=NEW_TOKENS)
    neutral = ReferenceData(neutral=NEUTRAL)
    result = evaluate(on.lm, on.saes, [ADD], PROMPTS[1:], judge, settings, reference=neutral)
    arms = {arm.name: arm for arm in result.arms}
    assert {"none", "edits", "zero", "minus", "random feature", "random direction"} <= set(arms)
    decode = partial(tiny.tokenizer().decode, skip_special_tokens=True)
    assert result.replies["none"] == [decode(ids) for ids in on.greedy[1:]]
    edited = result.replies[result.chosen.name + " x1"]
    assert edited == [decode(ids) for ids in on.greedy_with_addition[1:]]
    assert arms["zero"].damage.kl_mean == 0 < arms["edits"].damage.kl_mean
    assert result.verdict
    return YES


def bakes(on: Subject) -> Outcome:
    """`project`: nothing of the direction left in any layer, logits of hooks at every write."""
    out = on.folder / "baked"
    settings = BakeSettings(force=True)  # what errs by more than a weak edit does is labelled here
    result = bake(on.model, (), [PROJECT], out, settings, neutral=NEUTRAL)
    baked = on.opened(out)
    for resid in residuals(baked, IDS[0].tolist()):
        assert float(((resid @ UNIT).abs() / resid.norm(dim=-1)).max()) < 1e-5, "something is left"
    return _as_labelled(on, logits(baked), result.why_not)


def exports_lora(on: Subject) -> Outcome:
    """The same in peft: logits of hooks at every write; switched off, those of the model."""
    out = on.folder / "lora"
    result = export_lora(on.model, (), [PROJECT], out, ExportSettings(measure=False))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(on.opened(on.model), out).eval()
    assert not [w for w in caught if "missing" in str(w.message)]
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), on.plain_logits)
    return _as_labelled(on, logits(adapted), "; ".join(result.limits) or None)


def _as_labelled(on: Subject, found: Tensor, why_not: str | None) -> Outcome:
    """Whether the logits are the hook's: equal, or labelled as only nearer to it than before."""
    effect = (on.projected_logits - on.plain_logits).abs().mean()
    assert effect > 1e-3
    if why_not is None:
        assert close(found, on.projected_logits), "logits of the hook"
        return YES
    assert (found - on.projected_logits).abs().mean() < 0.7 * effect, "farther than the hook"
    return Outcome("approximate", why_not)


def exports_gguf(on: Subject) -> Outcome:
    """Control vector: the edit's vector for its layer, and logits equal to those under a hook."""
    path = on.folder / "vector.gguf"
    result: ExportResult = export_gguf(on.model, on.saes, [ADD], path)
    assert result.exact
    reader = gguf.GGUFReader(path)
    [tensor] = reader.tensors
    assert tensor.name == f"direction.{EDITED_LAYER}"
    assert close(torch.from_numpy(np.array(tensor.data)), on.addition, 1e-6)
    with steered(on.lm, on.saes, [ADD]):
        found = logits(on.lm.whole)
    with on.with_addition():
        assert close(found, logits(on.stock)), "logits of the hook"
    hint = reader.fields["controlvector.model_hint"].contents()
    if hint not in gguf.MODEL_ARCH_NAMES.values():
        return Outcome("file only", f"llama.cpp has no architecture {hint!r}")
    return YES


def plans(on: Subject) -> Outcome:
    """Bytes of the embeddings and of each block, up to the last layer that is needed."""
    options = JobOptions(str(on.model), str(on.sae), layers=[EDITED_LAYER])
    plan = plan_job(options)
    assert plan.fits, plan.why
    assert plan.sizes is not None
    blocks = reference.blocks(on.stock)[: EDITED_LAYER + 1]
    held = tuple(block.total for block in plan.sizes.blocks)
    assert held == tuple(map(stored_bytes, blocks)), "bytes of the blocks"
    decoder = load_lm(on.model, [EDITED_LAYER], dtype="float32", device="cpu")
    embedding = stored_bytes(decoder.model) - stored_bytes(decoder.blocks)
    assert plan.sizes.embedding.total == embedding, "bytes of the embeddings"
    return YES


def stored_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and stored buffers."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def streams(on: Subject) -> Outcome:
    """Residuals of every layer, block by block: the same bits as with the whole model."""
    layers = range(kinds.LAYERS)
    streamed = load_lm(on.model, dtype="float32", device="cpu", streamed=True)
    found, expected = (
        {
            (part.batch, part.layer): part.resid
            for part in compute_residuals(lm, layers, plan_batches(lm, PROMPTS))
        }
        for lm in (streamed, on.lm)
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(resid, expected[key]) for key, resid in found.items())
    return YES


CAPABILITIES: Mapping[str, Callable[[Subject], Outcome]] = {
    "scan": scans,
    "generate": generates,
    "steer": steers,
    "evaluate": evaluates,
    "bake": bakes,
    "LoRA": exports_lora,
    "GGUF": exports_gguf,
    "plan": plans,
    "streamed": streams,
}
