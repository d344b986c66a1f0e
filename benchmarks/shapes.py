"""Sizes of the measured models and SAEs, and the disk space they take."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

K = 50
SMALL, MAIN, LARGE = "qwen3-0.1b", "qwen3-1.7b", "qwen3-8b"  # what the tables are measured on


class Tensor(NamedTuple):
    """One weight: its name, sizes and the standard deviation of its values (None: all ones)."""

    name: str
    sizes: tuple[int, ...]
    std: float | None

    @property
    def n_values(self) -> int:
        """Number of values."""
        return prod(self.sizes)


@dataclass(frozen=True)
class Shape:
    """A dense Qwen3 model and the width of the SAEs trained on it."""

    name: str
    layers: int
    d_model: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    d_sae: int

    @property
    def sae_folder(self) -> str:
        """Folder name of the SAEs, in the form of Qwen-Scope's releases."""
        return f"SAE-Res-{self.name}-Base-W{self.d_sae // 1024}K-L0_{K}"

    @property
    def middle(self) -> int:
        """The default layer, the one below the middle: 13 of 28, 17 of 36."""
        return self.layers // 2 - 1

    @property
    def model_bytes(self) -> int:
        """Size of all weights in bfloat16."""
        return 2 * sum(tensor.n_values for tensor in self.tensors())

    @property
    def sae_bytes(self) -> int:
        """Size of one layer's SAE in float32."""
        return 4 * (2 * self.d_sae * self.d_model + self.d_sae + self.d_model)

    def cut(self, layers: int) -> "Shape":
        """The same shape with only the first `layers` layers."""
        return replace(self, layers=layers)

    def matmuls(self) -> list[tuple[int, int]]:
        """(out, in) of every weight matrix in one block."""
        matrices = []
        for tensor in self._block(prefix=""):
            if len(tensor.sizes) == 2:
                rows, columns = tensor.sizes
                matrices.append((rows, columns))
        return matrices

    def token_operations(self, layer: int) -> int:
        """Operations per token: two per weight of the encoder and of the blocks up to `layer`."""
        block = sum(out * width for out, width in self.matmuls())
        encoder = self.d_sae * self.d_model
        return 2 * ((layer + 1) * block + encoder)

    def tensors(self) -> Iterator[Tensor]:
        """Every weight, scaled so that each block writes about as much as the embedding."""
        yield Tensor("model.embed_tokens.weight", (self.vocab, self.d_model), 0.5)
        for layer in range(self.layers):
            yield from self._block(f"model.layers.{layer}.")
        yield Tensor("model.norm.weight", (self.d_model,), None)
        if not self.tied:
            yield Tensor("lm_head.weight", (self.vocab, self.d_model), self.d_model**-0.5)

    def _block(self, prefix: str) -> Iterator[Tensor]:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        linear = {
            "self_attn.q_proj": (queries, self.d_model),
            "self_attn.k_proj": (keys, self.d_model),
            "self_attn.v_proj": (keys, self.d_model),
            "self_attn.o_proj": (self.d_model, queries),
            "mlp.gate_proj": (self.mlp, self.d_model),
            "mlp.up_proj": (self.mlp, self.d_model),
            "mlp.down_proj": (self.d_model, self.mlp),
        }
        for name, sizes in linear.items():
            yield Tensor(f"{prefix}{name}.weight", sizes, sizes[1] ** -0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield Tensor(f"{prefix}{name}.weight", (self.d_model,), None)
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            yield Tensor(f"{prefix}{name}.weight", (self.head_dim,), None)


SHAPES = {
    "tiny": Shape("Tiny", 4, 64, 128, 4, 2, 16, 8_192, True, 1_024),
    # As large as SmolLM2-135M.
    SMALL: Shape("Qwen3-0.1B", 30, 576, 1536, 9, 3, 64, 49_152, True, 4_096),
    MAIN: Shape("Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, 151_936, True, 32_768),
    LARGE: Shape("Qwen3-8B", 36, 4096, 12_288, 32, 8, 128, 151_936, False, 65_536),
}
