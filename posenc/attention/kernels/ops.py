"""The operator `posenc::fused_attention`, for eager mode and `torch.compile`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posenc.attention.kernels.memory import empty_forward, empty_gradients
from posenc.attention.kernels.operands import NUM_DIFFERENTIABLE, Operands

_OPERANDS = (
    "Tensor query, Tensor key, Tensor value, Tensor? table, Tensor? query_lookup, "
    "Tensor? key_lookup, Tensor? left, Tensor? right, Tensor? keep, Tensor? mask, "
    "Tensor? query_buckets, Tensor? key_buckets, Tensor? value_buckets, Tensor? seed, int height, "
    "int width, int prefix, int num_sums, float scale, bool is_causal, float dropout_p, "
    "bool is_wide, bool is_blocked"
)
_NUM_TENSORS = 14
_FORWARD = f"({_OPERANDS}) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"({_OPERANDS}, Tensor out, Tensor lse, Tensor sums, Tensor out_grad, Tensor? sums_grad, "
    "bool[] needs) -> Tensor[]"
)


@torch.library.custom_op("posenc::fused_attention", mutates_args=(), schema=_FORWARD)
def fused_attention(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, sums) of `Operands`."""
    from posenc.attention.kernels.run import run_forward

    return run_forward(Operands(*args))


@torch.library.custom_op("posenc::fused_attention_backward", mutates_args=(), schema=_BACKWARD)
def fused_attention_backward(*args: Any) -> list[Tensor]:
    """Gradients of the first operands."""
    from posenc.attention.kernels.run import run_backward

    count = len(Operands._fields)
    return run_backward(Operands(*args[:count]), *args[count:])


@fused_attention.register_fake
def _(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return empty_forward(Operands(*args))


@fused_attention_backward.register_fake
def _(*args: Any) -> list[Tensor]:
    return empty_gradients(Operands(*args[: len(Operands._fields)]), args[-1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:_NUM_TENSORS], *output)
    ctx.numbers = inputs[_NUM_TENSORS:]
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, out_grad: Tensor | None, _: Tensor | None, sums_grad: Tensor | None
) -> Sequence[Tensor | None]:
    saved = ctx.saved_tensors  # which may be asked for once
    tensors, (out, lse, sums) = saved[:_NUM_TENSORS], saved[_NUM_TENSORS:]
    if out_grad is None:
        out_grad = torch.zeros_like(out)
    needs = list(ctx.needs_input_grad[:NUM_DIFFERENTIABLE])
    grads = fused_attention_backward(
        *(*tensors, *ctx.numbers, out, lse, sums, out_grad, sums_grad, needs)
    )
    optional = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return *optional, *[None] * (len(Operands._fields) - NUM_DIFFERENTIABLE)


fused_attention.register_autograd(_backward, setup_context=_setup_context)
