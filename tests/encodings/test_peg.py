import golden_cases
import layouts
import oracles
import pytest
import torch

from posenc import PEG, TokenLayout

STRIDE_ONE = [name for name in golden_cases.names("cpvt_peg") if name.endswith("stride1")]
LAYOUTS = [*layouts.LAYOUTS, (1, 1, 1)]


def tokens(layout, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, oracles.num_tokens(*layout), dim)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def build(layout, seed=0, **options):
    return oracles.randomize(PEG(TokenLayout(*layout), 4, dtype=torch.float64, **options), seed)


@pytest.mark.parametrize("name", STRIDE_ONE)
def test_equals_the_published_code(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    layout = TokenLayout(*options["grid_h_w"], options["prefix_tokens"])
    peg = PEG(layout, options["channels"], dtype=torch.float64)
    peg.load_state_dict({"weight": golden["weight"], "bias": golden["bias"]}, strict=True)
    x = golden.leaf("x")
    out = peg(x, layout)
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    grads = {"x": x.grad, "weight": peg.weight.grad, "bias": peg.bias.grad}
    for key, grad in grads.items():
        torch.testing.assert_close(grad, golden[f"grad_{key}"], **golden.close)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_equals_the_loop(layout, kernel_size):
    peg = build(layout, kernel_size=kernel_size)
    x, cotangent = tokens(layout).requires_grad_(), tokens(layout, seed=1)
    out = peg(x, TokenLayout(*layout))
    expected = oracles.peg(x, peg.weight, peg.bias, *layout)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    leaves = [x, peg.weight, peg.bias]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
        torch.testing.assert_close(grad, want, atol=1e-12, rtol=0)


def test_the_grid_of_the_call_counts():
    """2x5 and 5x2 have the same number of tokens."""
    peg, x = build((2, 5, 1)), tokens((5, 2, 1))
    out = peg(x, TokenLayout(5, 2, prefix=1))
    expected = oracles.peg(x, peg.weight, peg.bias, 5, 2, 1)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    assert (out - peg(x, TokenLayout(2, 5, prefix=1))).abs().max() > 0.1


def test_prefix_tokens_pass_by():
    peg, x = build((2, 5, 3)), tokens((2, 5, 3))
    out = peg(x, TokenLayout(2, 5, prefix=3))
    assert torch.equal(out[:, :3], x[:, :3])
    other = x.clone()
    other[:, :3] = 0
    assert torch.equal(peg(other, TokenLayout(2, 5, prefix=3))[:, 3:], out[:, 3:])


@pytest.mark.parametrize("kernel_size", [3, 5])
def test_shapes_and_start(kernel_size):
    layout = TokenLayout(2, 5, prefix=1)
    peg = PEG(layout, 4, kernel_size=kernel_size, dtype=torch.float64)
    assert {name: tuple(p.shape) for name, p in peg.named_parameters()} == {
        "weight": (4, 1, kernel_size, kernel_size),
        "bias": (4,),
    }
    x = tokens((2, 5, 1))
    out = peg(x, layout)
    assert torch.equal(out, x)
    out.backward(x)
    assert (peg.weight.grad != 0).any()
    assert (peg.bias.grad != 0).all()


def test_the_start_of_the_paper_has_an_effect():
    torch.manual_seed(0)
    layout = TokenLayout(2, 5)
    x = tokens((2, 5, 0))
    out = PEG(layout, 4, init="paper", dtype=torch.float64)(x, layout)
    assert (out - x).abs().max() > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 2}, r"kernel_size.*odd.*2"),
        ({"kernel_size": 4}, r"kernel_size.*odd.*4"),
        ({"kernel_size": 0}, r"kernel_size.*0"),
        ({"init": "ones"}, r"init.*zero.*paper.*'ones'"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        PEG(TokenLayout(2, 3), 4, **options)


def test_refuses_tokens_that_the_layout_does_not_have():
    with pytest.raises(ValueError, match=r"11 tokens.*10"):
        build((2, 5, 1))(tokens((2, 5, 0)), TokenLayout(2, 5, prefix=1))
