"""Attention one tile of scores after the other, with gradients: fast where fused kernels end.

A tile is small enough for a processor's cache. Biases are read per tile, and read again in
backward, as flash attention recomputes its scores: no `N x N` tensor per image and head exists
(but for attention weights that are small, which backward gets from forward).
"""

from __future__ import annotations

import itertools
from typing import Any, NoReturn

import torch
from torch import Tensor

from posenc._torch import constant_under_dynamo, is_exporting, is_function_transformed
from posenc.attention.backends import tiled_op
from posenc.attention.backends.tile_loop import Plan, run_backward, run_forward
from posenc.attention.backends.tile_terms import TileValues, tile_biases
from posenc.attention.call import AttentionCall
from posenc.memo import is_transformed

CPU_SCORES = 2**19  # of one tile and thread: 2 MiB in float32, measured best of 2**17 to 2**20
DEVICE_SCORES = 2**26
# Up to so many tokens per column of a head, backward gets the attention weights from forward, which
# was measured to save a sixth of the time. A ViT block keeps 16 numbers per token and column for
# backward anyway: the weights add a fifth to that at 197 tokens, and at most two thirds.
KEPT_TOKENS = 10


def rejects(call: AttentionCall) -> str | None:
    """Computes any terms, in eager mode and without dropout."""
    if not call.terms:
        return "there is no term to read per tile"
    if call.dropout_p > 0:
        return "backward computes the attention again, but could not drop the same weights"
    if torch.compiler.is_compiling():
        return _rejects_graph()
    if is_transformed(call.query, call.key, call.value):
        return (
            "a loop over tiles is for eager mode and torch.compile, not for export, function "
            "transforms, dispatch modes or tensor subclasses"
        )
    return None


def _rejects_graph() -> str | None:
    """In `torch.compile` an operator of ours does the work, where no transform is inside it."""
    if is_exporting():
        return "an exported program would need posenc's own operator wherever it is loaded"
    if is_function_transformed():
        return "a function transform cannot see through posenc's own operator"
    return None


def compute(call: AttentionCall) -> Tensor:
    """`[B, heads, N, Dv]`."""
    parts = tile_biases(call)
    tensors = [tensor for _, own in parts for tensor in own]
    tensors += [term.table.to(call.dtype) for term in call.value_terms]
    biases = [(part, len(own)) for part, own in parts]
    values = [TileValues(term.index) for term in call.value_terms]
    query, key, value = (x.to(call.dtype) for x in (call.query, call.key, call.value))
    plan = Plan(
        call.scale, call.may_mask_rows, call.is_wide, _tile_scores(query.device), biases, values
    )
    out = _apply(plan, query, key, value, tensors)
    # Tokens came before heads, as after SDPA: the model's transpose and reshape is then free.
    return out.transpose(1, 2).to(call.query.dtype)


def _apply(plan: Plan, query: Tensor, key: Tensor, value: Tensor, tensors: list[Tensor]) -> Tensor:
    keeps = keeps_attention(*query.shape[2:])
    if torch.compiler.is_compiling():
        return tiled_op.compute(plan, query, key, value, tensors, keeps)
    out: Tensor = _TiledAttention.apply(plan, keeps, query, key, value, *tensors)
    return out


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plan: Plan,
        keeps: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        trains = any(ctx.needs_input_grad)
        inputs = (query, key, value, tensors)
        out, all_sums, kept = run_forward(plan, *inputs, trains, trains and keeps)
        ctx.plan, ctx.num_tensors = plan, len(tensors)
        ctx.save_for_backward(query, key, value, out, *tensors, *all_sums, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, out_grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)  # which may be asked for once
        counts = 4, ctx.num_tensors, len(ctx.plan.values)
        inputs, tensors, sums = (tuple(itertools.islice(saved, count)) for count in counts)
        needs = ctx.needs_input_grad[2:]
        with torch.no_grad():
            grads = run_backward(ctx.plan, inputs, tensors, sums, tuple(saved), needs, out_grad)
        if torch.is_grad_enabled():  # somebody will differentiate again
            grads = _Once.apply(tuple(grads), out_grad, *inputs[:3], *tensors)
        return None, None, *grads


class _Once(torch.autograd.Function):
    """Gradients that have no derivative, and say so to who asks for one.

    They hang on what they were computed from. The `once_differentiable` of PyTorch hangs them on
    nothing: `torch.autograd.grad` finds no way there, and leaves a part of the derivative out.
    """

    @staticmethod
    def forward(
        ctx: Any, grads: tuple[Tensor | None, ...], *sources: Tensor
    ) -> tuple[Tensor | None, ...]:
        return grads

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            'backend="tiled" has no second derivative: patch_model(..., backend="reference") and '
            'attend(..., backend="reference") have'
        )


def keeps_attention(tokens: int, head_dim: int) -> bool:
    """Whether backward gets the attention weights from forward."""
    return tokens <= KEPT_TOKENS * head_dim


@constant_under_dynamo
def _tile_scores(device: torch.device) -> int:
    if device.type != "cpu":
        return DEVICE_SCORES
    return int(CPU_SCORES * torch.get_num_threads())
