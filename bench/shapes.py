"""Shapes of models and data sheets of cards: used by bench/cost.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU's dense peak rates, from its data sheet."""

    name: str
    bf16: float
    """FLOP/s."""
    fp32: float
    """FLOP/s without tensor cores: exact search."""
    bandwidth: float
    """Bytes/s."""
    memory: float = 80e9


CARDS = {
    "h100": Card("H100 SXM", 989e12, 67e12, 3.35e12),
    "a100": Card("A100 SXM 80 GB", 312e12, 19.5e12, 2.04e12),
    "h200": Card("H200 SXM", 989e12, 67e12, 4.8e12, 141e9),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a Qwen2.5-VL, from its published configuration."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int = 128
    vision_hidden: int = 1280
    vision_intermediate: int = 3420
    vision_layers: int = 32

    @property
    def key_values(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Input and output widths of a layer's linear modules, which LoRA adapts."""
        h, i, queries = self.hidden, self.intermediate, self.heads * self.head_dim
        return (h, queries), (h, self.key_values), (h, self.key_values), (queries, h), (h, i), (h, i), (i, h)

    @property
    def layer_parameters(self) -> int:
        """Parameters of all layers, with which each token is multiplied."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def vocabulary_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def vision_parameters(self) -> int:
        v, i = self.vision_hidden, self.vision_intermediate
        return self.vision_layers * (4 * v * v + 3 * v * i) + 3 * 2 * 14 * 14 * v

    @property
    def merger_parameters(self) -> int:
        wide = 4 * self.vision_hidden
        return wide * wide + wide * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, with both vocabulary matrices (untied), without norms and biases (0.01%)."""
        return self.layer_parameters + 2 * self.vocabulary_parameters + self.vision_parameters + self.merger_parameters

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache per token, in bfloat16."""
        return 2 * 2 * self.key_values * self.layers

    def lora_parameters(self, r: int) -> int:
        return self.layers * sum(r * (a + b) for a, b in self.linears)

    def image_flop(self, visual_tokens: float) -> float:
        """FLOP of a forward pass through the vision tower: four patches per visual token."""
        return 2 * visual_tokens * (4 * self.vision_parameters + self.merger_parameters)


QWEN_7B = Shape(3584, 28, 18944, 28, 4, 152064)
QWEN_72B = Shape(8192, 80, 29568, 64, 8, 152064, vision_intermediate=3456)
