"""The human-part vertical prior, for upright person crops."""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_flag, check_number, check_positive, flag
from posenc.functional.body import (
    BodyFrame,
    crop_heights,
    find_body,
    part_memberships,
    start_spacing,
)
from posenc.functional.coordinates import unit_coordinates
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LowRankBias, Term

FIRST_VERSION = (
    "these are parameters of the first version of human_part, whose centers (part_centers) could "
    "leave the crop in training. The second one, of this posenc, has ordered centers inside it "
    "(part_spacing), which cannot say the same: patch a new model and train it, or read this with "
    "the posenc that wrote it"
)


class HumanPart(AttentionEncoding):
    """Body parts along the height of a person attend to each other, within a learned window.

    With patch centers (y, x) in (0, 1), for grid tokens:

    `b_h(i, j) = g_h (S_i^T A_h S_j - (y_i - y_j)^2 / (2 sv_h^2) - (x_i - x_j)^2 / (2 sh_h^2))`,
    `S_i = softmax_p(-(y_i - c_p)^2 / (2 t^2))`, the soft membership of a row in P parts.

    The centers are `c = cumsum(softmax(spacing))` without the last: they stay in order and inside
    the crop, whatever is learned, so that a part keeps its meaning.

    With prefix tokens, sharing one `u` and one `w` per head (`u` made zero-sum): prefix query c
    and grid key j: `g_h u^T A_h S_j`; grid query i and prefix key: `g_h S_i^T w`; between prefix
    tokens: 0. The term is exactly of rank P + 3, equal to the formula up to a constant per
    query, and needs no resampling.

    With `adaptive=True` heights are those in the body instead of those in the crop, for each
    image, in S and in the window: `y' = 1/2 + (y - mu) sqrt((1/12) / v)`, where
    `a = softmax_i(k_i . f)`, of the mean key over heads, says what is foreground,
    `mu = sum_i a_i y_i` is its middle and `v = sum_i a_i (y_i - mu)^2 + 1 / (12 h^2)` its variance
    on h rows, each as tall as it is. At `f = 0` the body is the whole crop, exactly. Where all the
    weight falls on one row, this row is the body: y' is never farther than h from the middle. The
    term is then another one for each image, and is neither remembered nor folded.

    Do not use it for people who lie, for crops with large borders (unless adaptive) or for anything
    but people.

    Parameters: `part_spacing` `[P + 1]` and `log_part_width` `[1]` (ln t, in crop heights), shared
    by heads, `affinity` `[heads, P, P]` (A, identity at start), `log_vertical_extent` and
    `log_horizontal_extent` `[heads]` (ln sv and ln sh in crop heights and widths, 0.3 and 0.6 at
    start), `strength` `[heads]` (g); with prefix tokens `prefix_query` (u) and `prefix_key` (w),
    `[heads, P]`, zero at start; if adaptive `foreground` `[head_dim]` (f), zero at start.

    Args:
        layout: the tokens; only whether it has prefix tokens fixes parameters.
        num_heads: heads of the attention.
        head_dim: width of a head; needed if adaptive.
        parts: P; 5 starts at head, chest, hips, thighs, shins, others in equal stripes.
        adaptive: whether heights are measured in the body of each image.
        strength: start of g. At 0 only `strength` has a gradient in the first step.

    Raises:
        ValueError: a number of parts that is no positive int, a strength that is no number, or
            `adaptive` without `head_dim`. Parameters of the first version, whose centers could
            leave the crop, are refused as an error of `load_state_dict` (a RuntimeError) and of
            files.
        TypeError: `adaptive` is no bool.

    Initial effect: none with `strength=0`.

    Reference: ours; there is no published original. The low-rank form follows FlashBias,
    arXiv 2505.12044. Its form on tokens is `Body`.

    >>> HumanPart(TokenLayout(3, 2), num_heads=2).affinity.shape
    torch.Size([2, 5, 5])
    """

    paper = None  # ours
    outdated = MappingProxyType({"part_centers": FIRST_VERSION})

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        parts: int = 5,
        adaptive: bool = False,
        strength: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.parts = check_positive(parts, "parts", "HumanPart")
        self.adaptive = check_flag(adaptive, "adaptive", "HumanPart")
        self.start_strength = check_number(strength, "strength", "HumanPart")
        device = torch.get_default_device() if device is None else device

        def parameter(values: Tensor) -> nn.Parameter:
            default = dtype or torch.get_default_dtype()
            return nn.Parameter(values.to(device=device, dtype=default, copy=True))

        # On the CPU in float64, that all devices start alike; on meta without memory.
        start = torch.device("meta" if torch.device(device).type == "meta" else "cpu")
        ones = torch.ones(num_heads, device=start, dtype=torch.float64)
        self.part_spacing = parameter(start_spacing(parts, start))
        self.log_part_width = parameter(ones[:1] * math.log(0.5 / parts))  # FSDP: no scalars
        self.affinity = parameter(torch.eye(parts, device=start).repeat(num_heads, 1, 1))
        self.log_vertical_extent = parameter(ones * math.log(0.3))
        self.log_horizontal_extent = parameter(ones * math.log(0.6))
        self.strength = parameter(ones * self.start_strength)
        if layout.prefix:  # a parameter without a gradient would stop DDP
            zeros = torch.zeros(num_heads, parts, device=start)
            self.prefix_query = parameter(zeros)
            self.prefix_key = parameter(zeros)
        if adaptive:
            self.foreground = parameter(torch.zeros(self._key_width(), device=start))

    def _key_width(self) -> int:
        if self.head_dim is None:
            raise ValueError(
                "HumanPart: adaptive=True reads keys, and needs head_dim=..., which was not given"
            )
        return self.head_dim

    @flag
    def is_static(self) -> bool:
        """Unless adaptive."""
        return not self.adaptive

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def memberships(
        self, k: Tensor, layout: TokenLayout, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """S, the soft membership of every patch in the parts: `[1, h * w, P]`, adaptive `[B, ...]`.

        Args:
            k: keys `[B, heads, N, head_dim]`, which adaptive parts read.
            layout: of the tokens.
            dtype: of the result.
        """
        return self._memberships(self._heights(k, layout, dtype))

    def _memberships(self, heights: Tensor) -> Tensor:
        return part_memberships(heights, self.part_spacing, self.log_part_width)

    def body_frame(
        self, k: Tensor, layout: TokenLayout, dtype: torch.dtype = torch.float32
    ) -> BodyFrame:
        """If adaptive: where the body of each image is, by its keys."""
        keys = k[:, :, layout.prefix :].to(dtype).mean(1)
        return find_body(layout, keys @ self.foreground.to(dtype))

    def _heights(self, k: Tensor, layout: TokenLayout, dtype: torch.dtype) -> Tensor:
        """From the middle, of the crop or of the body: `[1 or B, h * w]`."""
        heights = crop_heights(layout, k.device, dtype)[None]
        return self.body_frame(k, layout, dtype).from_crop(heights) if self.adaptive else heights

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One low-rank bias of rank P + 3.

        Squares are expanded: the products `y_i y_j` and `x_i x_j` take two columns; the key-only
        part is added to every part column, since memberships sum to one; the query-only part is
        dropped for grid keys, and a last column takes it from prefix keys, which have none.
        """
        dtype = at_least_float32(self.part_spacing.dtype, q.dtype)
        heights = self._heights(k, layout, dtype)
        columns = unit_coordinates(layout, k.device, dtype)[:, 1] - 0.5
        membership = self._of_heads(self._memberships(heights))
        precision = torch.stack(
            [
                (-2 * self.log_vertical_extent.to(dtype)).exp(),
                (-2 * self.log_horizontal_extent.to(dtype)).exp(),
            ],
            dim=-1,
        )[:, None, :]  # [heads, 1, 2]: 1 / sv^2, 1 / sh^2
        centered = self._of_heads(torch.stack([heights, columns.expand_as(heights)], dim=-1))
        alone = -0.5 * (precision * centered**2).sum(-1, keepdim=True)  # [1 or B, heads, n, 1]
        # A S_j, not as a matrix product: a backward pass under autocast would round it to 16 bits.
        part_keys = (membership[..., None, :] * self.affinity.to(dtype)[:, None]).sum(-1)
        left = torch.cat([membership, precision * centered, alone], dim=-1)
        right = torch.cat([part_keys + alone, centered, torch.zeros_like(alone)], dim=-1)
        if layout.prefix:
            left, right = self._add_prefix(left, right, layout.prefix)
        strength = self.strength.to(dtype)[:, None, None]
        return (LowRankBias(left, strength * right, wide=self.adaptive),)

    def _of_heads(self, of_rows: Tensor) -> Tensor:
        """`[1 or B, n, ...]` -> `[1 or B, heads, n, ...]`."""
        return of_rows[:, None].expand(-1, self.num_heads, -1, -1)

    def _add_prefix(self, left: Tensor, right: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        query, key = self.prefix_query.to(left.dtype), self.prefix_key.to(left.dtype)
        # Zero sum: the distance part of a key, which every part column carries, cancels.
        query = query - query.mean(-1, keepdim=True)
        zeros = query.new_zeros(self.num_heads, 2)
        between = (query * key).sum(-1, keepdim=True)  # makes prefix to prefix exactly 0
        first_left = torch.cat([query, zeros, between], dim=-1)
        first_right = torch.cat([key, zeros, -torch.ones_like(between)], dim=-1)
        return _put_first(first_left, left, prefix), _put_first(first_right, right, prefix)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"parts={self.parts}, adaptive={self.adaptive}"


def _put_first(row: Tensor, rows: Tensor, times: int) -> Tensor:
    """A row of each head `[heads, r]`, so many times, before its others `[B, heads, n, r]`."""
    first = row[:, None].expand(*rows.shape[:-2], times, -1)
    return torch.cat([first, rows], dim=-2)
