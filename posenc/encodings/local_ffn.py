"""The depthwise convolution of LocalViT, inside the MLP."""

from __future__ import annotations

import torch

from posenc.encodings._depthwise import DepthwiseEncoding
from posenc.encodings.base import check_blocks
from posenc.layout import TokenLayout


class LocalFFN(DepthwiseEncoding):
    """Looks at the neighbors of each patch inside the MLP: `W_2 (h + depthwise_conv(h))`.

    A depthwise K x K cross-correlation with zero padding K // 2 and stride 1, on the hidden tokens
    `h = act(W_1 x)`: after the activation, and after the gate where the MLP has one; before
    dropout and `W_2`. Prefix tokens pass by. Works on any grid, and no parameter is resized.

    In the paper the convolution has no shortcut and an activation follows it; the shortcut is ours,
    so that a trained model keeps its outputs at the start. In the last block of a model that reads
    its CLS token alone it has no effect, as nothing reads the patches after it.

    Models whose blocks do not see one grid of tokens (windows, stages) are refused, and MLPs that
    posenc does not know.

    Parameters: `weight` `[embed_dim, 1, K, K]`, `bias` `[embed_dim]`.

    Args:
        layout: the tokens; no parameter size depends on it.
        embed_dim: width of the hidden tokens, which `patch_model` reads from the MLP.
        kernel_size: K, odd.
        at: read by `patch_model`, which puts one into the MLP of each of these blocks; None: of
            all.

    Raises:
        ValueError: an even kernel, or a wrong `at`.

    Initial effect: none, because the kernels start at zero.

    Reference: Li et al. 2021, arXiv 2104.05707, section 3.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> LocalFFN(layout, embed_dim=8)(torch.ones(1, 7, 8), layout).shape
    torch.Size([1, 7, 8])
    """

    paper = ("Li et al. 2021", "https://arxiv.org/abs/2104.05707")
    placement = "mlp_hidden"

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
        self.at = None if at is None else check_blocks(at, "at", "LocalFFN")
