"""What is checked: an encoding that can be built for any layout, and its random inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from posenc.attention import attend
from posenc.encodings.base import AttentionEncoding
from posenc.layout import TokenLayout
from posenc.patching.spec import parse_specs

LAYOUTS = tuple(
    TokenLayout(*sizes) for sizes in [(2, 5, 0), (4, 3, 1), (1, 6, 2), (3, 2, 5), (1, 1, 1)]
)
BATCH = 2


@dataclass
class Subject:
    """An encoding that can be built for any layout."""

    encoding: Any
    num_heads: int
    head_dim: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def embed_dim(self) -> int:
        """Width of the tokens."""
        return self.num_heads * self.head_dim

    @property
    def acts_in_attention(self) -> bool:
        """Its kind."""
        return isinstance(self.build(LAYOUTS[0]), AttentionEncoding)

    def build(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> Any:
        """The encoding at its start, the same each time."""
        (spec,) = parse_specs(self.encoding, dict(self.options))
        sizes: dict[str, int | None] = {
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "embed_dim": self.embed_dim,
            "block": 0,
            "num_blocks": 2,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return spec.create(layout, sizes, torch.device("cpu"), dtype)

    def random(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> Any:
        """The encoding away from its start."""
        return randomize(self.build(layout, dtype))

    def qkv(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Query, key and value `[B, heads, N, head_dim]`, the same each time, with gradients."""
        shape = (BATCH, self.num_heads, layout.num_tokens, self.head_dim)
        return [random_tensor(shape, seed, dtype).requires_grad_() for seed in (1, 2, 3)]

    def tokens(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> Tensor:
        """Tokens `[B, N, embed_dim]`, the same each time, with gradients."""
        shape = (BATCH, layout.num_tokens, self.embed_dim)
        return random_tensor(shape, 1, dtype).requires_grad_()

    def run(self, encoding: Any, layout: TokenLayout, dtype: Any = torch.float64) -> Tensor:
        """What it makes of the same random input each time."""
        if isinstance(encoding, AttentionEncoding):
            q, k, v = self.qkv(layout, dtype)
            return attend(q, k, v, encoding(q, k, layout))
        return encoding(self.tokens(layout, dtype), layout)

    def without(self, layout: TokenLayout) -> Tensor:
        """What no encoding makes of it."""
        if not self.acts_in_attention:
            return self.tokens(layout)
        q, k, v = self.qkv(layout)
        return attend(q, k, v)


def randomize(module: nn.Module, scale: float = 0.4) -> nn.Module:
    """Moves every parameter away from its start, by the same noise each time."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            noise = random_tensor(tuple(parameter.shape), seed, torch.float64)
            parameter.add_((scale * noise).to(parameter.device))
    return module


def random_tensor(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers, drawn in float64 whatever the dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
