"""Swin V2's continuous position bias."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding, check_choice, check_positive
from posenc.functional.buckets import fit_buckets, swin_index
from posenc.functional.coordinates import log_offsets
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.terms import LookupBias, Term

Init = Literal["zero", "paper"]


class ContinuousBias(AttentionEncoding):
    """Swin V2's bias, a network of the offset: `b_h[i, j] = 16 sigmoid(W_h relu(V c_ij + v)) - 8`.

    The coordinates of a pair are `c = sign(d) log2(1 + |8 d / (side - 1)|) / log2 8` for each
    axis, with `d` query minus key, (row, column), in patches. A side of 1 divides by 1: its only
    offset is 0 (the published code divides by 0 there, and gives no number). The 8 that is
    subtracted is the middle of the paper's range, 0 to 16, and the same for all patches, which
    softmax does not see; pairs with a prefix token, of which the paper has none, get 0 and with it
    that middle. Beside `cosine` this is the attention of Swin V2.

    Parameters: V `hidden_weight` `[hidden, 2]`, v `hidden_bias` `[hidden]` and W `head_weight`
    `[heads, hidden]`, which has no bias: in Swin V2's checkpoints `cpb_mlp.0.weight`,
    `cpb_mlp.0.bias` and `cpb_mlp.2.weight`. No size depends on the grid.

    On another grid the network is read at the coordinates of that grid. Without `pretrained`,
    `side` is the side of the grid in use: the corners stay at +-log2(9) / 3 and the values between
    them are interpolated. With it `side` is that of the grid of the pretraining, whatever grid is
    in use: an offset in patches keeps its value, and larger offsets are extrapolated. These are
    the two rules of Swin V2, whose models use the second when they are fine-tuned at another
    window size.

    Args:
        layout: the tokens; no parameter size depends on it.
        num_heads: heads of the attention.
        head_dim: not needed.
        hidden: width of the hidden layer.
        pretrained: the grid (height, width) of the pretraining, one number for a square, or None
            to normalize by the grid in use.
        init: "zero": W is zero; "paper": it is normal with standard deviation 0.02, truncated at
            2, as V is in both. v is zero.

    Raises:
        ValueError: a width or side that is no positive int, or another word.

    Initial effect: none; with "paper" a small one.

    Reference: Liu et al. 2022, arXiv 2111.09883, section 3.3, equations 3 and 4; the factor 16
    is that of the published code.

    >>> bias = ContinuousBias(TokenLayout(2, 3), num_heads=4)
    >>> {name: tuple(parameter.shape) for name, parameter in bias.named_parameters()}
    {'hidden_weight': (512, 2), 'hidden_bias': (512,), 'head_weight': (4, 512)}
    """

    paper = ("Liu et al. 2022", "https://arxiv.org/abs/2111.09883")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        hidden: int = 512,
        pretrained: tuple[int, int] | int | None = None,
        init: Init = "zero",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        check_positive(hidden, "hidden", "ContinuousBias")
        self.pretrained = _check_grid(pretrained)
        self.init = check_choice(init, get_args(Init), "init", "ContinuousBias")

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))

        self.hidden_weight = zeros(hidden, 2)
        self.hidden_bias = zeros(hidden)
        self.head_weight = zeros(num_heads, hidden)
        # Drawn with either start: a hidden layer of zeros would never train.
        nn.init.trunc_normal_(self.hidden_weight, std=0.02)
        if init == "paper":
            nn.init.trunc_normal_(self.head_weight, std=0.02)

    def changes_at_start(self) -> bool:
        """With the paper's start."""
        return self.init == "paper"

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One static lookup: the network is evaluated once per offset."""
        dtype = at_least_float32(self.head_weight.dtype, q.dtype)
        offsets = log_offsets(layout, self.pretrained or layout.grid, q.device, dtype)
        hidden = F.linear(offsets, self.hidden_weight.to(dtype), self.hidden_bias.to(dtype))
        logits = self.head_weight.to(dtype) @ hidden.relu().T
        table = 8 * torch.tanh(logits / 2)  # 16 sigmoid(x) - 8, without the cancellation near 0
        index = swin_index(layout, "none")
        return (LookupBias(fit_buckets(table, index)[None, :, None], index),)

    def extra_repr(self) -> str:
        """Options, as printed."""
        hidden = self.hidden_weight.shape[0]
        return f"hidden={hidden}" + (f", pretrained={self.pretrained}" if self.pretrained else "")


def _check_grid(pretrained: Any) -> tuple[int, int] | None:
    """(height, width) of what may be one number."""
    if pretrained is None:
        return None
    sides = tuple(pretrained) if isinstance(pretrained, (tuple, list)) else (pretrained,) * 2
    is_grid = len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    if not is_grid:
        raise ValueError(
            "ContinuousBias: pretrained must be the grid of the pretraining, such as (8, 8) or 8, "
            f"or None for that in use, got {pretrained!r}"
        )
    return sides[0], sides[1]
