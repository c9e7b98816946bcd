"""Entropy, the share of prefix tokens and the effective rank of a bias, against loops."""

import math

import pytest
import torch

from posenc import TokenLayout
from posenc.analysis import attention_entropy, effective_rank, prefix_share

LAYOUTS = [TokenLayout(*sides) for sides in ((2, 3, 0), (3, 2, 1), (1, 4, 2), (2, 2, 5))]


def attention(layout, batch=2, heads=3):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, layout.num_tokens, layout.num_tokens)
    return torch.randn(shape, generator=generator, dtype=torch.float64).mul(2).softmax(-1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_entropy_and_prefix_share_as_in_loops(layout):
    weights = attention(layout)
    weights[0, 0, -1] = torch.eye(layout.num_tokens)[0]  # with zeros
    entropy, share = attention_entropy(weights, layout), prefix_share(weights, layout)
    assert share.shape == (2, 3, layout.prefix)
    for image in range(2):
        for head in range(3):
            rows = weights[image, head].tolist()[layout.prefix :]
            sums = [-sum(a * math.log(a) for a in row if a > 0) for row in rows]
            assert entropy[image, head].item() == pytest.approx(sum(sums) / len(rows))
            for token in range(layout.prefix):
                expected = sum(row[token] for row in rows) / len(rows)
                assert share[image, head, token].item() == pytest.approx(expected)


def test_half_precision_is_computed_in_float32():
    layout = TokenLayout(2, 3, prefix=1)
    weights = attention(layout).half()
    for measure in (attention_entropy, prefix_share):
        assert measure(weights, layout).dtype == torch.float32
    assert effective_rank(weights).dtype == torch.float32


def test_the_effective_rank_of_built_biases():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    ones = torch.full((8, 1), 8**-0.5, dtype=torch.float64)
    keys = torch.linalg.qr(torch.cat([ones, basis[:, :3]], dim=1)).Q[:, 1:]  # rows sum to 0
    equal = basis[:, :3] @ keys.T
    assert effective_rank(equal).item() == pytest.approx(3.0)
    uneven = basis[:, :2] @ torch.diag(torch.tensor([3.0, 1.0]).double()) @ keys[:, :2].T
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    per_query = torch.randn(8, 1, generator=generator, dtype=torch.float64)
    both = torch.stack([equal, uneven + 100 * per_query])[None]  # a constant per query
    actual = effective_rank(both)
    torch.testing.assert_close(actual, torch.tensor([[3.0, expected]], dtype=torch.float64))
    assert effective_rank(per_query.expand(8, 8)).item() == 0
    assert effective_rank(torch.zeros(8, 8)).item() == 0
    drift = torch.randn(7, 1, generator=generator).expand(7, 7)  # its mean is rounded
    assert (drift - drift.mean(dim=-1, keepdim=True)).any()
    assert effective_rank(drift).item() == 0


def test_errors():
    layout = TokenLayout(2, 3, prefix=1)
    for measure, name in ((attention_entropy, "attention_entropy"), (prefix_share, "prefix_share")):
        with pytest.raises(ValueError, match=rf"{name}: attention must be \[B, heads, 7, 7\]"):
            measure(torch.rand(1, 1, 6, 6), layout)
        with pytest.raises(TypeError, match=f"{name}: attention must be a floating point"):
            measure(None, layout)
    for wrong, error, message in [
        (torch.rand(3, 4), ValueError, r"must be \[\.\.\., N, N\], got \[3, 4\]"),
        (torch.rand(3), ValueError, r"got \[3\]"),
        (torch.full((2, 2), float("-inf")), ValueError, "not finite"),
        (torch.ones(2, 2).int(), TypeError, "got torch.int32"),
        (None, TypeError, "got NoneType"),
    ]:
        with pytest.raises(error, match=message):
            effective_rank(wrong)
