"""The convolutional projection of CvT, shared by queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import TokenEncoding, check_kernel_size
from posenc.functional.depthwise import add_depthwise
from posenc.layout import TokenLayout


class ConvProjection(TokenEncoding):
    """Queries, keys and values see the neighbours of each patch: `W (x + depthwise_conv(x))`.

    A depthwise K x K cross-correlation with zero padding K // 2 and stride 1, on the tokens that
    enter attention: after the norm before it, and outside the block's shortcut. What else an
    attention module computes from its tokens, such as a gate, reads the same. Prefix tokens pass
    by. Works on any grid, and no parameter is resized.

    In the paper queries, keys and values have a convolution each, batch norm follows it, and keys
    and values may be strided. Here the three share one, with a shortcut, so that a trained model
    keeps its outputs at the start.

    One for each attention module that `blocks=` of `patch_model` selects, those of Hugging Face
    and of torch too. Attention that sees windows or stages is refused, and a block whose
    attention and MLP share their projection.

    Parameters: `weight` `[embed_dim, 1, K, K]`, `bias` `[embed_dim]`.

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the tokens.
        kernel_size: K, odd.

    Raises:
        ValueError: an even kernel.

    Initial effect: none, because the kernels start at zero.

    Reference: Wu et al. 2021, arXiv 2103.15808, section 3.2, equation 2.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> ConvProjection(layout, embed_dim=8)(torch.ones(1, 7, 8), layout).shape
    torch.Size([1, 7, 8])
    """

    paper = ("Wu et al. 2021", "https://arxiv.org/abs/2103.15808")
    is_sized_by_prefix = False

    placement = "attention_input"

    def __init__(
        self,
        layout: TokenLayout,
        embed_dim: int,
        *,
        kernel_size: int = 3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, embed_dim)
        self.kernel_size = check_kernel_size(kernel_size, "ConvProjection")
        shape = (embed_dim, 1, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(embed_dim, device=device, dtype=dtype))

    def changes_at_start(self) -> bool:
        """Never: the kernels are zero."""
        return False

    def encode(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """Grid tokens plus their convolution, prefix tokens as they are."""
        return add_depthwise(x, self.weight, self.bias, layout)

    def extra_repr(self) -> str:
        """Options, as printed."""
        return f"{self.embed_dim}, kernel_size={self.kernel_size}"
