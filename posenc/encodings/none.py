"""No position at all, under a name."""

from __future__ import annotations

import torch
from torch import Tensor

from posenc.encodings.base import AttentionEncoding
from posenc.layout import TokenLayout
from posenc.terms import Term


class NoEncoding(AttentionEncoding):
    """Does nothing, so that a comparison can name it.

    Attention stays `softmax(scale q k^T) v`: there is no term, for patches and prefix tokens
    alike, on any grid. It acts inside attention rather than on tokens, so that it can stand
    wherever an attention encoding can, in models with windows and stages too, and so that its
    running time has the same interception in it.

    The positions that a model has of its own stay in force; with `absolute="hide"` its table goes,
    and the patched model knows of position what its other layers know.

    Parameters: none.

    Args:
        layout: the tokens.
        num_heads: the heads of the attention.
        head_dim: not needed.
        device: has no effect.
        dtype: has no effect.

    Initial effect: none, always.

    Reference: Vaswani et al. 2017, arXiv 1706.03762, equation 1.

    >>> NoEncoding(TokenLayout(2, 3), num_heads=2).changes_at_start()
    False
    """

    kind = "content"
    paper = ("Vaswani et al. 2017", "https://arxiv.org/abs/1706.03762")
    is_static = True
    is_sized_by_prefix = False

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)

    def changes_at_start(self) -> bool:
        """Never."""
        return False

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """No term."""
        return ()
