"""Debiased CKA, against the sum over choices of four samples that defines unbiased HSIC."""

import itertools

import pytest
import torch

from posenc.analysis import linear_cka


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def hsic(x, y):
    """The U-statistic: the mean over ordered choices of four different samples."""
    k, m = (x @ x.T).tolist(), (y @ y.T).tolist()
    values = [
        k[i][j] * (m[i][j] + m[q][r] - 2 * m[i][q])
        for i, j, q, r in itertools.permutations(range(len(x)), 4)
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize(("n", "widths"), [(4, (2, 3)), (7, (5, 1)), (8, (12, 4))])
def test_as_in_the_sum_over_four_samples(n, widths):
    x, y = (random(n, width, seed=width) + 3 for width in widths)
    y = y + x[:, :1]
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)) ** 0.5
    assert linear_cka(x, y).item() == pytest.approx(expected, rel=1e-9)


def test_rotation_shift_and_scale_do_not_matter():
    x, y = random(20, 5), random(20, 4, seed=1)
    turn = torch.linalg.qr(random(5, 5, seed=2)).Q
    torch.testing.assert_close(linear_cka(3 * x @ turn + 7, y), linear_cka(x, y))
    torch.testing.assert_close(linear_cka(x, x), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(linear_cka(y, x), linear_cka(x, y))


def test_independent_ones_are_at_zero_in_the_mean_where_plain_cka_is_not():
    pairs = [(random(10, 40, seed=2 * s), random(10, 40, seed=2 * s + 1)) for s in range(200)]
    values = torch.stack([linear_cka(*pair) for pair in pairs])
    assert abs(values.mean()) < 4 * values.std() / len(values) ** 0.5
    x, y = (each - each.mean(0) for each in pairs[0])
    plain = (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.7


def test_half_precision_is_computed_in_float32():
    x = random(8, 3).half()
    assert linear_cka(x, x).dtype == torch.float32


def test_errors():
    x = random(6, 3)
    for first, second, error, message in [
        (x, x[:5], ValueError, "the same samples, 4 at least, got 6 and 5"),
        (x[:3], x[:3], ValueError, "4 at least, got 3 and 3"),
        (x[None], x, ValueError, r"x must be \[n, C\], got \[1, 6, 3\]"),
        (x, x / 0, ValueError, "y has values that are not finite"),
        (x, x.int(), TypeError, "y must be a floating point tensor, got torch.int32"),
        (None, x, TypeError, "x must be a floating point tensor, got NoneType"),
    ]:
        with pytest.raises(error, match=message):
            linear_cka(first, second)
