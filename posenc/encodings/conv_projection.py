"""The convolutional projection of CvT, shared by queries, keys and values."""

from __future__ import annotations

from posenc.encodings._depthwise import DepthwiseEncoding


class ConvProjection(DepthwiseEncoding):
    """Queries, keys and values see the neighbors of each patch: `W (x + depthwise_conv(x))`.

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

    >>> import torch
    >>> from posenc import TokenLayout
    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> ConvProjection(layout, embed_dim=8)(torch.ones(1, 7, 8), layout).shape
    torch.Size([1, 7, 8])
    """

    paper = ("Wu et al. 2021", "https://arxiv.org/abs/2103.15808")
    placement = "attention_input"
