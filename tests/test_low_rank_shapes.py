"""Which shapes of low-rank factors fit a call: images and heads may be shared, tokens not."""

import pytest
import torch

from posenc import LowRankBias, attend

Q = torch.zeros(2, 3, 7, 4)


def factors(left, right):
    return LowRankBias(torch.zeros(*left, 5), torch.zeros(*right, 5))


@pytest.mark.parametrize("left", [(1, 1, 7), (2, 1, 7), (1, 3, 7), (2, 3, 7)])
@pytest.mark.parametrize("right", [(1, 1, 7), (2, 1, 7), (1, 3, 7), (2, 3, 7)])
def test_shared_by_images_and_heads(left, right):
    assert attend(Q, Q, Q, factors(left, right)).shape == Q.shape


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 1, 1), (2, 3, 6), (3, 3, 7), (2, 2, 7)])
def test_others_do_not_fit(shape):
    full = (2, 3, 7)
    rule = r"must have shape \[1 or 2, 1 or 3, 7, 5\]"
    with pytest.raises(ValueError, match=rf"LowRankBias.left {rule}"):
        attend(Q, Q, Q, factors(shape, full))
    with pytest.raises(ValueError, match=rf"LowRankBias.right {rule}"):
        attend(Q, Q, Q, factors(full, shape))


def test_the_ranks_must_be_equal():
    with pytest.raises(ValueError, match=r"LowRankBias.right must have .* 7, 5\].* got \[1, 1"):
        attend(Q, Q, Q, LowRankBias(torch.zeros(1, 1, 7, 5), torch.zeros(1, 1, 7, 4)))
