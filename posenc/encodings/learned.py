"""A learned absolute position table."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from posenc.encodings.base import TokenEncoding, check_choice
from posenc.functional.precision import at_least_float32
from posenc.functional.resample import resample_grid
from posenc.layout import TokenLayout

Policy = Literal["timm", "hf"]
Init = Literal["zero", "paper"]


class LearnedAbsolute(TokenEncoding):
    """Adds a learned vector per token, resampled to other grids: `x + table`.

    The table is `[num_tokens, embed_dim]`, prefix rows first. On another grid its grid rows are
    resampled on the fly, in float32, and differentiably; prefix rows pass through and the stored
    table stays as it is. timm before 1.0.31 took a 2x8 table for a 4x4 grid as it is, because the
    numbers of tokens agree; here rows are counted by the layout.

    Args:
        layout: tokens that fix the table size.
        embed_dim: width of the tokens.
        policy: "timm" (bicubic with antialias) or "hf" (bicubic without, as DINOv2 and Hugging
            Face). On a trained table they differ by more than its own size: keep the one that
            the checkpoint's users use.
        init: "zero", or "paper": normal with standard deviation 0.02, truncated at 2.

    Raises:
        ValueError: an unknown option, or a layout with another number of prefix tokens.

    Initial effect: none; with "paper" a small one.

    Reference: Dosovitskiy et al. 2021, arXiv 2010.11929, sections 3.1 and 3.2.

    >>> LearnedAbsolute(TokenLayout(2, 3, prefix=1), embed_dim=8).table.shape
    torch.Size([7, 8])
    """

    paper = ("Dosovitskiy et al. 2021", "https://arxiv.org/abs/2010.11929")
    is_sized_by_grid = True

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        policy: Policy = "timm",
        init: Init = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim)
        self.policy = check_choice(policy, get_args(Policy), "policy", "LearnedAbsolute")
        self.init = check_choice(init, get_args(Init), "init", "LearnedAbsolute")
        self.table = nn.Parameter(
            torch.zeros(layout.num_tokens, embed_dim, device=device, dtype=dtype)
        )
        if init == "paper":
            nn.init.trunc_normal_(self.table, std=0.02)

    def changes_at_start(self) -> bool:
        """With the paper's start."""
        return self.init == "paper"

    def check_prefix(self, layout: TokenLayout) -> None:
        """Each prefix token has a row of its own: the number must be the same."""
        if layout.prefix != self.layout.prefix:
            raise ValueError(
                f"LearnedAbsolute has rows for {self.layout.prefix} prefix tokens, the layout "
                f"{layout} has {layout.prefix}; build it with that prefix"
            )

    def encode(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """`x + table`, resampled where the grid differs."""
        dtype = at_least_float32(x.dtype)
        return (x + self.resampled(layout).to(dtype)).to(x.dtype)

    def resampled(self, layout: TokenLayout) -> Tensor:
        """The table of `layout`: `[num_tokens, embed_dim]`."""
        if layout.grid == self.layout.grid:
            return self.table
        prefix, grid = self.table.split([self.layout.prefix, self.layout.num_grid])
        grid = resample_grid(grid, self.layout.grid, layout.grid, antialias=self.policy == "timm")
        return torch.cat([prefix, grid])
