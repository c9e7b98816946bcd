import math

import oracles
import pytest
import torch
from distance_cases import LAYOUTS, assert_equals_the_oracle, bias_of_distance

from posenc import FIRE2D, TokenLayout, attend


def build(layout, *, heads=2, **options):
    return oracles.randomize(FIRE2D(TokenLayout(*layout), heads, dtype=torch.float64, **options))


def dense(encoding, layout):
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*layout), heads=encoding.num_heads)
    return encoding(q, k, TokenLayout(*layout))[0].dense()


def paper(fire, distance, largest):
    """`f(psi(distance) / psi(max(largest, L)))`, one hidden unit after the other."""
    c, threshold = fire.log_c.exp()[0], fire.log_threshold.exp()[0]
    threshold = threshold if threshold >= largest else torch.tensor(largest, dtype=torch.float64)
    x = (c * distance + 1).log() / (c * threshold + 1).log()
    total = fire.out_bias
    for unit, (weight, bias) in enumerate(zip(fire.hidden_weight, fire.hidden_bias, strict=True)):
        total = total + fire.out_weight[:, unit] * (weight * x + bias).clamp(min=0)
    return total


def diagonal(layout):
    return math.sqrt((layout[0] - 1) ** 2 + (layout[1] - 1) ** 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("threshold", [None, 0.5, 20.0])
def test_equals_the_oracle(layout, threshold):
    fire = build(layout, heads=3, width=7, threshold=threshold)
    assert_equals_the_oracle(fire, layout, lambda d: paper(fire, d, diagonal(layout)))


@pytest.mark.parametrize("used", [(7, 4, 2), (1, 3, 2)])
def test_another_grid_is_read_relative_to_its_own_diagonal(used):
    fire = build((2, 5, 1), threshold=3.0)
    expected = bias_of_distance(used, lambda d: paper(fire, d, diagonal(used)))
    torch.testing.assert_close(dense(fire, used), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("threshold", [2.0, 30.0])
def test_the_last_query_of_one_row_reads_the_causal_formula(threshold):
    """Li et al.: `f(psi(i - j) / psi(max(i, L)))` with i = 6, the number of the last query."""
    fire = build((1, 7, 0), threshold=threshold)
    expected = torch.stack([paper(fire, 6.0 - j, 6.0) for j in range(7)], -1)
    torch.testing.assert_close(dense(fire, (1, 7, 0))[0, :, 6], expected, rtol=0, atol=1e-12)


def test_starts_as_in_the_paper_without_effect_and_with_a_gradient():
    layout = TokenLayout(3, 4, prefix=1)
    fire = FIRE2D(layout, 2, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in fire.named_parameters()} == {
        "log_c": (1,),
        "log_threshold": (1,),
        "hidden_weight": (32,),
        "hidden_bias": (32,),
        "out_weight": (2, 32),
        "out_bias": (2,),
    }
    torch.testing.assert_close(fire.log_c.exp().item(), 0.1)
    torch.testing.assert_close(fire.log_threshold.exp().item(), 5.0)
    assert fire.hidden_weight.unique().numel() == fire.hidden_bias.unique().numel() == 32
    q, k, v, cotangent = oracles.random_qkv(13)
    out = attend(q, k, v, fire(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert (fire.out_bias.grad != 0).all()
    assert (fire.out_weight.grad != 0).any()


def test_the_threshold_learns_from_its_start():
    fire = FIRE2D(TokenLayout(4, 5), 2, dtype=torch.float64)
    torch.nn.init.ones_(fire.out_weight)
    dense(fire, (4, 5, 0)).sum().backward()
    assert fire.log_threshold.grad.abs() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, r"FIRE2D: width must be a positive int, got 0"),
        ({"c": 0.0}, r"FIRE2D: c must be positive, got 0.0"),
        ({"threshold": -1}, r"FIRE2D: threshold must be positive, got -1"),
        ({"threshold": "far"}, r"FIRE2D: threshold must be a finite number, got 'far'"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        FIRE2D(TokenLayout(2, 3), 2, **options)
