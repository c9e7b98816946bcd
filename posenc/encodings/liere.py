"""Rotary embedding by learned rotations of many dimensions."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import (
    AttentionEncoding,
    check_choice,
    check_flag,
    check_number,
    check_positive,
    flag,
)
from posenc.functional.precision import at_least_float32
from posenc.functional.rotary_angles import Axis, token_places
from posenc.layout import TokenLayout
from posenc.terms import MatrixRotation, Term

Resize = Literal["extrapolate", "scale"]


class LieRE(AttentionEncoding):
    """Queries and keys turn by `exp(y A_h + x B_h)`, learned rotations of blocks of channels.

    A and B are skew-symmetric, so that their exponential is a rotation; y and x are the row and the
    column of a patch, 0 for the first and 1 for the last of its axis (0 if it is the only one).
    Blocks of `block_size` channels turn, each by generators of its own; channels behind the last
    whole block pass. In blocks of 2 these are the turns of `rope_mixed`. In larger ones A and B
    need not commute, and the score of two patches then depends on both places, and not on their
    offset alone. Prefix tokens do not turn.

    Parameters: `generators` `[2, heads, blocks, block_size (block_size - 1) / 2]`, A before B: the
    entries above the diagonal, row by row, whose negatives are below it; heads are 1 with
    `share_heads`. The official `generator_raw_params` `[2, layers, heads * blocks, block_size,
    block_size]` has them above its diagonals, and nothing else of it is used.

    Another grid: patches go on at the places of the official code, beyond 1 on a longer axis: the
    last is at `patches / patches of the layout`. With `resize="scale"` it stays at 1.

    Matrices of all tokens take `tokens * heads * head_dim * block_size` numbers, `block_size`
    times as many as the queries of an image; in eval on the CPU they are remembered for each
    module, and `fold_biases` stores them. ONNX knows no matrix exponential: fold before such an
    export. The gradient of the exponential is expensive: a training step of attention on 197
    tokens and one thread took 8 times as long as without, and 94 times with blocks of 64.

    Args:
        layout: tokens that fix the places; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: width of a head.
        block_size: channels that turn together, from 2 to head_dim. None is 8, or the whole of a
            narrower head. The official code has 8 in its run on ImageNet, and otherwise 64, the
            whole head.
        share_heads: one set of generators for all heads.
        strength: multiplies the start of the official code, uniform in 0 to 2 pi; 1 is that start.
        resize: "extrapolate" or "scale".

    Initial effect: none, the generators start at zero, where their gradients are not zero. With
    another `strength` queries and keys turn. On a model with a rotary embedding of its own both
    act.

    Raises:
        ValueError: a block that does not fit into the head, or a value out of range.
        TypeError: `share_heads` is no bool.

    Reference: Ostmeier et al. 2024, arXiv 2406.10322; places and start are those of the published
    code (StanfordMIMI/LieRE).

    >>> LieRE(TokenLayout(2, 3), num_heads=2, head_dim=16, block_size=4).generators.shape
    torch.Size([2, 2, 4, 6])
    """

    paper = ("Ostmeier et al. 2024", "https://arxiv.org/abs/2406.10322")
    is_static = True
    is_sized_by_prefix = False
    kind = "rotary"

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        block_size: int | None = None,
        share_heads: bool = False,
        strength: float = 0.0,
        resize: Resize = "extrapolate",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        block_size = min(8, head_dim) if block_size is None else block_size
        self.block_size = _check_block_size(block_size, head_dim)
        self.share_heads = check_flag(share_heads, "share_heads", "LieRE")
        self.start_strength = check_number(strength, "strength", "LieRE")
        self.resize = check_choice(resize, get_args(Resize), "resize", "LieRE")
        side = self.block_size
        shape = (2, 1 if share_heads else num_heads, head_dim // side, side * (side - 1) // 2)
        start = torch.zeros(shape, device=device, dtype=dtype)
        if self.start_strength:
            start.uniform_(0, 1).mul_(self.start_strength * math.tau)
        self.generators = nn.Parameter(start)

    @flag
    def is_sized_by_grid(self) -> bool:
        """Where the grid that it was built for decides about places on others."""
        return self.resize == "extrapolate"

    def changes_at_start(self) -> bool:
        """Unless the generators start at zero."""
        return self.start_strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One rotation."""
        generators = self.generators.to(at_least_float32(self.generators.dtype, q.dtype))
        places = token_places(layout, self._axes(layout), generators.device, generators.dtype)
        row, column = places[:, None, None].unbind(-1)  # [N, 1, 1]
        # Sums of products, no matrix product: that may round to 10 bits on a GPU.
        above = row * generators[0, :, None] + column * generators[1, :, None]
        matrices = torch.linalg.matrix_exp(_skew_symmetric(above, self.block_size))
        return (MatrixRotation(matrices[None]),)

    def _axes(self, layout: TokenLayout) -> tuple[Axis, Axis]:
        whole = layout.grid if self.resize == "scale" else self.layout.grid
        height, width = (_places(*sides) for sides in zip(layout.grid, whole, strict=True))
        return height, width

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"block_size={self.block_size}, share_heads={self.share_heads}, resize={self.resize}"


def _check_block_size(block_size: int, head_dim: int) -> int:
    check_positive(block_size, "block_size", "LieRE")
    if not 2 <= block_size <= head_dim:
        raise ValueError(
            f"LieRE: block_size must be at least 2 and at most head_dim, which is {head_dim}, got "
            f"{block_size}"
        )
    return block_size


def _places(side: int, whole: int) -> Axis:
    """From 0 to `side / whole`."""
    return Axis(0.0, side / whole / max(side - 1, 1))


def _skew_symmetric(above: Tensor, side: int) -> Tensor:
    """`[..., side (side - 1) / 2]`, row by row above the diagonal: `[..., side, side]`."""
    rows, columns = torch.triu_indices(side, side, offset=1, device=above.device)
    upper = above.new_zeros(*above.shape[:-1], side, side)
    upper[..., rows, columns] = above
    return upper - upper.mT
