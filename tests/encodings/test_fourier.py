import math

import oracles
import pytest
import torch
from layouts import LAYOUTS

from posenc import FourierFeatures, TokenLayout


def build(layout, dim=6, **options):
    encoding = FourierFeatures(TokenLayout(*layout), dim, dtype=torch.float64, **options)
    return oracles.randomize(encoding)


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def vector(fourier, y, x):
    """The paper's algorithm 1 for one position of one group."""
    count = len(fourier.frequencies)
    angles = [weight[0] * y + weight[1] * x for weight in fourier.frequencies]
    waves = [a.cos() for a in angles] + [a.sin() for a in angles]
    total = fourier.out_bias
    for unit, bias in enumerate(fourier.hidden_bias):
        for wave, weight in zip(waves, fourier.hidden_weight[unit], strict=True):
            bias = bias + weight * wave / math.sqrt(2 * count)
        total = total + fourier.out_weight[:, unit] * gelu(bias)
    return total


def expected(fourier, x, layout):
    height, width, prefix = layout
    tokens = [x[:, token] for token in range(prefix)]
    for token in range(prefix, oracles.num_tokens(*layout)):
        row, column = oracles.position(token, width, prefix)
        position = (row + 0.5) / height, (column + 0.5) / width
        tokens.append(x[:, token] + vector(fourier, *position))
    return torch.stack(tokens, 1)


def random_tokens(layout, dim=6):
    x, _, _, cotangent = oracles.random_qkv(oracles.num_tokens(*layout), heads=1, head_dim=dim)
    return x[:, 0].detach().requires_grad_(), cotangent[:, 0]


def assert_equals_the_oracle(fourier, layout):
    x, cotangent = random_tokens(layout)
    leaves = [x, *fourier.parameters()]
    got, want = fourier(x, TokenLayout(*layout)), expected(fourier, x, layout)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    grads = (torch.autograd.grad(out, leaves, cotangent) for out in (got, want))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"gamma": 1.0}])
def test_equals_the_oracle(layout, options):
    fourier = build(layout, features=6, hidden=3, **options)
    assert_equals_the_oracle(fourier, layout)


@pytest.mark.parametrize("used", [(5, 2, 0), (3, 7, 2)])
def test_another_grid_is_read_at_its_own_places(used):
    assert_equals_the_oracle(build((2, 5, 1), features=4, hidden=3), used)


def test_is_one_function_of_the_image_on_all_grids():
    """The middle row of three and the only row of one have the same center."""
    fourier = build((1, 4, 0))
    one, three = (
        fourier(torch.zeros(1, height * 4, 6, dtype=torch.float64), TokenLayout(height, 4))[0]
        for height in (1, 3)
    )
    torch.testing.assert_close(three[4:8], one, atol=1e-12, rtol=0)
    assert (three[:4] - one).abs().max() > 1e-3


def test_starts_as_in_the_paper_without_effect_and_with_a_gradient():
    layout = TokenLayout(3, 4, prefix=1)
    fourier = FourierFeatures(layout, 6, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in fourier.named_parameters()} == {
        "frequencies": (64, 2),
        "hidden_weight": (32, 128),
        "hidden_bias": (32,),
        "out_weight": (6, 32),
        "out_bias": (6,),
    }
    assert fourier.hidden_weight.unique().numel() == 32 * 128
    x, cotangent = random_tokens((3, 4, 1))
    out = fourier(x, layout)
    assert torch.equal(out, x)
    out.backward(cotangent)
    torch.testing.assert_close(fourier.out_bias.grad, cotangent[:, 1:].sum((0, 1)))
    assert (fourier.out_weight.grad != 0).all()


@pytest.mark.parametrize("gamma", [0.1, 0.5])
def test_features_start_as_a_gaussian_kernel_of_the_distance(gamma):
    fourier = FourierFeatures(TokenLayout(2, 3), 6, features=40000, hidden=1, gamma=gamma)
    points = torch.tensor([[0.0, 0.0], [gamma, 0.0], [gamma, gamma], [3 * gamma, 0.0]])
    angles = points @ fourier.frequencies.detach().T
    waves = torch.cat([angles.cos(), angles.sin()], 1) / math.sqrt(40000)
    kernel = torch.exp(-(torch.cdist(points, points) ** 2) / (2 * gamma**2))
    torch.testing.assert_close(2 * waves @ waves.T, kernel, atol=0.03, rtol=0)


def test_the_option_gamma_is_printed_and_kept():
    assert repr(FourierFeatures(TokenLayout(2, 3), 6, features=8, hidden=4, gamma=0.25)) == (
        "FourierFeatures(features=8, hidden=4, gamma=0.25)"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 7}, r"FourierFeatures: features must be even, .*, got 7"),
        ({"features": 0}, r"FourierFeatures: features must be a positive int, got 0"),
        ({"hidden": 0}, r"FourierFeatures: hidden must be a positive int, got 0"),
        ({"gamma": 0.0}, r"FourierFeatures: gamma must be positive, got 0.0"),
        ({"gamma": "wide"}, r"FourierFeatures: gamma must be a finite number, got 'wide'"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        FourierFeatures(TokenLayout(2, 3), 6, **options)
