"""A depthwise convolution of the patches, beside them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from posenc.layout import TokenLayout


def add_depthwise(x: Tensor, weight: Tensor, bias: Tensor, layout: TokenLayout) -> Tensor:
    """`x + conv(x)` on the grid, prefix tokens as they are.

    A cross-correlation of each channel with its own K x K kernel, K odd, with zero padding K // 2
    and stride 1; in the dtype of the tokens.

    Args:
        x: tokens `[B, N, C]`.
        weight: `[C, 1, K, K]`.
        bias: `[C]`.
        layout: of the tokens.
    """
    grid = x[:, layout.prefix :]
    image = rearrange(grid, "b (h w) c -> b c h w", h=layout.height, w=layout.width)
    padding, channels = weight.shape[-1] // 2, weight.shape[0]
    image = F.conv2d(image, weight.to(x.dtype), bias.to(x.dtype), padding=padding, groups=channels)
    grid = grid + rearrange(image, "b c h w -> b (h w) c")
    return torch.cat([x[:, : layout.prefix], grid], dim=1)
