"""The local perception unit of CMT."""

from __future__ import annotations

import torch

from posenc.encodings._depthwise import DepthwiseEncoding
from posenc.encodings.base import check_blocks
from posenc.layout import TokenLayout


class LPU(DepthwiseEncoding):
    """Looks at the neighbors of each patch before each block: `x + depthwise_conv(x)`.

    A depthwise K x K cross-correlation with zero padding K // 2 and stride 1, on the tokens that a
    block receives, so that its shortcut carries the result on. Prefix tokens pass by. Works on any
    grid, and no parameter is resized: a kernel has the same size in patches everywhere.

    `peg` is the same formula after one block. Models whose blocks do not see one grid of tokens
    (windows, stages) are refused.

    Parameters: `weight` `[embed_dim, 1, K, K]`, `bias` `[embed_dim]`.

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the tokens.
        kernel_size: K, odd.
        at: read by `patch_model`, which puts one before each of these blocks; None: before all.

    Raises:
        ValueError: an even kernel, or a wrong `at`.

    Initial effect: none, because the kernels start at zero.

    Reference: Guo et al. 2022, arXiv 2107.06263, section 3.2, equation 1.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> LPU(layout, embed_dim=8)(torch.ones(1, 7, 8), layout).shape
    torch.Size([1, 7, 8])
    """

    paper = ("Guo et al. 2022", "https://arxiv.org/abs/2107.06263")
    placement = "block_input"

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        kernel_size: int = 3,
        at: tuple[int, ...] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim, kernel_size=kernel_size, device=device, dtype=dtype)
        self.at = None if at is None else check_blocks(at, "at", "LPU")
