"""How much attention goes to tokens without a place."""

from __future__ import annotations

from torch import Tensor

from posenc.analysis.checks import check_pairs
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


def prefix_share(attention: Tensor, layout: TokenLayout) -> Tensor:
    """What patches give to each prefix token.

    `s_p = mean_i A_ip` over queries i that are patches, for each prefix token p (CLS,
    distillation, registers); the sum over p is what does not go to patches.

    Args:
        attention: weights `[B, heads, N, N]`, such as `captured.attention["blocks.0.attn"]`.
        layout: of the tokens.

    Raises:
        ValueError: a shape that does not fit the layout.
        TypeError: no floating point tensor.

    Returns:
        `[B, heads, prefix]`, 0 to 1, in at least float32; without prefix tokens it is empty, and
        its sum 0.

    Reference: Darcet et al. 2024, arXiv 2309.16588, on what registers take.

    >>> import torch
    >>> prefix_share(torch.full((1, 1, 8, 8), 1 / 8), TokenLayout(2, 3, prefix=2))
    tensor([[[0.1250, 0.1250]]])
    """
    check_pairs(attention, layout, "prefix_share: attention", dims=4)
    given = attention[..., layout.prefix :, : layout.prefix]
    return given.to(at_least_float32(attention.dtype)).mean(dim=-2)
