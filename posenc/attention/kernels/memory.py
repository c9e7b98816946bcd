"""Memory that kernels write; nothing else here makes a tensor without writing it at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posenc.attention.kernels.operands import Operands


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """On the device of `like`, and in its dtype if not another one."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


def empty_forward(operands: Operands) -> tuple[Tensor, Tensor, Tensor]:
    """For out, lse and sums. Tokens come before heads, as after SDPA."""
    query, value = operands.query, operands.value
    batch, heads, queries, _ = query.shape
    out = empty(query, batch, queries, heads, value.shape[-1]).transpose(1, 2)
    lse = empty(query, batch, heads, queries, dtype=torch.float32)
    return out, lse, empty(lse, batch, heads, operands.num_sums, queries)


def empty_gradients(operands: Operands, needs: Sequence[bool]) -> list[Tensor]:
    """For the gradients of the first operands, without entries where one is not needed."""
    return [
        empty(operands.query, 0) if operand is None or not need else empty(operand, *operand.shape)
        for operand, need in zip(operands.differentiable, needs, strict=True)
    ]
