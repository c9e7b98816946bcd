"""The conditional positional encoding generator (PEG) of CPVT."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from posenc.encodings._depthwise import DepthwiseEncoding
from posenc.encodings.base import check_blocks, check_choice
from posenc.layout import TokenLayout

Init = Literal["zero", "paper"]


class PEG(DepthwiseEncoding):
    """Positions from the content around each patch: `x + depthwise_conv(x)` on the grid.

    A depthwise K x K cross-correlation with zero padding K // 2 and stride 1; prefix tokens pass
    by. Zero padding at the border is what tells a patch where it is. Works on any grid.

    Parameters: `weight` `[embed_dim, 1, K, K]`, `bias` `[embed_dim]`.

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the tokens.
        kernel_size: K, odd.
        after: read by `patch_model`, which puts one PEG after each of these blocks.
        init: "zero", or "paper": PyTorch's own start of a convolution.

    Raises:
        ValueError: an even kernel, or a wrong `after`.

    Initial effect: none; with "paper" an untrained convolution is added.

    Reference: Chu et al. 2021, arXiv 2102.10882, section 3.2; after block 0 as in table 4. The
    authors' repository of that paper holds no code; theirs is published with Twins (PosCNN).

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> PEG(layout, embed_dim=8)(torch.ones(1, 7, 8), layout).shape
    torch.Size([1, 7, 8])
    """

    paper = ("Chu et al. 2021", "https://arxiv.org/abs/2102.10882")
    placement = "block"

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        kernel_size: int = 3,
        after: tuple[int, ...] = (0,),
        init: Init = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim, kernel_size=kernel_size, device=device, dtype=dtype)
        self.after = check_blocks(after, "after", "PEG")
        self.init = check_choice(init, get_args(Init), "init", "PEG")
        if init == "paper":
            bound = 1 / kernel_size  # 1 / sqrt(fan_in) of one channel
            nn.init.uniform_(self.weight, -bound, bound)
            nn.init.uniform_(self.bias, -bound, bound)

    def changes_at_start(self) -> bool:
        """With the paper's start."""
        return self.init == "paper"
