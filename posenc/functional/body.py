"""Heights in crops of upright people: where body parts are, and where the body is.

Heights are those of the middle of a row, in crops from the middle of the crop: -1/2 is its upper
edge and 1/2 its lower one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from posenc.functional.coordinates import unit_coordinates
from posenc.layout import TokenLayout
from posenc.memo import memoized

# Head, chest, hips, thighs, shins of a figure eight heads tall that fills the crop, from its top.
FIVE_PARTS = (1 / 16, 3 / 16, 7 / 16, 10 / 16, 14 / 16)


def start_spacing(parts: int, device: torch.device) -> Tensor:
    """The spacing whose centers are those of a figure for five parts, else in equal stripes.

    Returns:
        `[parts + 1]` in float64, logarithms of the gaps between the edges and the centers.
    """
    centers = (torch.arange(parts, dtype=torch.float64, device=device) + 0.5) / parts
    if parts == len(FIVE_PARTS):
        centers = torch.tensor(FIVE_PARTS, dtype=torch.float64, device=device)
    edges = torch.zeros_like(centers[:1]), torch.ones_like(centers[:1])
    return torch.diff(centers, prepend=edges[0], append=edges[1]).log()


def ordered_centers(spacing: Tensor) -> Tensor:
    """Centers of parts, from the top of the crop: `c = cumsum(softmax(spacing))` without the last.

    Whatever the numbers are, the centers are in order and inside the crop, to rounding.

    Args:
        spacing: `[P + 1]`.

    Returns:
        `[P]`, from 0 to 1.

    >>> ordered_centers(torch.zeros(4))
    tensor([0.2500, 0.5000, 0.7500])
    """
    gaps = spacing.softmax(-1)
    # Not torch.cumsum, which on CUDA is refused where all must be deterministic.
    return (gaps.new_ones(len(gaps), len(gaps)).tril() * gaps).sum(-1)[:-1]


def part_memberships(heights: Tensor, spacing: Tensor, log_width: Tensor) -> Tensor:
    """How much of each part a row is: `S_p = softmax_p(-(y - c_p)^2 / (2 t^2))`.

    Args:
        heights: `[...]`, the y, from the middle of the crop; their dtype is computed in.
        spacing: `[P + 1]`, of `ordered_centers`.
        log_width: `[1]`, ln t, in crops.

    Returns:
        `[..., P]`, sums are 1.
    """
    centers = ordered_centers(spacing.to(heights.dtype)) - 0.5
    precision = (-2 * log_width.to(heights.dtype)).exp()
    return (-0.5 * precision * (heights[..., None] - centers) ** 2).softmax(-1)


class BodyFrame(NamedTuple):
    """Where the body of each image is: `[B, 1]` both.

    Args:
        middle: mean height of the foreground, from the middle of the crop.
        zoom: how many times the body goes into the crop.
    """

    middle: Tensor
    zoom: Tensor

    def from_crop(self, heights: Tensor) -> Tensor:
        """Heights in bodies of heights in crops, each from the middle."""
        return (heights - self.middle) * self.zoom

    def to_crop(self, heights: Tensor) -> Tensor:
        """Heights in crops of heights in bodies, each from the middle."""
        return heights / self.zoom + self.middle


def find_body(layout: TokenLayout, logits: Tensor) -> BodyFrame:
    """Middle and height of the foreground of each image.

    With the weights `a = softmax(logits)` of the patches, mu is the mean height of their rows and
    `v = sum_i a_i (y_i - mu)^2 + 1 / (12 h^2)` the variance, in which each of the h rows is as tall
    as it is and no line. It is 1/12 for the whole crop, on any grid, so that the zoom is
    `sqrt(1/12 / v)`. Where all logits are equal, the body is the whole crop exactly; where one row
    has all the weight, the body is this row, and the zoom h. No image gives more.

    Args:
        layout: of the tokens.
        logits: `[B, height * width]`, of the patches; their dtype is computed in.
    """
    heights = crop_heights(layout, logits.device, logits.dtype)
    mean, variance = _moments(layout, heights, logits.softmax(-1))
    # Of equal weights by the same sums, not 0 and 1/12: what is equal has to be exactly so.
    middle, whole = _moments(layout, heights, torch.zeros_like(logits).softmax(-1))
    return BodyFrame(mean - middle, (whole / variance).sqrt())


def _moments(layout: TokenLayout, heights: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of rows that are as tall as they are: `[B, 1]` both."""
    mean = (weights * heights).sum(-1, keepdim=True)
    between = (weights * (heights - mean) ** 2).sum(-1, keepdim=True)
    return mean, between + 1 / (12 * layout.height**2)


def crop_heights(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The height of every patch from the middle of the crop: `[h * w]`."""
    return unit_coordinates(layout, device, dtype)[:, 0] - 0.5


@memoized
def column_functions(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Four smooth functions of the column u, from 0 to 1 over the image: `[h * w, 4]`.

    `u - 1/2`, `(u - 1/2)^2 - 1/12`, `cos 2 pi u` and `sin 2 pi u`; the mean of each over the image
    is 0. The first and the last tell left from right.
    """
    u = unit_coordinates(layout, torch.device("cpu"), torch.float64)[:, 1]
    angle, centered = 2 * math.pi * u, u - 0.5
    functions = torch.stack([centered, centered**2 - 1 / 12, angle.cos(), angle.sin()], dim=-1)
    return functions.to(device=device, dtype=dtype)
