"""How widely attention heads look."""

from __future__ import annotations

import torch
from torch import Tensor

from posenc.analysis.checks import check_pairs
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


def attention_entropy(attention: Tensor, layout: TokenLayout) -> Tensor:
    """The entropy of what patches attend to, in nats.

    `h = mean_i - sum_j A_ij log A_ij` over queries i that are patches and all keys j, prefix
    tokens included; `0 log 0 = 0`. It is 0 where each patch looks at one token and `log N` where
    all look at all N tokens alike.

    Args:
        attention: weights `[B, heads, N, N]`, such as `captured.attention["blocks.0.attn"]`.
        layout: of the tokens.

    Raises:
        ValueError: a shape that does not fit the layout.
        TypeError: no floating point tensor.

    Returns:
        `[B, heads]`, in at least float32.

    Reference: Zhai et al. 2023, arXiv 2303.06296, section 3 (low entropy and unstable training).

    >>> attention_entropy(torch.full((1, 2, 6, 6), 1 / 6), TokenLayout(2, 3)).exp()
    tensor([[6.0000, 6.0000]])
    """
    check_pairs(attention, layout, "attention_entropy: attention", dims=4)
    rows = attention[..., layout.prefix :, :].to(at_least_float32(attention.dtype))
    return torch.special.entr(rows).sum(dim=-1).mean(dim=-1)
