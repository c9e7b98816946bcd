import math

import oracles
import pytest
import torch
from distance_cases import LAYOUTS, assert_equals_the_oracle, bias_of_distance

from posenc import KERPLE2D, TokenLayout, attend

FORMS = ["log", "power"]


def build(layout, **options):
    return oracles.randomize(KERPLE2D(TokenLayout(*layout), 3, dtype=torch.float64, **options))


def dense(encoding, layout):
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*layout), heads=encoding.num_heads)
    return encoding(q, k, TokenLayout(*layout))[0].dense()


def numbers(kerple):
    """r1 and r2 of every head."""
    if kerple.form == "log":
        return kerple.log_r1.exp(), kerple.log_r2.exp()
    return kerple.log_r1.exp(), 2 / (1 + (-kerple.logit_r2).exp())


def penalty(kerple, distance):
    r1, r2 = numbers(kerple)
    if kerple.form == "log":
        grown = (1 + r2 * distance).log()
    else:  # 0 to any power is 0, and its logarithm has no gradient
        grown = (r2 * math.log(distance)).exp() if distance else torch.zeros(3).double()
    factor = getattr(kerple, "strength", 1.0)
    return -factor * r1 * grown


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strength", [None, 0.3])
def test_equals_the_oracle(layout, form, strength):
    kerple = build(layout, form=form, strength=strength)
    assert_equals_the_oracle(kerple, layout, lambda d: penalty(kerple, d))


@pytest.mark.parametrize("form", FORMS)
def test_another_grid_needs_no_resizing(form):
    kerple = build((2, 5, 1), form=form)
    expected = bias_of_distance((7, 3, 2), lambda d: penalty(kerple, d))
    torch.testing.assert_close(dense(kerple, (7, 3, 2)), expected)


@pytest.mark.parametrize("form", FORMS)
def test_one_row_is_the_one_dimensional_scheme(form):
    """Chi et al.: of |m - n|."""
    kerple = build((1, 6, 0), form=form)
    place = torch.arange(6).double()
    apart = (place[:, None] - place).abs()
    r1, r2 = (x[:, None, None] for x in numbers(kerple))
    expected = -r1 * ((1 + r2 * apart).log() if form == "log" else apart**r2)
    torch.testing.assert_close(dense(kerple, (1, 6, 0))[0], expected)


@pytest.mark.parametrize(("form", "name"), [("log", "log_r2"), ("power", "logit_r2")])
def test_starts_at_the_given_numbers(form, name):
    kerple = KERPLE2D(TokenLayout(2, 3), 4, form=form, r1=0.25, r2=1.75, dtype=torch.float64)
    assert [n for n, _ in kerple.named_parameters()] == ["log_r1", name]
    r1, r2 = numbers(kerple)
    torch.testing.assert_close(r1, torch.full((4,), 0.25).double())
    torch.testing.assert_close(r2, torch.full((4,), 1.75).double())


@pytest.mark.parametrize("form", FORMS)
def test_the_power_stays_below_two_and_all_else_positive(form):
    kerple = KERPLE2D(TokenLayout(2, 3), 3, form=form, dtype=torch.float64)
    for parameter, value in ((p, v) for p in kerple.parameters() for v in (-20.0, 20.0)):
        torch.nn.init.constant_(parameter, value)
        bias = dense(kerple, (2, 3, 0))
        assert (bias <= 0).all()
        r1, r2 = numbers(kerple)
        assert (r1 > 0).all()
        assert (r2 > 0).all()
        assert form == "log" or (r2 <= 2).all()


@pytest.mark.parametrize("form", FORMS)
def test_no_effect_with_strength_0_and_a_gradient(form):
    layout = TokenLayout(2, 5, prefix=1)
    kerple = KERPLE2D(layout, 2, form=form, strength=0, dtype=torch.float64)
    assert kerple.changes_at_start() is False
    q, k, v, cotangent = oracles.random_qkv(11)
    out = attend(q, k, v, kerple(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert (kerple.strength.grad != 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "exp"}, r"KERPLE2D: form must be one of 'log', 'power', got 'exp'"),
        ({"r1": 0}, r"KERPLE2D: r1 must be positive, got 0"),
        ({"r2": -1.0}, r"KERPLE2D: r2 must be positive, got -1.0"),
        ({"r2": 2, "form": "power"}, r"r2 must be positive and less than 2 with form=.power"),
        ({"strength": "x"}, r"KERPLE2D: strength must be a finite number, got 'x'"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        KERPLE2D(TokenLayout(2, 3), 2, **options)
