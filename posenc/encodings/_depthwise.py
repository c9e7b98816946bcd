"""What encodings share that are a depthwise convolution of the patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.encodings.base import TokenEncoding, check_kernel_size
from posenc.functional.depthwise import add_depthwise
from posenc.layout import TokenLayout


class DepthwiseEncoding(TokenEncoding):
    """`x + depthwise_conv(x)` on the grid; prefix tokens pass by.

    Parameters: `weight` `[embed_dim, 1, K, K]`, `bias` `[embed_dim]`, both zero at the start.
    """

    is_sized_by_prefix = False

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
        self.kernel_size = check_kernel_size(kernel_size, type(self).__name__)
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
