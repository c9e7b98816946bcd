"""Scales of the scores that are negative or nothing, and masks of the largest negative numbers."""

import pytest
import torch
from kernel_calls import DEVICE, assert_equal_to_reference, qkv, random_terms, set_tiles

from posenc import attend


@pytest.mark.parametrize("scale", [-0.7, 0.0])
@pytest.mark.parametrize("kind", [None, "low_rank"])
def test_scales(kind, scale, monkeypatch):
    """The largest score is looked for before the scale, where no bias is added after it."""
    set_tiles(monkeypatch, 16, 16)
    terms, leaves = random_terms(kind, (5, 4, 2)) if kind else ((), ())
    inputs = qkv(22)
    if scale:
        assert_equal_to_reference(inputs, terms, leaves, scale=scale)
        return
    ours, theirs = (
        attend(*inputs, terms, scale=scale, backend=backend) for backend in ("triton", "reference")
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for tensor in inputs[:2]:
        assert torch.autograd.grad(ours.sum(), tensor, retain_graph=True)[0].abs().max() < 1e-20


@pytest.mark.slow
@pytest.mark.parametrize("scale", [-0.7, 1e-3])
def test_scales_in_16_bits(scale):
    """Factors are divided by the scale, in two halves."""
    terms, leaves = random_terms("low_rank", (5, 4, 1))
    eps = torch.finfo(torch.float16).eps
    inputs = qkv(21, dtype=torch.float16)
    assert_equal_to_reference(inputs, terms, leaves, tolerance=8 * eps, scale=scale)


@pytest.mark.parametrize("kind", ["static", "query"])
def test_a_row_of_the_largest_negative_number(kind):
    """Is uniform, as in plain mathematics: it must not overflow in base 2."""
    terms, _ = random_terms(kind, (3, 4, 1))
    mask = torch.zeros(13, 13, device=DEVICE)
    mask[4] = torch.finfo(torch.float32).min
    mask[5, 3:] = torch.finfo(torch.float32).min
    inputs = [x.detach() for x in qkv(13)]
    out = attend(*inputs, terms, attn_mask=mask, backend="triton")
    torch.testing.assert_close(out[:, :, 4], inputs[2].mean(2))
    expected = attend(*inputs, terms, attn_mask=mask, backend="reference")
    torch.testing.assert_close(out[:, :, 5], expected[:, :, 5])
