import math

import body_oracles
import oracles
import pytest
import torch
from layouts import LAYOUTS

from posenc import Body, TokenLayout
from posenc.functional.body import ordered_centers
from posenc.testing import checks_of

SLOW = ("Compiles as one graph", "Exports with torch.export")
FORMS = pytest.mark.parametrize("adaptive", [False, True])


def build(layout, dim=6, **options):
    body = Body(TokenLayout(*layout), dim, **{"dtype": torch.float64, **options})
    return oracles.randomize(body)


def random_tokens(layout, dim=6):
    x, _, _, cotangent = oracles.random_qkv(oracles.num_tokens(*layout), heads=1, head_dim=dim)
    return x[:, 0].detach().requires_grad_(), cotangent[:, 0]


def assert_equals_the_oracle(body, layout):
    x, cotangent = random_tokens(layout)
    leaves = [x, *body.parameters()]
    got = body(x, TokenLayout(*layout))
    want = body_oracles.body_tokens(dict(body.named_parameters()), x, *layout)
    torch.testing.assert_close(got, want, atol=1e-12, rtol=0)
    grads = (torch.autograd.grad(o, leaves, cotangent, materialize_grads=True) for o in (got, want))
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-10)


@FORMS
@pytest.mark.parametrize("layout", [*LAYOUTS, (1, 1, 1)])
@pytest.mark.parametrize("parts", [8, 3])
def test_equals_the_oracle(layout, parts, adaptive):
    assert_equals_the_oracle(build(layout, parts=parts, adaptive=adaptive), layout)


@FORMS
@pytest.mark.parametrize("used", [(5, 2, 0), (3, 7, 2)])
def test_another_grid_is_read_at_its_own_places(used, adaptive):
    assert_equals_the_oracle(build((2, 5, 1), adaptive=adaptive), used)


@pytest.mark.parametrize("parts", [1, 5, 7])
def test_starts_without_effect_and_with_a_gradient_of_the_vectors(parts):
    layout = TokenLayout(3, 4, prefix=1)
    body = Body(layout, 6, parts=parts, adaptive=True, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in body.named_parameters()} == {
        "part_embedding": (parts, 6),
        "part_spacing": (parts + 1,),
        "log_part_width": (1,),
        "column_embedding": (4, 6),
        "foreground": (6,),
    }
    assert body.log_part_width.item() == pytest.approx(math.log(0.5 / parts))
    x, cotangent = random_tokens((3, 4, 1))
    out = body(x, layout)
    assert torch.equal(out, x)
    out.backward(cotangent)
    for name, parameter in body.named_parameters():
        assert parameter.grad.any() == name.endswith("embedding"), name


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [(16, 8), (7, 4), (1, 6)])
def test_without_a_foreground_adaptive_is_the_same_bit_for_bit(grid, dtype, adaptive):
    """`adaptive=False` asks this test whether it can fail: another foreground is another output."""
    plain = build((*grid, 1), dtype=dtype)
    body = Body(TokenLayout(*grid, 1), 6, adaptive=True, dtype=dtype)
    body.load_state_dict(plain.state_dict(), strict=False)
    x = random_tokens((*grid, 1))[0].detach().to(dtype)
    layout = TokenLayout(*grid, 1)
    expected = plain.memberships(x, layout, dtype).expand(2, -1, -1)
    if not adaptive:
        torch.nn.init.ones_(body.foreground)
    same = torch.equal(body.memberships(x, layout, dtype), expected)
    assert same == (adaptive or grid[0] == 1)
    if adaptive:
        torch.testing.assert_close(body(x, layout), plain(x, layout), atol=1e-6, rtol=0)


def test_prefix_tokens_pass_bit_for_bit():
    body, layout = build((4, 3, 5), adaptive=True), TokenLayout(4, 3, 5)
    x, _ = random_tokens((4, 3, 5))
    out = body(x, layout)
    assert torch.equal(out[:, :5], x[:, :5])
    assert (out[:, 5:] != x[:, 5:]).all()
    with torch.no_grad():
        x[:, :5] += 1.0  # nor are they foreground
    torch.testing.assert_close(body(x, layout)[:, 5:], out[:, 5:], atol=0, rtol=0)


