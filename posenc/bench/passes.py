"""The two things that are timed: inference, and a training step of one attention call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def inference(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Forward in eval, without gradients."""
    module.eval()

    def run() -> Tensor:
        with torch.no_grad():
            return module(*inputs)

    return run


def training(module: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    """Forward and backward, to the inputs and to the parameters."""
    module.train()
    # A dense gradient, as in a model: that of a sum is one number, expanded.
    upstream = torch.ones_like(inputs[-1])

    def run() -> list[Tensor]:
        return gradients(module, inputs, upstream)[1]

    return run


def gradients(
    module: nn.Module, inputs: tuple[Tensor, ...], upstream: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of inputs and parameters for this gradient of the output."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = module(*leaves)
    wanted = [*leaves, *module.parameters()]
    found = torch.autograd.grad(
        out, wanted, upstream.to(out.dtype), allow_unused=True, materialize_grads=True
    )
    return out.detach(), list(found)
