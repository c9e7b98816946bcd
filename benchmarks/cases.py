"""What is measured, as data: shapes, and encodings by labels such as "irpe on=qk mode=bias"."""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import posenc
from posenc.registry import check_options, encoding_class


@dataclass(frozen=True)
class Shape:
    """One attention call."""

    batch: int
    heads: int
    head_dim: int
    height: int
    width: int
    prefix: int = 1

    @property
    def layout(self) -> posenc.TokenLayout:
        """The tokens."""
        return posenc.TokenLayout(self.height, self.width, self.prefix)

    @property
    def forward_flops(self) -> int:
        """Of the two matrix products of plain attention."""
        return 4 * self.batch * self.heads * self.layout.num_tokens**2 * self.head_dim

    def forward_bytes(self, dtype: torch.dtype) -> int:
        """Of query, key, value and output."""
        tokens = self.batch * self.heads * self.layout.num_tokens
        return 4 * tokens * self.head_dim * dtype.itemsize

    def scaled(self, batch: int | None, device: torch.device) -> Shape:
        """With this batch; by default larger on a GPU, which the batches of a CPU leave idle."""
        if batch is None:
            batch = self.batch * (1 if device.type == "cpu" else 16)
        return replace(self, batch=batch)


SHAPES = {
    "reid": Shape(8, 6, 64, 16, 8),
    "vit-s-224": Shape(8, 6, 64, 14, 14),
    "vit-s-384": Shape(4, 6, 64, 24, 24),
    "vit-b-384": Shape(2, 12, 64, 24, 24),
    "1024": Shape(2, 6, 64, 32, 32),
    "vit-b-512": Shape(4, 12, 64, 32, 32),
    "2304": Shape(1, 6, 64, 48, 48),
    "4096": Shape(1, 6, 64, 64, 64),
}
CPU_SHAPES = ("reid", "vit-s-224", "vit-b-384", "1024")
GPU_SHAPES = (*CPU_SHAPES, "vit-b-512", "4096")

ENCODINGS = (
    "irpe",
    "irpe mode=bias",
    "irpe on=qkv",
    "irpe method=cross",
    "irpe method=cross on=qkv",
    "swin",
    "quadratic",
    "human_part",
)


@dataclass(frozen=True)
class Case:
    """An encoding with options."""

    label: str
    name: str
    options: dict[str, object]

    def build(self, shape: Shape, device: torch.device) -> nn.Module:
        """With parameters that are not zero: zeros would hide a wrong result."""
        encoding = posenc.create_encoding(
            self.name,
            layout=shape.layout,
            num_heads=shape.heads,
            head_dim=shape.head_dim,
            device=device,
            **self.options,
        )
        with torch.no_grad():
            for parameter in encoding.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return encoding


def all_cases() -> list[Case]:
    """Every registered encoding that acts inside attention, with its default options."""
    classes = {name: encoding_class(name) for name in posenc.list_encodings()}
    inside = [name for name, cls in classes.items() if issubclass(cls, posenc.AttentionEncoding)]
    return [Case(name, name, {}) for name in inside]


def parse_case(label: str) -> Case:
    """`name key=value ...` with Python values; what is not one is text.

    Raises:
        ValueError: an unknown encoding or option, one that does not act inside attention, or a
            word that is not key=value.
    """
    name, *words = label.split()
    if not issubclass(encoding_class(name), posenc.AttentionEncoding):
        raise ValueError(f"{name} acts on tokens, not inside attention")
    options = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"expected key=value after {name}, got {word!r}")
        options[key] = _value(text)
    check_options(encoding_class(name), options, name)
    return Case(" ".join([name, *words]), name, options)


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def inputs(shape: Shape, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Query, key, value `[B, heads, N, head_dim]`: views of one packed projection, as in ViTs."""
    tokens = shape.layout.num_tokens
    packed = torch.randn(
        shape.batch, tokens, 3, shape.heads, shape.head_dim, device=device, dtype=dtype
    )
    return packed.permute(2, 0, 3, 1, 4).unbind(0)