@pytest.mark.parametrize("moved", [-2, 3])
def test_parts_move_with_a_person(moved):
    """A block of other tokens in the crop, moved by rows."""
    layout = TokenLayout(12, 5, prefix=1)
    body = Body(layout, 4, adaptive=True, dtype=torch.float64)
    with torch.no_grad():
        body.foreground[0] = 40.0
    crop = torch.randn(1, 12, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    crop[..., 0] = 0.0
    crop[:, 4:8, 1:4, 0] = 1.0

    def shares(crop):
        x = torch.cat([torch.ones(1, 1, 4).double(), crop.flatten(1, 2)], 1)
        return body.memberships(x, layout, torch.float64).unflatten(1, (12, 5))

    still, there = shares(crop), shares(crop.roll(moved, 1))
    torch.testing.assert_close(
        there.roll(-moved, 1)[:, 3:9], still[:, 3:9], atol=1e-9, rtol=0
    )  # rows that no edge cuts
    assert (shares(crop)[0, 4:8, 0].argmax(-1).diff() > 0).all()
    with torch.no_grad():
        body.foreground.zero_()
    assert torch.equal(shares(crop.roll(moved, 1)), shares(crop))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_foreground_of_one_patch_stays_finite(dtype):
    layout = TokenLayout(16, 8)
    body = build((16, 8, 0), adaptive=True, dtype=torch.float32)
    x = torch.zeros(2, 128, 6, dtype=dtype)
    x[:, 40] = 1e4 * body.foreground.detach().sign().to(dtype)
    x.requires_grad_()
    out = body(x, layout)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    for value in (out, x.grad, *(p.grad for p in body.parameters())):
        assert torch.isfinite(value).all()
    rows = body.body_frame(x, layout).from_crop(torch.tensor([-0.5, 0.5]))
    assert rows.abs().max() <= 16


@FORMS
def test_is_computed_in_float32_under_autocast_and_in_bfloat16(adaptive):
    layout = TokenLayout(16, 8, 1)
    body = build((16, 8, 1), adaptive=adaptive, dtype=torch.float32)
    x = random_tokens((16, 8, 1))[0].detach()
    exact = build((16, 8, 1), adaptive=adaptive)(x, layout)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(body(x.float(), layout).double(), exact, atol=2e-5, rtol=0)
    half = x.bfloat16()
    want = build((16, 8, 1), adaptive=adaptive)(half.double(), layout)
    got = body(half, layout)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=2**-8)  # rounded once


def test_learned_parts_stay_parts():
    """Steps that would throw free centers out of the crop."""
    layout = TokenLayout(8, 4)
    body = build((8, 4, 0), parts=6, adaptive=True, dtype=torch.float32)
    start = ordered_centers(body.part_spacing).detach()
    optimizer = torch.optim.SGD(body.parameters(), lr=3.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        optimizer.zero_grad()
        x = torch.randn(2, 32, 6, generator=generator)
        (body(x, layout) * torch.randn(2, 32, 6, generator=generator)).mean().backward()
        optimizer.step()
        centers = ordered_centers(body.part_spacing)
        assert (centers.diff() > 0).all()
        assert 0 < centers[0] < centers[-1] < 1
    assert (centers - start).abs().max() > 0.02


@pytest.mark.parametrize("options", [{"adaptive": True}, {"parts": 3, "adaptive": True}])
def test_promises(options):
    for name, check in checks_of("body", **options):
        if name not in SLOW:
            check()


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_graphs_of_adaptive_parts(name):
    dict(checks_of("body", adaptive=True))[name]()


def test_options_are_printed():
    body = Body(TokenLayout(2, 3), 6, parts=4, adaptive=True)
    assert repr(body) == "Body(parts=4, adaptive=True)"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"parts": 0}, ValueError, "Body: parts must be a positive int, got 0"),
        ({"parts": 2.0}, ValueError, "Body: parts must be a positive int, got 2.0"),
        ({"adaptive": "yes"}, TypeError, "Body: adaptive must be True or False, got 'yes'"),
    ],
)
def test_refuses_what_does_not_exist(options, kind, message):
    with pytest.raises(kind, match=message):
        Body(TokenLayout(2, 3), 6, **options)
