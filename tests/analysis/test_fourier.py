"""The log amplitude of frequencies, against the public code on squares and sums on rectangles."""

import cmath
import math

import golden_cases
import pytest
import torch

from posenc import TokenLayout
from posenc.analysis import fourier_log_amplitude


@pytest.mark.parametrize("name", golden_cases.names("fourier_logamp_"))
def test_golden(name):
    golden = golden_cases.case(name)
    layout = TokenLayout(*golden.hyperparameters["grid_h_w"])
    actual = fourier_log_amplitude(golden["x"], layout)
    close = {"rtol": 0.0, "atol": golden.tolerance["atol"]}
    torch.testing.assert_close(actual, golden["curve"], **close)


def log_amplitude(values, height, width, row, column):
    """One channel, one pair of whole frequencies, from the sum that defines it."""
    total = sum(
        values[y * width + x] * cmath.exp(-2j * math.pi * (row * y / height + column * x / width))
        for y in range(height)
        for x in range(width)
    )
    return math.log(abs(total) + 1e-6)


def diagonal(values, height, width):
    """Along equal frequencies of both axes."""
    short, long = min(height, width), max(height, width)
    result = []
    for step in range(math.ceil(short / 2)):
        place = step * long / short
        below = math.floor(place)
        ends = []
        for other in (below, below + 1):
            row, column = (step, other) if height <= width else (other, step)
            ends.append(log_amplitude(values, height, width, row, column))
        result.append(ends[0] + (place - below) * (ends[1] - ends[0]))
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("grid", [(4, 6), (7, 3), (5, 8), (1, 4), (6, 6)])
def test_as_in_sums(grid, prefix):
    layout = TokenLayout(*grid, prefix=prefix)
    generator = torch.Generator().manual_seed(0)
    shape = (2, layout.num_tokens, 3)
    tokens = torch.randn(shape, generator=generator, dtype=torch.float64) + 1
    curves = [
        diagonal(tokens[image, prefix:, channel].tolist(), *grid)
        for image in range(2)
        for channel in range(3)
    ]
    expected = torch.stack(curves).mean(0)
    actual = fourier_log_amplitude(tokens, layout)
    torch.testing.assert_close(actual, expected - expected[0], rtol=1e-10, atol=1e-10)
    assert actual[0] == 0


def test_half_precision_is_computed_in_float32():
    tokens = torch.rand(1, 16, 2)
    actual = fourier_log_amplitude(tokens.bfloat16(), TokenLayout(4, 4))
    assert actual.dtype == torch.float32


def test_errors():
    layout = TokenLayout(2, 3, prefix=1)
    for wrong, error, message in [
        (torch.rand(1, 6, 2), ValueError, r"must be \[B, 7, C\] for the layout 2x3 \+ 1 prefix"),
        (torch.rand(7, 2), ValueError, r"got \[7, 2\]"),
        (torch.ones(1, 7, 2).int(), TypeError, "floating point tensor, got torch.int32"),
        (None, TypeError, "floating point tensor, got NoneType"),
    ]:
        with pytest.raises(error, match=message):
            fourier_log_amplitude(wrong, layout)
    with pytest.raises(TypeError, match=r"must be a posenc\.TokenLayout"):
        fourier_log_amplitude(torch.rand(1, 6, 2), (2, 3))
