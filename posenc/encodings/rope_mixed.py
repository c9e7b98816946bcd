"""Rotary embedding with learned two-dimensional frequencies."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import (
    AttentionEncoding,
    check_choice,
    check_number,
    check_positive_number,
    flag,
)
from posenc.functional.precision import at_least_float32
from posenc.functional.rotary_angles import Axis, counted, power_bands, token_places
from posenc.layout import TokenLayout
from posenc.terms import Rotation, Term

Order = Literal["columns", "rows"]
Resize = Literal["scale", "extrapolate"]


class RoPEMixed(AttentionEncoding):
    """Each pair of channels of each head turns along a learned direction of the image.

    Pair p of head h turns, at row y and column x in patches, by the angle
    `x freqs[0, h, p] + y freqs[1, h, p]`; `order="rows"` exchanges the two. Channels 2c and 2c + 1
    are a pair. Prefix tokens do not turn. The score of two patches depends on their offset (and on
    the content).

    Parameters: `freqs` `[2, heads, head_dim / 2]` in radians per patch. timm stores them for all
    blocks, `[2, depth, heads, head_dim / 2]`, and rope-vit as `[2, heads * head_dim / 2]`.

    They start as `mag_i = temperature ** (-4 i / head_dim)`, i < head_dim / 4, along a random
    direction phi of each head, and along the direction at a right angle to it:
    `freqs[0] = [mag cos(phi), mag cos(phi + pi / 2)]`,
    `freqs[1] = [mag sin(phi), mag sin(phi + pi / 2)]`.

    Another grid: patches are counted, so places go on beyond those of the grid that it was built
    for; with `resize="scale"` they are multiplied by built / present sides.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: width of a head, a multiple of 4.
        temperature: of the frequencies at start.
        order: "columns": `freqs[0]` belongs to columns, as in rope-vit and in timm's rope-mixed
            models ("xy", the default of its RotaryEmbeddingMixed); "rows": to rows (timm's "ij").
        strength: multiplies the frequencies at start; with 0 they are learned from 0.
        resize: "extrapolate" or "scale".

    Initial effect: queries and keys turn; none with `strength=0`. On a model with a rotary
    embedding of its own both act.

    Raises:
        ValueError: head_dim is no multiple of 4, or a value out of range.

    Reference: Heo et al. 2024 (RoPE-ViT), arXiv 2403.13298, section 3.2. The public
    rope-vit reuses its table wherever token counts agree (2x8 for 4x4).

    >>> RoPEMixed(TokenLayout(2, 3), num_heads=2, head_dim=8).freqs.shape
    torch.Size([2, 2, 4])
    """

    paper = ("Heo et al. 2024", "https://arxiv.org/abs/2403.13298")
    is_static = True
    is_sized_by_prefix = False
    kind = "rotary"

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        temperature: float = 10.0,
        order: Order = "columns",
        strength: float = 1.0,
        resize: Resize = "extrapolate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        if head_dim % 4:
            raise ValueError(
                "RoPEMixed: head_dim must be a multiple of 4 (pairs along two directions), got "
                f"{head_dim}; rope with rotated={head_dim // 4 * 4} can leave channels out"
            )
        self.temperature = check_positive_number(temperature, "temperature", "RoPEMixed")
        self.order = check_choice(order, get_args(Order), "order", "RoPEMixed")
        self.start_strength = check_number(strength, "strength", "RoPEMixed")
        self.resize = check_choice(resize, get_args(Resize), "resize", "RoPEMixed")
        shape = (2, num_heads, head_dim // 2)
        self.freqs = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        if not self.freqs.is_meta:  # where there is nothing to draw for
            start = _random_directions(num_heads, head_dim, self.temperature)
            with torch.no_grad():
                self.freqs.copy_(self.start_strength * start)

    @flag
    def is_sized_by_grid(self) -> bool:
        """Where the grid that it was built for decides about places on others."""
        return self.resize == "scale"

    def changes_at_start(self) -> bool:
        """Unless the frequencies start at zero."""
        return self.start_strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One rotation."""
        freqs = self.freqs.to(at_least_float32(self.freqs.dtype, q.dtype))
        places = token_places(layout, self._axes(layout), freqs.device, freqs.dtype)
        first, second = places.flip(-1).unbind(-1) if self.order == "columns" else places.unbind(-1)
        # Sums of products, no matrix product: that may round to 10 bits on a GPU.
        angles = first[:, None] * freqs[0, :, None] + second[:, None] * freqs[1, :, None]
        return (Rotation(angles.cos()[None], angles.sin()[None], interleaved=True),)

    def _axes(self, layout: TokenLayout) -> tuple[Axis, Axis]:
        whole = self.layout.grid if self.resize == "scale" else layout.grid
        return counted(layout.height, whole[0]), counted(layout.width, whole[1])

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"order={self.order}, resize={self.resize}"


def _random_directions(num_heads: int, head_dim: int, temperature: float) -> Tensor:
    """`[2, num_heads, head_dim / 2]`, float64 on the CPU."""
    bands = power_bands(head_dim // 4, temperature)
    mag = torch.tensor(bands, device="cpu", dtype=torch.float64)
    phi = math.tau * torch.rand(num_heads, 1, device="cpu", dtype=torch.float64)
    directions = torch.cat([phi.expand(-1, len(mag)), (phi + math.pi / 2).expand(-1, len(mag))], 1)
    return torch.stack([directions.cos(), directions.sin()]) * mag.repeat(2)
