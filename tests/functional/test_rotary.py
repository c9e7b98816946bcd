"""Turning pairs of channels, against explicit matrices; both ways of each layout of pairs."""

import oracles
import pytest
import torch

from posenc.functional.rotary import rotate


def make(width, pairs, shape=(2, 3, 5), angles=(1, 3, 5)):
    x = torch.randn(*shape, width, dtype=torch.float64)
    angle = torch.randn(*angles, pairs, dtype=torch.float64)
    return x, angle.cos(), angle.sin()


@pytest.mark.parametrize("interleaved", [True, False], ids=["pairs", "halves"])
@pytest.mark.parametrize(("width", "pairs"), [(8, 4), (8, 3), (7, 3), (6, 1)])
@pytest.mark.parametrize("angles", [(1, 1, 5), (1, 3, 5), (2, 3, 5)])
def test_equals_matrices(interleaved, width, pairs, angles):
    x, cos, sin = make(width, pairs, angles=angles)
    expected = (oracles.rotation_matrices(cos, sin, width, interleaved) @ x[..., None])[..., 0]
    without_graph = rotate(x, cos, sin, interleaved)
    with_graph = rotate(x.requires_grad_(), cos, sin, interleaved)
    torch.testing.assert_close(without_graph, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(with_graph, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("interleaved", [True, False], ids=["pairs", "halves"])
@pytest.mark.parametrize("form", ["contiguous", "packed", "odd stride", "odd offset"])
def test_gradients_in_every_memory_layout(interleaved, form):
    """Memory that cannot be viewed as complex numbers takes the real form."""
    x, cos, sin = make(6, 2)
    leaves = x.requires_grad_(), cos.requires_grad_(), sin.requires_grad_()

    def laid_out(x):
        if form == "packed":  # as a packed projection of query, key and value gives it
            return torch.stack([x, x], 2).transpose(1, 3).transpose(1, 3)[:, :, 0]
        if form == "odd stride":
            return torch.cat([x, x[..., :1]], -1)[..., :6]
        if form == "odd offset":
            return torch.cat([x[..., :1], x, x[..., :1]], -1)[..., 1:7]
        return x

    def function(x, cos, sin):
        return rotate(laid_out(x), cos, sin, interleaved)

    expected = (oracles.rotation_matrices(cos, sin, 6, interleaved) @ x[..., None])[..., 0]
    torch.testing.assert_close(function(*leaves), expected, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("interleaved", [True, False], ids=["pairs", "halves"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_once(interleaved, dtype):
    x, cos, sin = make(8, 4)
    x = x.to(dtype)
    turned = rotate(x, cos.float(), sin.float(), interleaved)
    expected = (oracles.rotation_matrices(cos, sin, 8, interleaved) @ x.double()[..., None])[..., 0]
    assert turned.dtype == dtype
    spacing = torch.finfo(dtype).eps * expected.abs().clamp(min=torch.finfo(dtype).tiny)
    assert ((turned.double() - expected).abs() <= 0.51 * spacing + 1e-6).all()


@pytest.mark.parametrize("interleaved", [True, False], ids=["pairs", "halves"])
def test_function_transforms(interleaved):
    x, cos, sin = make(6, 3)
    mapped = torch.func.vmap(lambda one: rotate(one, cos[0], sin[0], interleaved))(x)
    torch.testing.assert_close(mapped, rotate(x, cos, sin, interleaved))
