import golden_cases
import oracles
import pytest
import torch
from layouts import LAYOUTS

from posenc import TokenLayout
from posenc.functional.sincos import sincos_table


def close(actual, golden, expected):
    torch.testing.assert_close(actual, expected, **golden.close)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("sincos1d_positional_encodings_L9c8", TokenLayout(3, 3)),
        ("sincos1d_positional_encodings_L9c8", TokenLayout(9, 1)),
        ("sincos1d_positional_encodings_L17c12", TokenLayout(1, 17)),
    ],
)
def test_vaswani_counts_tokens_row_by_row(name, layout):
    golden = golden_cases.case(name)
    dim = golden.hyperparameters["channels"]
    close(sincos_table(layout, dim, "vaswani", dtype=torch.float64), golden, golden["pe"])


def test_moco_v3_is_misaligned_on_rectangles_and_we_are_not():
    """Its table runs down the columns; tokens run along the rows."""
    golden = golden_cases.case("sincos2d_mocov3_h3w5_c16")
    ours = sincos_table(TokenLayout(3, 5, prefix=1), 16, "mae", dtype=torch.float64)
    theirs = golden["pe"]
    assert (ours - theirs).abs().max() > 0.5
    by_column = theirs[1:].reshape(5, 3, 16).transpose(0, 1).reshape(15, 16)
    close(ours[1:], golden, by_column)


@pytest.mark.parametrize("convention", ["mae", "timm", "vaswani"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dim", "temperature"), [(8, 10000.0), (12, 100.0)])
def test_equals_the_formula(layout, convention, dim, temperature):
    table = sincos_table(TokenLayout(*layout), dim, convention, temperature, dtype=torch.float64)
    expected = oracles.sincos(*layout, dim, convention, temperature)
    torch.testing.assert_close(table, expected, atol=1e-12, rtol=0)


def test_vaswani_of_odd_width_drops_the_last_cosine():
    table = sincos_table(TokenLayout(2, 5), 7, "vaswani", dtype=torch.float64)
    expected = oracles.sincos(2, 5, 0, 8, "vaswani")[:, :7]
    torch.testing.assert_close(table, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("convention", ["mae", "timm", "vaswani"])
def test_prefix_rows_are_zero_and_shift_nothing(convention):
    with_prefix = sincos_table(TokenLayout(2, 5, prefix=3), 8, convention)
    assert torch.equal(with_prefix[:3], torch.zeros(3, 8))
    assert torch.equal(with_prefix[3:], sincos_table(TokenLayout(2, 5), 8, convention))


@pytest.mark.parametrize(
    ("convention", "row_blocks", "column_blocks"),
    [("mae", [2, 3], [0, 1]), ("timm", [0, 2], [1, 3])],
)
def test_each_axis_has_channels_of_its_own(convention, row_blocks, column_blocks):
    table = sincos_table(TokenLayout(3, 5), 16, convention).reshape(3, 5, 4, 4)
    rows, columns = table[..., row_blocks, :], table[..., column_blocks, :]
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    assert torch.equal(columns, columns[:1].expand_as(columns))
    assert not torch.equal(rows, rows[:1].expand_as(rows))
    assert not torch.equal(columns, columns[:, :1].expand_as(columns))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtype_is_a_rounding_of_float64(dtype):
    layout = TokenLayout(30, 20, prefix=1)
    table = sincos_table(layout, 8, "mae", dtype=dtype)
    exact = sincos_table(layout, 8, "mae", dtype=torch.float64)
    assert table.dtype == dtype
    assert torch.equal(table, exact.to(dtype))


@pytest.mark.parametrize("convention", ["mae", "timm"])
@pytest.mark.parametrize("dim", [6, 9])
def test_refuses_a_width_that_two_axes_cannot_share(convention, dim):
    with pytest.raises(ValueError, match=rf"4.*{convention}.*{dim}"):
        sincos_table(TokenLayout(2, 3), dim, convention)


def test_refuses_an_unknown_convention():
    with pytest.raises(ValueError, match=r"convention.*mae.*timm.*vaswani.*'dino'"):
        sincos_table(TokenLayout(2, 3), 8, "dino")
