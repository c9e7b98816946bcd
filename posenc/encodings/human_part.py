"""The human-part vertical prior, for upright person crops."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_number, check_positive
from posenc.functional.coordinates import unit_coordinates
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LowRankBias, Term

# Head, chest, hips, thighs, shins of a figure eight heads tall that fills the crop.
FIVE_PARTS = (1 / 16, 3 / 16, 7 / 16, 10 / 16, 14 / 16)


class HumanPart(AttentionEncoding):
    """Body parts along the height of a person attend to each other, within a learned window.

    With patch centers (y, x) in (0, 1), for grid tokens:

    `b_h(i, j) = g_h (S_i^T A_h S_j - (y_i - y_j)^2 / (2 sv_h^2) - (x_i - x_j)^2 / (2 sh_h^2))`,
    `S_i = softmax_p(-(y_i - c_p)^2 / (2 t^2))`, the soft membership of a row in P parts.

    With prefix tokens, sharing one `u` and one `w` per head (`u` made zero-sum): prefix query c
    and grid key j: `g_h u^T A_h S_j`; grid query i and prefix key: `g_h S_i^T w`; between prefix
    tokens: 0. The term is exactly of rank P + 3, equal to the formula up to a constant per
    query, and needs no resampling.

    Do not use it for people who lie, for crops with large borders or for anything but people.

    Parameters: `part_centers` `[P]` and `log_part_width` `[1]` (c and ln t, in crop heights,
    shared by heads), `affinity` `[heads, P, P]` (A, identity at start), `log_vertical_extent`
    and `log_horizontal_extent` `[heads]` (ln sv and ln sh in crop heights and widths, 0.3 and
    0.6 at start), `strength` `[heads]` (g); with prefix tokens `prefix_query` (u) and
    `prefix_key` (w), `[heads, P]`, zero at start.

    Args:
        layout: the tokens; only whether it has prefix tokens fixes parameters.
        num_heads: heads of the attention.
        head_dim: not needed.
        parts: P; 5 starts at head, chest, hips, thighs, shins, others evenly spaced.
        strength: start of g. At 0 only `strength` has a gradient in the first step.

    Initial effect: none with `strength=0`.

    Reference: ours; there is no published original. The low-rank form follows FlashBias,
    arXiv 2505.12044.

    >>> HumanPart(TokenLayout(3, 2), num_heads=2).affinity.shape
    torch.Size([2, 5, 5])
    """

    paper = None  # ours
    is_static = True

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        parts: int = 5,
        strength: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        self.parts = check_positive(parts, "parts", "HumanPart")
        self.start_strength = check_number(strength, "strength", "HumanPart")
        device = torch.get_default_device() if device is None else device

        def parameter(values: Tensor) -> nn.Parameter:
            default = dtype or torch.get_default_dtype()
            return nn.Parameter(values.to(device=device, dtype=default, copy=True))

        # On the CPU in float64, that all devices start alike; on meta without memory.
        start = torch.device("meta" if torch.device(device).type == "meta" else "cpu")
        ones = torch.ones(num_heads, device=start, dtype=torch.float64)
        self.part_centers = parameter(_start_centers(parts, start))
        self.log_part_width = parameter(ones[:1] * math.log(0.5 / parts))  # FSDP: no scalars
        self.affinity = parameter(torch.eye(parts, device=start).repeat(num_heads, 1, 1))
        self.log_vertical_extent = parameter(ones * math.log(0.3))
        self.log_horizontal_extent = parameter(ones * math.log(0.6))
        self.strength = parameter(ones * self.start_strength)
        if layout.prefix:  # a parameter without a gradient would stop DDP
            zeros = torch.zeros(num_heads, parts, device=start)
            self.prefix_query = parameter(zeros)
            self.prefix_key = parameter(zeros)

    def changes_at_start(self) -> bool:
        """Unless the strength starts at zero."""
        return self.start_strength != 0

    def memberships(self, layout: TokenLayout, dtype: torch.dtype = torch.float32) -> Tensor:
        """S, the soft membership of every patch in the parts: `[h * w, P]`."""
        y = self._coordinates(layout, dtype)[:, :1]
        width = self.log_part_width.to(y.dtype).exp()
        return (-((y - self.part_centers.to(y.dtype)) ** 2) / (2 * width**2)).softmax(-1)

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One low-rank bias of rank P + 3.

        Squares are expanded: the products `y_i y_j` and `x_i x_j` take two columns; the key-only
        part is added to every part column, since memberships sum to one; the query-only part is
        dropped for grid keys, and a last column takes it from prefix keys, which have none.
        """
        dtype = at_least_float32(self.part_centers.dtype, q.dtype)
        membership = self.memberships(layout, dtype).expand(self.num_heads, -1, -1)
        precision = torch.stack(
            [
                (-2 * self.log_vertical_extent.to(dtype)).exp(),
                (-2 * self.log_horizontal_extent.to(dtype)).exp(),
            ],
            dim=-1,
        )[:, None, :]  # [heads, 1, 2]: 1 / sv^2, 1 / sh^2
        centered = (self._coordinates(layout, dtype) - 0.5).expand(self.num_heads, -1, -1)
        alone = -0.5 * (precision * centered**2).sum(-1, keepdim=True)  # [heads, n, 1]
        affinity = self.affinity.to(dtype)
        part_keys = membership @ affinity.transpose(-2, -1)  # A S_j
        left = torch.cat([membership, precision * centered, alone], dim=-1)
        right = torch.cat([part_keys + alone, centered, torch.zeros_like(alone)], dim=-1)
        if layout.prefix:
            left, right = self._add_prefix(left, right, layout.prefix)
        strength = self.strength.to(dtype)[:, None, None]
        return (LowRankBias(left[None], (strength * right)[None]),)

    def _add_prefix(self, left: Tensor, right: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        query, key = self.prefix_query.to(left.dtype), self.prefix_key.to(left.dtype)
        # Zero sum: the distance part of a key, which every part column carries, cancels.
        query = query - query.mean(-1, keepdim=True)
        zeros = query.new_zeros(self.num_heads, 2)
        between = (query * key).sum(-1, keepdim=True)  # makes prefix to prefix exactly 0
        first_left = torch.cat([query, zeros, between], dim=-1)
        first_right = torch.cat([key, zeros, -torch.ones_like(between)], dim=-1)
        return (
            torch.cat([first_left[:, None].expand(-1, prefix, -1), left], dim=1),
            torch.cat([first_right[:, None].expand(-1, prefix, -1), right], dim=1),
        )

    def _coordinates(self, layout: TokenLayout, dtype: torch.dtype) -> Tensor:
        return unit_coordinates(layout, self.part_centers.device, dtype)


def _start_centers(parts: int, device: torch.device) -> Tensor:
    if parts == len(FIVE_PARTS):
        return torch.tensor(FIVE_PARTS, dtype=torch.float64, device=device)
    return (torch.arange(parts, dtype=torch.float64, device=device) + 0.5) / parts
