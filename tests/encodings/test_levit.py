import layouts
import oracle_checks
import oracles
import pytest
import torch
from timm.models.levit import Attention

from posenc import LeViT, TokenLayout


def build(layout):
    return oracles.randomize(LeViT(TokenLayout(*layout), 2, dtype=torch.float64))


def bias_of(encoding, layout):
    x = torch.zeros(1, encoding.num_heads, layout.num_tokens, 4, dtype=torch.float64)
    return encoding(x, x, layout)[0].dense()[0]


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle(layout):
    levit = build(layout)

    def entry(i, j, q, k):
        offset = oracle_checks.key_minus_query(i, j, *layout[1:])
        if offset is None:
            return torch.zeros(1, 2, dtype=torch.float64)
        return levit.table[None, :, abs(offset[0]) * layout[1] + abs(offset[1])]

    oracle_checks.equals(levit, layout, oracle_checks.with_bias(entry, layout))


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (6, 2)])
def test_equals_timm(grid):
    levit = build((*grid, 0))
    theirs = Attention(8, 4, num_heads=2, resolution=grid, use_conv=False).double()
    with torch.no_grad():
        theirs.attention_biases.copy_(levit.table)
    expected = theirs.attention_biases[:, theirs.attention_bias_idxs]
    torch.testing.assert_close(bias_of(levit, TokenLayout(*grid)), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("old", "new"), [((2, 5), (7, 4)), ((7, 4), (2, 5)), ((1, 3), (4, 1)), ((2, 2), (5, 3))]
)
def test_another_grid_is_resampled_as_the_whole_table_of_offsets(old, new):
    levit, (height, width) = build((*old, 1)), old
    whole = torch.stack(
        [
            levit.table[:, abs(row) * width + abs(column)]
            for row in range(1 - height, height)
            for column in range(1 - width, width)
        ],
        -1,
    )
    expected = oracles.swin_bias(oracles.resample_offsets(whole, old, new), *new, 1)[0]
    bias = bias_of(levit, TokenLayout(*new, prefix=1))
    torch.testing.assert_close(bias, expected, atol=1e-6, rtol=0)
    cotangent = torch.randn(bias.shape, generator=torch.Generator().manual_seed(0)).double()
    grads = [torch.autograd.grad(b, levit.table, cotangent)[0] for b in (bias, expected)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=0)
