"""Whether a contender computes what it should: no number is printed for one that does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.bench.passes import gradients

# Of the largest value of a tensor. 16-bit inputs are exact in the definition, so that this is
# the rounding of the computation: 8 bits of bfloat16 are 0.004, 11 of float16 0.0005. Gradients of
# parameters can be small differences of large sums (those of `quadratic`: 0.09 in bfloat16).
TOLERANCE = {  # output, gradients
    torch.float32: (1e-4, 1e-3),
    torch.bfloat16: (3e-2, 1e-1),
    torch.float16: (1e-2, 3e-2),
}


def find_error(
    module: nn.Module, definition: nn.Module, inputs: tuple[Tensor, ...], backward: bool
) -> str | None:
    """None, "wrong output" or "wrong gradient", of the module as it is timed.

    The module sees the whole batch; its first and last sample are compared, since the definition
    needs the whole attention matrix in float64. The others get no gradient in this check, so that
    the gradients of parameters are those of the compared samples.
    """
    output_tolerance, gradient_tolerance = TOLERANCE[inputs[0].dtype]
    samples = sorted({0, len(inputs[0]) - 1})
    exact_inputs = tuple(tensor[samples].double() for tensor in inputs)
    if not backward:
        with torch.no_grad():
            out, expected = module.eval()(*inputs), definition.eval()(*exact_inputs)
        return None if _is_near(out[samples], expected, output_tolerance) else "wrong output"
    upstream = torch.zeros(inputs[-1].shape, device=inputs[-1].device, dtype=inputs[-1].dtype)
    upstream[samples] = torch.randn_like(upstream[samples])
    out, found = gradients(module.train(), inputs, upstream)
    expected, exact = gradients(definition.train(), exact_inputs, upstream[samples])
    if not _is_near(out[samples], expected, output_tolerance):
        return "wrong output"
    found[: len(inputs)] = [gradient[samples] for gradient in found[: len(inputs)]]
    pairs = zip(found, exact, strict=True)
    right = all(_is_near(_like(one, other), other, gradient_tolerance) for one, other in pairs)
    return None if right else "wrong gradient"


def _is_near(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    error = (found.double() - expected).abs().max()
    return bool(error <= tolerance * expected.abs().max())  # False for NaN


def _like(gradient: Tensor, expected: Tensor) -> Tensor:
    """Transposed where a peer stores its table transposed."""
    return gradient if gradient.shape == expected.shape else gradient.T
