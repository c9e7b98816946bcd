"""Body parts as vectors added to tokens, for upright person crops."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posenc.encodings.base import TokenEncoding, check_flag, check_positive
from posenc.functional.body import (
    BodyFrame,
    column_functions,
    crop_heights,
    find_body,
    part_memberships,
    start_spacing,
)
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


class Body(TokenEncoding):
    """A vector for each part of an upright body, and smooth ones for the column.

    `x_i += sum_p S_ip e_p + sum_k f_k(u_i) E_k`, with patch centers (y, u) in (0, 1) of the image,

    `S_ip = softmax_p(-(y_i - c_p)^2 / (2 t^2))`, the soft membership of a row in P parts, and
    `f(u) = (u - 1/2, (u - 1/2)^2 - 1/12, cos 2 pi u, sin 2 pi u)`, which tells left from right.

    The centers are `c = cumsum(softmax(spacing))` without the last: they stay in order and inside
    the crop, whatever is learned, so that a part keeps its meaning. Prefix tokens pass unchanged.
    On another grid the same function of the image is read at other places; no parameter is resized.

    With `adaptive=True` heights are those in the body instead of those in the crop, for each
    image: `y' = 1/2 + (y - mu) sqrt((1/12) / v)`, where `a = softmax_i(x_i . w)` says what is
    foreground, `mu = sum_i a_i y_i` is its middle and `v = sum_i a_i (y_i - mu)^2 + 1 / (12 h^2)`
    its variance on h rows, each as tall as it is. At `w = 0` the body is the whole crop, exactly.
    Where all the weight falls on one row, this row is the body: y' is never farther than h from the
    middle.

    Do not use it for people who lie or for anything but people.

    Parameters: `part_embedding` `[P, embed_dim]` (e), `part_spacing` `[P + 1]`, `log_part_width`
    `[1]` (ln t, in crops), `column_embedding` `[4, embed_dim]` (E); if adaptive `foreground`
    `[embed_dim]` (w).

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the tokens.
        parts: P; 5 starts at head, chest, hips, thighs, shins, others in equal stripes.
        adaptive: whether heights are measured in the body of each image.

    Raises:
        ValueError: a number of parts that is no positive int.
        TypeError: `adaptive` is no bool.

    Initial effect: none, because e and E are zero. In the first step only these have a gradient
    that is not zero.

    Reference: ours; there is no published original. Its attention form is `HumanPart`.

    >>> body = Body(TokenLayout(2, 3), embed_dim=8)
    >>> tuple(body.part_embedding.shape), tuple(body.part_spacing.shape)
    ((8, 8), (9,))
    """

    paper = None  # ours
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        parts: int = 8,
        adaptive: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim)
        self.parts = check_positive(parts, "parts", "Body")
        self.adaptive = check_flag(adaptive, "adaptive", "Body")

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        self.part_embedding, self.part_spacing = zeros(parts, embed_dim), zeros(parts + 1)
        self.log_part_width, self.column_embedding = zeros(1), zeros(4, embed_dim)
        with torch.no_grad():
            self.part_spacing.copy_(start_spacing(parts, self.part_spacing.device))
            self.log_part_width.fill_(math.log(0.5 / parts))
        if adaptive:
            self.foreground = zeros(embed_dim)

    def changes_at_start(self) -> bool:
        """Never: the vectors are zero."""
        return False

    def encode(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """Patches plus their vectors, prefix tokens as they are."""
        dtype = at_least_float32(self.part_embedding.dtype, x.dtype)
        columns = column_functions(layout, x.device, dtype) @ self.column_embedding.to(dtype)
        added = self.memberships(x, layout, dtype) @ self.part_embedding.to(dtype) + columns
        return (x + F.pad(added, (0, 0, layout.prefix, 0))).to(x.dtype)

    def memberships(
        self, x: Tensor, layout: TokenLayout, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """S, the soft membership of every patch in the parts: `[h * w, P]`, adaptive `[B, ...]`."""
        heights = crop_heights(layout, x.device, dtype)
        if self.adaptive:
            heights = self.body_frame(x, layout, dtype).from_crop(heights)
        return part_memberships(heights, self.part_spacing, self.log_part_width)

    def body_frame(
        self, x: Tensor, layout: TokenLayout, dtype: torch.dtype = torch.float32
    ) -> BodyFrame:
        """If adaptive: where the body of each image is, by its tokens `[B, N, embed_dim]`."""
        return find_body(layout, x[:, layout.prefix :].to(dtype) @ self.foreground.to(dtype))

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"parts={self.parts}, adaptive={self.adaptive}"
