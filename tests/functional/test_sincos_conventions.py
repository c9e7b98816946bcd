"""Every convention against every public golden case, and against loops over tokens."""

import math

import golden_cases
import oracles
import pytest
import torch
from layouts import LAYOUTS

from posenc import TokenLayout
from posenc.functional.sincos import CONVENTIONS, sincos_table

GOLDEN = golden_cases.names("sincos")
OPTIONS = {
    "moco_v3": [{}],
    "detr": [{}, {"normalize": True}],
    "positional_encodings": [{}],
    "mae_1d": [{}],
    "timm": [
        {"reverse_coord": reverse, "interleave_sin_cos": interleave}
        for reverse in (False, True)
        for interleave in (False, True)
    ],
}
CASES = [(name, options) for name, several in OPTIONS.items() for options in several]


def ours(grid, golden, convention, prefix=0, **options):
    dim = golden.hyperparameters.get("channels", 16)
    return sincos_table(TokenLayout(*grid, prefix), dim, convention, dtype=torch.float64, **options)


def pairs_of(golden, name):
    """(our table, the published one) of each table in a golden case; rows in our order."""
    given, theirs = golden.hyperparameters, golden["pe"]
    if name.startswith("sincos1d"):
        convention = "mae_1d" if "mae" in name else "vaswani"
        yield ours((1, given["length"]), golden, convention), theirs
    elif name.startswith("sincos2d_mae_grid"):
        yield ours(given["grid_h_w"], golden, "mae"), theirs
    elif name.startswith("sincos2d_mae"):
        yield ours((given["grid"], given["grid"]), golden, "mae", prefix=1), theirs
    elif name.startswith("sincos2d_timm"):
        flags = {flag: given[flag] for flag in ("reverse_coord", "interleave_sin_cos")}
        (height, width), dim = given["grid_h_w"], given["channels"]
        if given["reverse_coord"]:  # lists the tokens column by column
            theirs = theirs.reshape(width, height, dim).transpose(0, 1).reshape(-1, dim)
        yield ours((height, width), golden, "timm", **flags), theirs
    elif name.startswith("sincos2d_mocov3"):  # "height" counts columns there
        yield ours(given["grid_h_w"][::-1], golden, "moco_v3", prefix=1), theirs
    elif name.startswith("sincos2d_detr"):
        for table, padded in zip(theirs, golden["mask"], strict=True):
            valid = padded.logical_not()
            grid = int(valid[:, 0].sum()), int(valid[0].sum())
            assert int(valid.sum()) == grid[0] * grid[1]
            mine = ours(grid, golden, "detr", normalize=given["normalize"])
            yield mine, table[:, : grid[0], : grid[1]].flatten(1).T
    elif name.startswith("sincos2d_positional_encodings"):
        yield ours(given["x_y"], golden, "positional_encodings"), theirs.flatten(0, 1)


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_published_table(name):
    golden = golden_cases.case(name)
    compared = 0
    for mine, theirs in pairs_of(golden, name):
        torch.testing.assert_close(mine, theirs, **golden.close)
        compared += 1
    assert compared == (2 if "detr" in name else 1)


def waves(place, count, temperature, alternate):
    angles = [place / temperature ** (i / count) for i in range(count)]
    if alternate:
        return [wave for a in angles for wave in (math.sin(a), math.cos(a))]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def row_of(row, column, layout, dim, convention, temperature, options):
    """The vector of one patch, by the text of its convention."""
    height, width, _ = layout
    if convention == "mae_1d":
        return waves(row * width + column, dim // 2, temperature, alternate=False)
    count = -(-dim // 4)
    if convention == "detr":
        row, column = row + 1, column + 1
        if options.get("normalize"):
            row = row / (height + 1e-6) * 2 * math.pi
            column = column / (width + 1e-6) * 2 * math.pi
    if options.get("reverse_coord"):
        row, column = column, row
    alternate = convention in ("detr", "positional_encodings")
    first = waves(row, count, temperature, alternate)
    second = waves(column, count, temperature, alternate)
    if convention == "timm" and not options["interleave_sin_cos"]:
        return first[:count] + second[:count] + first[count:] + second[count:]
    return (first + second)[:dim]


def expected(layout, dim, convention, temperature, options):
    table = [[0.0] * dim for _ in range(layout[2])]
    for token in range(layout[2], oracles.num_tokens(*layout)):
        row, column = oracles.position(token, layout[1], layout[2])
        table.append(row_of(row, column, layout, dim, convention, temperature, options))
    return torch.tensor(table, dtype=torch.float64)


@pytest.mark.parametrize(("convention", "options"), CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dim", "temperature"), [(8, 10000.0), (12, 100.0)])
def test_equals_the_formula(layout, convention, options, dim, temperature):
    table = sincos_table(
        TokenLayout(*layout), dim, convention, temperature, dtype=torch.float64, **options
    )
    oracle = expected(layout, dim, convention, temperature, options)
    torch.testing.assert_close(table, oracle, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dim", [3, 6, 9])
def test_positional_encodings_of_any_width_drops_the_last_channels(dim):
    table = sincos_table(TokenLayout(3, 5, 2), dim, "positional_encodings", dtype=torch.float64)
    oracle = expected((3, 5, 2), dim, "positional_encodings", 10000.0, {})
    torch.testing.assert_close(table, oracle, atol=1e-12, rtol=0)


def test_every_convention_is_another():
    tables = [sincos_table(TokenLayout(3, 5), 16, name) for name in CONVENTIONS]
    for index, table in enumerate(tables):
        assert not any(torch.equal(table, other) for other in tables[:index])


def test_moco_v3_gives_each_token_of_a_rectangle_its_own_row_and_column():
    table = sincos_table(TokenLayout(3, 5), 16, "moco_v3").reshape(3, 5, 16)
    assert torch.equal(table[..., :8], table[:, :1, :8].expand(3, 5, 8))
    assert torch.equal(table[..., 8:], table[:1, :, 8:].expand(3, 5, 8))
    assert len({tuple(row.tolist()) for row in table.flatten(0, 1)}) == 15


@pytest.mark.parametrize(
    ("convention", "dim", "multiple"),
    [("moco_v3", 6, 4), ("detr", 10, 4), ("mae_1d", 5, 2)],
)
def test_refuses_a_width_that_does_not_fit(convention, dim, multiple):
    with pytest.raises(ValueError, match=rf"multiple of {multiple} for .*'{convention}'.*{dim}"):
        sincos_table(TokenLayout(2, 3), dim, convention)


@pytest.mark.parametrize(
    ("flag", "only"),
    [("reverse_coord", "timm"), ("interleave_sin_cos", "timm"), ("normalize", "detr")],
)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_flag_of_another_convention_is_refused(flag, only, convention):
    if convention == only:
        assert sincos_table(TokenLayout(2, 3), 8, convention, **{flag: True}).shape == (6, 8)
        return
    with pytest.raises(ValueError, match=rf"{flag}=True .*'{only}', got '{convention}'; leave"):
        sincos_table(TokenLayout(2, 3), 8, convention, **{flag: True})
