import layouts
import oracle_checks
import oracles
import pytest
import torch
from timm.layers import RelPosBias, resize_rel_pos_bias_table

from posenc import BEiT, TokenLayout

# Here the ratio q is from 1.01 to 1.5, where timm and the scripts of BEiT look for it.
GRIDS = [((4, 5), (5, 8)), ((5, 4), (8, 5)), ((5, 2), (6, 2))]
SMALLER = [((7, 6), (3, 9)), ((1, 4), (5, 6)), ((4, 6), (2, 1))]


def build(layout, **options):
    return oracles.randomize(BEiT(TokenLayout(*layout), 2, dtype=torch.float64, **options))


def bias_of(encoding, layout):
    x = torch.zeros(1, encoding.num_heads, layout.num_tokens, 4, dtype=torch.float64)
    return encoding(x, x, layout)[0].dense()[0]


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle(layout):
    beit = build(layout)

    def expected(q, k, v):
        bias = oracles.swin_bias(beit.table, *layout, "separate")
        return oracles.attention(q, k, v, bias)[0]

    oracle_checks.equals(beit, layout, expected)


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 6)])
@pytest.mark.parametrize("prefix", [0, 1])
def test_equals_timm(grid, prefix):
    layout = TokenLayout(*grid, prefix)
    beit, theirs = build((*grid, prefix)), RelPosBias(grid, 2, prefix_tokens=prefix).double()
    with torch.no_grad():
        theirs.relative_position_bias_table.copy_(beit.table.T)
    torch.testing.assert_close(bias_of(beit, layout), theirs.get_bias()[0])


@pytest.mark.filterwarnings("ignore::UserWarning:timm")
@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_a_larger_grid_is_resampled_as_in_timm(old, new):
    beit, layout = build((*old, 1)), TokenLayout(*new, prefix=1)
    entries = (2 * new[0] - 1) * (2 * new[1] - 1) + 3
    stored = beit.table.detach().clone()
    table = resize_rel_pos_bias_table(stored.T, new, (entries, 2), old).T
    expected = oracles.swin_bias(table, *new, 1, "separate")[0]
    # timm stops the search for q at 1e-6 and interpolates in float32.
    torch.testing.assert_close(bias_of(beit, layout), expected, atol=2e-4, rtol=0)
    assert torch.equal(beit.table, stored)


@pytest.mark.parametrize(("old", "new"), [*GRIDS, *SMALLER])
def test_cubic_is_a_spline_through_the_old_offsets(old, new):
    """Not a knot at both ends, as of FITPACK, which the scripts of BEiT call."""
    interpolate = pytest.importorskip("scipy.interpolate")
    beit = build((*old, 2), interpolation="cubic")
    image = beit.table[:, :-3].detach().unflatten(1, (2 * old[0] - 1, 2 * old[1] - 1))
    for axis in (0, 1):
        image = image.movedim(axis + 1, -1)
        if old[axis] == 1:
            image = image.expand(*image.shape[:-1], 2 * new[axis] - 1)
        elif old[axis] == 2:
            image = torch.stack(oracles.resample_line([*image.unbind(-1)], new[axis]), -1)
        else:
            half = oracles.geometric_positions(old[axis], new[axis])
            places = [-x for x in half[:0:-1]] + half
            if new[axis] > 2:
                spline = interpolate.CubicSpline(places, image.numpy(), axis=-1)
                image = torch.from_numpy(spline(range(1 - new[axis], new[axis])))
            else:
                image = image[..., old[axis] - new[axis] : old[axis] + new[axis] - 1]
        image = image.movedim(-1, axis + 1)
    table = torch.cat([image.flatten(1), beit.table[:, -3:]], 1)
    expected = oracles.swin_bias(table, *new, 2, "separate")[0]
    torch.testing.assert_close(bias_of(beit, TokenLayout(*new, 2)), expected, atol=1e-9, rtol=0)


def test_the_three_entries_of_prefix_tokens():
    beit = BEiT(TokenLayout(1, 2, prefix=2), 1)
    with torch.no_grad():
        beit.table[:, 3:] = torch.tensor([1.0, 2.0, 3.0])
    expected = [[3, 3, 1, 1], [3, 3, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]]
    assert bias_of(beit, TokenLayout(1, 2, 2))[0].tolist() == expected


@pytest.mark.parametrize("interpolation", ["bicubic", None])
def test_refuses_an_unknown_interpolation(interpolation):
    with pytest.raises(ValueError, match=rf"interpolation.*linear.*cubic.*{interpolation}"):
        BEiT(TokenLayout(2, 3), 2, interpolation=interpolation)


def test_refuses_prefix_tokens_that_it_has_no_entries_for():
    with pytest.raises(ValueError, match="BEiT was built for 0 prefix tokens"):
        bias_of(build((2, 3, 0)), TokenLayout(2, 3, 1))
