"""Halves that pair up within blocks of channels, against explicit matrices."""

import oracles
import pytest
import torch

from posenc.functional.rotary import rotate
from posenc.terms import Rotation


def expected(x, cos, sin, blocks):
    """One matrix for each block."""
    size = 2 * cos.shape[-1] // blocks
    parts, turned = cos.shape[-1] // blocks, []
    for block in range(blocks):
        pairs = slice(block * parts, (block + 1) * parts)
        channels = x[..., block * size : (block + 1) * size]
        turned.append(oracles.turned(channels, cos[..., pairs], sin[..., pairs], False))
    return torch.cat([*turned, x[..., blocks * size :]], -1)


@pytest.mark.parametrize(
    ("width", "pairs", "blocks"), [(8, 4, 2), (12, 6, 3), (12, 4, 2), (9, 4, 4)]
)
@pytest.mark.parametrize("angles", [(1, 1, 5), (2, 3, 5)])
def test_equals_matrices(width, pairs, blocks, angles):
    x = torch.randn(2, 3, 5, width, dtype=torch.float64)
    angle = torch.randn(*angles, pairs, dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    want = expected(x, cos, sin, blocks)
    torch.testing.assert_close(Rotation(cos, sin, blocks=blocks).apply(x), want)
    packed = torch.stack([x, x], 2)[:, :, 1]  # a view, as a projection gives it
    torch.testing.assert_close(rotate(packed, cos, sin, False, blocks), want)
    torch.testing.assert_close(
        rotate(x.bfloat16(), cos.float(), sin.float(), False, blocks).double(),
        want,
        rtol=0.02,
        atol=0.05,
    )
    leaves = tuple(each.requires_grad_() for each in (x, cos, sin))
    torch.testing.assert_close(rotate(*leaves, False, blocks), want)
    assert torch.autograd.gradcheck(lambda *each: rotate(*each, False, blocks), leaves)


def test_interleaved_pairs_are_the_same_in_any_blocks():
    x, angle = torch.randn(5, 8), torch.randn(5, 4)
    one, two = (rotate(x, angle.cos(), angle.sin(), True, blocks) for blocks in (1, 2))
    assert torch.equal(one, two)
