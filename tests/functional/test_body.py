"""Centers of parts stay in order, and the body of an image is measured from its foreground."""

import body_oracles
import pytest
import torch

from posenc import TokenLayout
from posenc.functional.body import (
    column_functions,
    crop_heights,
    find_body,
    ordered_centers,
    part_memberships,
    start_spacing,
)

GRIDS = [(2, 5), (7, 4), (1, 6), (6, 1), (1, 1), (16, 8)]
CPU = torch.device("cpu")


def random_numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
@pytest.mark.parametrize("parts", [1, 2, 5, 8, 33])
def test_centers_can_neither_cross_nor_leave(parts, scale, dtype):
    for seed in range(20):
        spacing = scale * random_numbers(parts + 1, seed=seed, dtype=dtype)
        centers = ordered_centers(spacing)
        assert centers.shape == (parts,)
        assert (centers.diff() >= 0).all()
        assert (centers >= 0).all()
        assert (centers <= 1 + 4 * torch.finfo(dtype).eps).all()
        if scale == 1:
            assert (centers.diff() > 0).all()
            assert (centers > 0).all()
            assert (centers < 1).all()


@pytest.mark.parametrize("parts", [1, 4, 5])
def test_centers_are_running_sums(parts):
    spacing = random_numbers(parts + 1).requires_grad_()
    centers, expected = ordered_centers(spacing), torch.stack(body_oracles.part_centers(spacing))
    torch.testing.assert_close(centers, expected, atol=1e-14, rtol=0)
    weights = random_numbers(parts, seed=1)
    grads = [torch.autograd.grad(c @ weights, spacing)[0] for c in (centers, expected)]
    torch.testing.assert_close(*grads, atol=1e-14, rtol=0)


def test_starts_in_equal_stripes_or_as_a_figure():
    for parts, expected in {
        1: [0.5],
        4: [1 / 8, 3 / 8, 5 / 8, 7 / 8],
        5: [1 / 16, 3 / 16, 7 / 16, 10 / 16, 14 / 16],
    }.items():
        assert ordered_centers(start_spacing(parts, CPU)).tolist() == pytest.approx(expected)


def test_a_row_is_the_parts_that_are_near():
    heights = crop_heights(TokenLayout(8, 3), CPU, torch.float64)
    spacing, width = start_spacing(8, CPU), torch.tensor([-5.0])
    shares = part_memberships(heights, spacing, width).reshape(8, 3, 8)
    torch.testing.assert_close(shares[:, 1], torch.eye(8, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [*GRIDS, (13, 11), (64, 3)])
@pytest.mark.parametrize("level", [0.0, -3.7])
def test_the_body_is_the_crop_exactly_where_nothing_stands_out(grid, level, dtype):
    layout = TokenLayout(*grid)
    heights = crop_heights(layout, CPU, dtype)
    frame = find_body(layout, torch.full((3, layout.num_grid), level, dtype=dtype))
    assert torch.equal(frame.from_crop(heights), heights.expand(3, -1))


@pytest.mark.parametrize("grid", GRIDS)
def test_heights_in_the_body_equal_the_oracle(grid):
    layout = TokenLayout(*grid)
    logits = (2 * random_numbers(3, layout.num_grid)).requires_grad_()
    got = find_body(layout, logits).from_crop(crop_heights(layout, CPU, torch.float64)) + 0.5
    want = torch.stack(body_oracles.body_heights(list(logits.unbind(-1)), *grid), -1)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    weights = random_numbers(3, layout.num_grid, seed=1)
    grads = [torch.autograd.grad((y * weights).sum(), logits)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", [0, 9, 15])
def test_a_body_of_one_row_is_as_tall_as_that_row(row, dtype):
    layout = TokenLayout(16, 3)
    logits = torch.zeros(2, 16, 3, dtype=dtype)
    logits[:, row] = 1e4
    logits = logits.flatten(1).requires_grad_()
    frame = find_body(layout, logits)
    torch.testing.assert_close(frame.zoom, frame.zoom.new_full((2, 1), 16.0), rtol=1e-6, atol=0)
    middle = frame.middle.new_full((2, 1), (row + 0.5) / 16 - 0.5)
    torch.testing.assert_close(frame.middle, middle, rtol=0, atol=1e-6)
    heights = frame.from_crop(crop_heights(layout, CPU, dtype))
    assert heights.abs().max() <= 16
    (grad,) = torch.autograd.grad(heights.square().sum(), logits)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("height", [1, 2, 16, 64, 256])
@pytest.mark.parametrize("scale", [1.0, 10.0, 1e3, 1e6])
def test_no_image_zooms_by_more_than_the_rows(height, scale):
    layout = TokenLayout(height, 2)
    logits = scale * random_numbers(20, 2 * height)
    zoom = find_body(layout, logits.float()).zoom
    assert (zoom <= height * (1 + 1e-6)).all()
    assert (zoom > 0.5).all()  # the weight half at the top, half at the bottom
    exact = find_body(layout, logits.float().double()).zoom  # no digits are lost where it is large
    torch.testing.assert_close(zoom.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("moved", [-3, 1, 4])
def test_parts_move_with_the_body(moved):
    layout = TokenLayout(16, 5)
    logits = torch.full((16, 5), -30.0, dtype=torch.float64)
    logits[5:11, 1:4] = 0.2 * random_numbers(6, 3)
    heights = crop_heights(layout, CPU, torch.float64)

    def shares(logits):
        rows = find_body(layout, logits.reshape(1, -1)).from_crop(heights)
        return part_memberships(rows, start_spacing(8, CPU), torch.tensor([-2.5]))[0]

    there, here = shares(logits.roll(moved, 0)), shares(logits)
    there, here = (
        one.reshape(16, 5, 8)[4:12] for one in (there.reshape(16, 5, 8).roll(-moved, 0), here)
    )
    torch.testing.assert_close(there, here, atol=1e-9, rtol=0)
    assert (here[1:7, 0].argmax(-1).diff() > 0).all()


def test_a_smaller_body_is_measured_in_its_own_height():
    """Of half the height: its rows are those of a body that fills the crop, twice as coarse."""
    heights = crop_heights(TokenLayout(8, 1), CPU, torch.float64)
    logits = torch.full((1, 8), -60.0, dtype=torch.float64)
    logits[:, 1:5] = 0
    frame = find_body(TokenLayout(8, 1), logits)
    inside = frame.from_crop(heights)[0, 1:5]
    torch.testing.assert_close(inside, crop_heights(TokenLayout(4, 1), CPU, torch.float64))
    torch.testing.assert_close(frame.to_crop(inside)[0], heights[1:5])


@pytest.mark.parametrize("grid", GRIDS)
def test_functions_of_the_column(grid):
    functions = column_functions(TokenLayout(*grid), CPU, torch.float64)
    for patch, row in enumerate(functions):
        u = torch.tensor((patch % grid[1] + 0.5) / grid[1], dtype=torch.float64)
        around = 2 * torch.pi * u
        want = [u - 0.5, (u - 0.5) ** 2 - 1 / 12, around.cos(), around.sin()]
        torch.testing.assert_close(row, torch.stack(want), atol=1e-15, rtol=0)


def test_functions_of_the_column_have_no_mean_and_tell_left_from_right():
    functions = column_functions(TokenLayout(1, 1000), CPU, torch.float64)
    torch.testing.assert_close(functions.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
    assert torch.equal(
        functions.flip(0).mul(torch.tensor([-1, 1, 1, -1])).round(decimals=9),
        functions.round(decimals=9),
    )
