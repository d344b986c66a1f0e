"""The same jobs with transformers and hooks alone, as one writes them for one occasion.

`python -m proof.plain scan|rates|evaluate MODEL SAE LAYER …`: what saescope's speed and memory are
compared with. Nothing of saescope is imported, nothing is checked, kept or resumed.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class Plain:
    """A model, its tokenizer, and one layer's SAE."""

    def __init__(self, model: str, sae: str, layer: int) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            model, dtype="auto", trust_remote_code=False, use_safetensors=True
        ).eval()
        self.layer = layer
        tensors = torch.load(Path(sae) / f"layer{layer}.sae.pt", weights_only=True)
        self.encoder: torch.Tensor = tensors["W_enc"].float()
        self.bias: torch.Tensor = tensors["b_enc"].float()
        self.decoder: torch.Tensor = tensors["W_dec"].float()
        self.k = int(json.loads((Path(sae) / "cfg.json").read_text())["k"])

    def residual(self, text: str) -> torch.Tensor:
        """Residuals after the layer, one row per token."""
        found: list[torch.Tensor] = []
        block = self.model.model.layers[self.layer]
        handle = block.register_forward_hook(lambda _m, _i, out: found.append(_first(out)))
        self.model(**self.tokenizer(text, return_tensors="pt"))
        handle.remove()
        return found[0][0].float()

    def features(self, text: str) -> torch.Tensor:
        """Ids of the features that fire, strongest first, one row per token."""
        pre_acts = self.residual(text) @ self.encoder.T + self.bias
        return pre_acts.topk(self.k, dim=-1).indices

    @contextmanager
    def scaled(self, feature: int, strength: float) -> Iterator[None]:
        """Scale a feature's contribution at every position but the first."""
        encoder, decoder = self.encoder[feature], self.decoder[:, feature]

        def change(_module: Any, _inputs: Any, out: Any) -> Any:
            resid = _first(out)
            act = (resid.float() @ encoder + self.bias[feature]).relu()
            if resid.shape[1] > 1:
                act[:, 0] = 0
            edited = resid + (strength * act[..., None] * decoder).to(resid.dtype)
            return (edited, *out[1:]) if isinstance(out, tuple) else edited

        handle = self.model.model.layers[self.layer].register_forward_hook(change)
        yield
        handle.remove()

    def log_probs(self, text: str) -> torch.Tensor:
        """Next-token log-probabilities after every token."""
        logits = self.model(**self.tokenizer(text, return_tensors="pt")).logits[0]
        return torch.log_softmax(logits.float(), dim=-1)

    def continuations(self, texts: Sequence[str], n: int) -> list[str]:
        """Greedy continuations of all texts in one batch."""
        self.tokenizer.padding_side = "left"
        batch = self.tokenizer(list(texts), return_tensors="pt", padding=True)
        ids = self.model.generate(**batch, max_new_tokens=n, do_sample=False)
        replies = self.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :])
        return [str(reply) for reply in replies]


def _first(out: Any) -> torch.Tensor:
    tensor: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return tensor


def scan(plain: Plain, text: str) -> dict[str, Any]:
    """The strongest features of every token."""
    return {"ids": plain.features(text)[:, :5].tolist()}


def rates(plain: Plain, folder: str) -> dict[str, Any]:
    """Share of tokens of each set on which each feature fires; one prompt at a time."""
    best = {}
    for file in sorted(Path(folder).glob("*.jsonl")):
        fires = torch.zeros(len(plain.bias))
        tokens = 0
        for line in file.read_text(encoding="utf-8").splitlines():
            ids = plain.features(json.loads(line)["text"])[1:]
            fires += torch.bincount(ids.flatten(), minlength=len(fires))
            tokens += len(ids)
        best[file.stem] = float((fires / tokens).max())
    return {"largest_rate": best}


def evaluate(plain: Plain, prompts: str, neutral: str, features: Sequence[int], n: int) -> Any:
    """Continuations and KL under every condition: strengths of one feature, and of others."""
    beginnings = [json.loads(line)["text"] for line in Path(prompts).read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in Path(neutral).read_text().splitlines()]
    conditions = [(features[0], strength) for strength in (0.0, -1.0, -2.0, -3.0, 3.0, 0.0)]
    conditions += [(feature, -3.0) for feature in features[1:]]
    results = []
    for feature, strength in conditions:
        kls = []
        for text in texts:
            before = plain.log_probs(text)
            with plain.scaled(feature, strength):
                after = plain.log_probs(text)
            kls.append((before.exp() * (before - after)).sum(-1))
        with plain.scaled(feature, strength):
            replies = plain.continuations(beginnings, n)
        kl = float(torch.cat(kls).mean())
        results.append({"feature": feature, "strength": strength, "kl": kl, "replies": replies})
    return results


@torch.inference_mode()
def main(arguments: Sequence[str]) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m proof.plain")
    parser.add_argument("job", choices=("scan", "rates", "evaluate"))
    for name in ("model", "sae", "layer", "texts"):
        parser.add_argument(name)
    parser.add_argument("--neutral")
    parser.add_argument("--features", default="")
    parser.add_argument("--tokens", type=int, default=16)
    options = parser.parse_args(arguments)
    plain = Plain(options.model, options.sae, int(options.layer))
    if options.job == "evaluate":
        features = [int(feature) for feature in options.features.split(",")]
        result = evaluate(plain, options.texts, options.neutral, features, options.tokens)
    else:
        result = {"scan": scan, "rates": rates}[options.job](plain, options.texts)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
