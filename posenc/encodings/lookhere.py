"""LookHere: heads that look into one direction each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posenc.encodings.base import AttentionEncoding, check_number
from posenc.functional.buckets import fit_buckets, swin_index
from posenc.functional.coordinates import patch_offsets
from posenc.functional.fields import Field, inside_fields
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term

# By degrees: the rays at which the fields of four heads start (0 to the right, 2 up, 4 to the
# left, 6 down), and those of the next four.
STARTS = {
    45: ((2, 5, 3, 0), (1, 6, 4, 7)),  # between an axis and a diagonal
    90: ((2, 0, 4, 6), (1, 5, 3, 7)),  # quadrants; around the axes
    180: ((0, 4, 2, 6), (7, 1, 5, 3)),  # up, down, left, right; the four diagonals
}
UNDIRECTED_SLOPES = (1 / 4, 1 / 16, 1 / 64, 1 / 256)


class LookHere(AttentionEncoding):
    """Each head looks into one direction, 45, 90 or 180 degrees wide, and prefers what is near.

    `b_h[i, j] = -slope_h |p_j - p_i|` for keys in the head's field and minus infinity outside it,
    with the Euclidean distance in patches. A query always sees itself, because the borders belong
    to a field, and pairs with a prefix token have no bias, so that no row of the softmax is empty.
    Nothing is learned. Other grids need no resizing: fields and distances are the same there.

    Heads come in groups of four. Two groups of directed heads and one that sees all sides are the
    twelve heads of the paper; `field_of_view` says how wide the directed ones look: 45 (LH-45: the
    eighths of a turn on one side of the axes, and then those on the other), 90 (LH-90: the
    quadrants up left, up right, down left, down right; then around up, down, left, right) or 180
    degrees (LH-180: up, down, left, right; then up right, up left, down right, down left). With
    other numbers of heads, groups are added in the same order, 16 heads have the first group twice,
    as published, and the last heads are left out where the number is no multiple of four.

    `slope_h = global_slope layer_slope head_slope_h`. A directed head has 1/2, or 1/4 in the second
    group of the same directions, and so on; the others 1/4, 1/16, 1/64, 1/256. The slope of the
    layer falls linearly from the first to the last block; it is the mean of both where the block is
    not known, or where all blocks share the encoding. The published code rounds the biases to
    bfloat16, and takes the most negative number of that type for minus infinity.

    Args:
        layout: the tokens.
        num_heads: the heads of the attention.
        head_dim: not needed.
        block: where the attention stands, from 0, if that is known.
        num_blocks: how many blocks there are.
        field_of_view: 45, 90 or 180 degrees.
        global_slope: of all heads and blocks; the published models have 2.
        layer_slopes: of the first and of the last block.

    Raises:
        ValueError: another field of view, slopes that are negative or no numbers, or a block
            outside `num_blocks`.

    Initial effect: heads see their fields only. There is no start without effect.

    Reference: Fuller et al. 2024, arXiv 2405.13985, section 3.

    >>> layout, q = TokenLayout(1, 3), torch.zeros(1, 4, 3, 8)
    >>> LookHere(layout, num_heads=4, field_of_view=180)(q, q, layout)[0].dense()[0, 2]  # left
    tensor([[-0., -inf, -inf],
            [-1., -0., -inf],
            [-2., -1., -0.]])
    """

    paper = ("Fuller et al. 2024", "https://arxiv.org/abs/2405.13985")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        block: int | None = None,
        num_blocks: int | None = None,
        *,
        field_of_view: int = 90,
        global_slope: float = 2.0,
        layer_slopes: Sequence[float] = (1.5, 0.5),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        if field_of_view not in STARTS:
            raise ValueError(
                f"LookHere: field_of_view must be 45, 90 or 180 (degrees), got {field_of_view!r}"
            )
        self.field_of_view = field_of_view
        first, last = _check_pair(layer_slopes)
        slope = _check_slope(global_slope, "global_slope")
        slope *= first + (last - first) * _depth(block, num_blocks)
        groups = _groups(num_heads, field_of_view)
        self.fields: list[Field | None] = [field for field, _ in groups]
        self.slopes = [slope * own for _, own in groups]

    def changes_at_start(self) -> bool:
        """Always."""
        return True

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """A static lookup with entries of minus infinity."""
        dtype = at_least_float32(q.dtype)
        distances = patch_offsets(layout, q.device, torch.float64).norm(dim=-1).to(dtype)
        slopes = torch.tensor(self.slopes, device=q.device, dtype=dtype)
        outside = ~inside_fields(layout, self.fields, q.device)
        table = (-slopes[:, None] * distances).masked_fill(outside, -math.inf)
        index = swin_index(layout, "none")
        return (LookupBias(fit_buckets(table, index)[None, :, None], index),)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"field_of_view={self.field_of_view}"


def _groups(num_heads: int, degrees: int) -> list[tuple[Field | None, float]]:
    """Field and slope of every head."""
    count = -(-num_heads // 4)
    repeated = [(count + 2 - kind) // 3 for kind in range(3)]  # of twelve heads each kind has one
    heads: list[tuple[Field | None, float]] = []
    for starts, times in zip(STARTS[degrees], repeated, strict=False):
        heads += [
            ((start, degrees // 45), 2.0 ** -(again + 1))
            for again in range(times)
            for start in starts
        ]
    heads += [(None, slope) for slope in UNDIRECTED_SLOPES] * repeated[2]
    return heads[:num_heads]


def _depth(block: int | None, num_blocks: int | None) -> float:
    """From 0 at the first block to 1 at the last; the middle where it is not known."""
    if block is None:
        return 0.5
    if num_blocks is None or not 0 <= block < num_blocks:
        raise ValueError(
            "LookHere: block must be 0 to num_blocks - 1, or None where it is not known or shared, "
            f"got block={block!r}, num_blocks={num_blocks!r}"
        )
    return block / max(num_blocks - 1, 1)


def _check_pair(slopes: Any) -> tuple[float, float]:
    if not isinstance(slopes, (tuple, list)) or len(slopes) != 2:
        raise ValueError(
            f"LookHere: layer_slopes must be two numbers, of the first and the last block, got "
            f"{slopes!r}"
        )
    first, last = (_check_slope(slope, "layer_slopes") for slope in slopes)
    return first, last


def _check_slope(value: float, name: str) -> float:
    number = check_number(value, name, "LookHere")
    if number < 0:
        raise ValueError(f"LookHere: {name} must not be negative, got {value!r}")
    return number
