"""Rotary embedding with learned frequencies: published code, and the formula token by token."""

import math

import golden_cases
import oracles
import pytest
import torch
from torch.func import functional_call

from posenc import RoPEMixed, TokenLayout, attend
from posenc.testing import checks_of

LAYOUTS = [(2, 5, 0), (7, 4, 1), (1, 6, 2), (3, 2, 5), (1, 1, 1)]
ORDERS = {"xy": "columns", "ij": "rows"}


def terms(freqs, q, k, layout, order="columns"):
    mixed = RoPEMixed(layout, q.shape[1], q.shape[-1], order=order, dtype=torch.float64)
    return functional_call(mixed, {"freqs": freqs}, (q, k, layout))


@pytest.mark.parametrize("name", golden_cases.names("rope_timm_mixed_"))
def test_equals_timm(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    layout, order = TokenLayout(*options["grid_h_w"]), ORDERS[options["grid_indexing"]]
    q, freqs = golden.leaf("q"), golden.leaf("freqs")
    for block in range(options["depth"]):  # each has its own frequencies for the same queries
        (rotation,) = terms(freqs[:, block], q, q, layout, order)
        out = rotation.apply(q)
        torch.testing.assert_close(out, golden["q_out"][block], **golden.close)
        out.backward(golden["grad_out"][block])
    torch.testing.assert_close(q.grad, golden["grad_q"], **golden.close)
    torch.testing.assert_close(freqs.grad, golden["grad_freqs"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", golden_cases.names("rope_vit_mixed_"))
def test_equals_rope_vit(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    layout = TokenLayout(*options["grid_h_w"], prefix=options["prefix_tokens"])
    q, k, freqs = (golden.leaf(key) for key in ("q", "k", "freqs"))
    (rotation,) = terms(freqs, q, k, layout)
    out = rotation.apply(q), rotation.apply(k)
    torch.testing.assert_close(out, (golden["q_out"], golden["k_out"]), **golden.close)
    torch.autograd.backward(out, (golden["grad_q_out"], golden["grad_k_out"]))
    for key, leaf in (("q", q), ("k", k), ("freqs", freqs)):
        # The reference summed in float32.
        torch.testing.assert_close(leaf.grad, golden[f"grad_{key}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", golden_cases.names("rope_vit_attention_mixed"))
def test_equals_a_published_layer(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    layout = TokenLayout(*options["grid_h_w"], prefix=options["prefix_tokens"])
    heads = options["heads"]

    def linear(x, layer):
        weights = golden[f"p.{layer}.weight"], golden[f"p.{layer}.bias"]
        return torch.nn.functional.linear(x, *weights)

    q, k, v = linear(golden["x"], "qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    freqs = golden["p.freqs"].unflatten(-1, (heads, -1))
    out = attend(q, k, v, terms(freqs, q, k, layout), scale=options["scale"])
    out = linear(out.transpose(1, 2).flatten(2), "proj")
    torch.testing.assert_close(out, golden["out"], **golden.close)


def turned(x, freqs, layout, built, order, resize):
    """Queries or keys, one pair of channels of one token after another."""
    tokens = []
    for token in range(layout.num_tokens):
        where = oracles.position(token, layout.width, layout.prefix)
        if where is None:
            tokens.append(x[:, :, token])
            continue
        whole = built if resize == "scale" else layout.grid
        row, column = (where[a] * whole[a] / layout.grid[a] for a in (0, 1))
        first, second = (column, row) if order == "columns" else (row, column)
        channels = []
        for p in range(x.shape[-1] // 2):
            angle = first * freqs[0, :, p] + second * freqs[1, :, p]
            a, b = x[:, :, token, 2 * p], x[:, :, token, 2 * p + 1]
            channels += [
                a * angle.cos() - b * angle.sin(),
                b * angle.cos() + a * angle.sin(),
            ]
        tokens.append(torch.stack(channels, -1))
    return torch.stack(tokens, -2)


@pytest.mark.parametrize("resize", ["extrapolate", "scale"])
@pytest.mark.parametrize("order", ["columns", "rows"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("built", [None, (4, 3)])
def test_equals_the_formula(layout, built, order, resize):
    layout = TokenLayout(*layout)
    built = built or layout.grid
    own = TokenLayout(*built, prefix=layout.prefix)
    mixed = RoPEMixed(own, 2, 8, order=order, resize=resize, dtype=torch.float64)
    oracles.randomize(mixed)
    q, k, v, cotangent = oracles.random_qkv(layout.num_tokens, head_dim=8)
    leaves = (q, k, v, mixed.freqs)
    out = attend(q, k, v, mixed(q, k, layout))
    gradients = torch.autograd.grad(out, leaves, cotangent)
    q_turned, k_turned = (turned(x, mixed.freqs, layout, built, order, resize) for x in (q, k))
    expected, _ = oracles.attention(q_turned, k_turned, v)
    wanted = torch.autograd.grad(expected, leaves, cotangent, materialize_grads=True)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-9)


def test_start():
    """Two directions at a right angle, random in each head, with the frequencies of the paper."""
    torch.manual_seed(0)
    freqs = RoPEMixed(TokenLayout(2, 3), 3, 16, temperature=7.0, dtype=torch.float64).freqs
    first, second = freqs.detach().unflatten(-1, (2, 4)).unbind(-2)  # [2, heads, 4]
    mag = torch.tensor([7.0 ** (-4 * i / 16) for i in range(4)], dtype=torch.float64)
    for directions in (first, second):
        torch.testing.assert_close(directions.norm(dim=0), mag.expand(3, -1))
    torch.testing.assert_close(second[0], -first[1])  # cos(phi + pi / 2) = -sin(phi)
    torch.testing.assert_close(second[1], first[0])
    phi = torch.atan2(first[1], first[0])
    torch.testing.assert_close(phi, phi[:, :1].expand_as(phi))
    assert len(phi[:, 0].unique()) == 3


def test_strength_scales_the_start_and_is_learned_from_zero():
    layout = TokenLayout(2, 3, prefix=1)
    torch.manual_seed(0)
    one = RoPEMixed(layout, 2, 8, dtype=torch.float64)
    torch.manual_seed(0)
    half = RoPEMixed(layout, 2, 8, strength=0.5, dtype=torch.float64)
    torch.testing.assert_close(half.freqs, one.freqs / 2)
    none = RoPEMixed(layout, 2, 8, strength=0.0, dtype=torch.float64)
    assert one.changes_at_start()
    assert not none.changes_at_start()
    q, k, v, cotangent = oracles.random_qkv(7, head_dim=8)
    out = attend(q, k, v, none(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), rtol=0, atol=1e-15)
    out.backward(cotangent)
    assert (none.freqs.grad != 0).all()


@pytest.mark.parametrize("options", [{"order": "rows", "resize": "scale"}, {"strength": 0.0}])
def test_promises(options):
    for name, check in checks_of("rope_mixed", **options):
        if name not in ("Compiles as one graph", "Exports with torch.export"):
            check()


def test_the_built_grid_is_kept_where_it_decides():
    def module(grid, **options):
        return torch.nn.ModuleDict({"rope": RoPEMixed(TokenLayout(*grid), 2, 8, **options)})

    module((4, 4)).load_state_dict(module((2, 8)).state_dict(), strict=True)
    with pytest.raises(RuntimeError, match=r"was made for a 2x8 grid, .*RoPEMixed for 4x4"):
        module((4, 4), resize="scale").load_state_dict(module((2, 8), resize="scale").state_dict())


@pytest.mark.parametrize(
    ("head_dim", "options", "message"),
    [
        (6, {}, r"head_dim must be a multiple of 4 .* got 6; rope with rotated=4"),
        (8, {"temperature": -1}, "temperature must be positive, got -1"),
        (8, {"temperature": None}, "temperature must be a finite number, got None"),
        (8, {"order": "xy"}, "order must be one of 'columns', 'rows', got 'xy'"),
        (8, {"strength": math.inf}, "strength must be a finite number, got inf"),
        (8, {"resize": None}, "resize must be one of 'scale', 'extrapolate', got None"),
    ],
    ids=str,
)
def test_bad_options(head_dim, options, message):
    with pytest.raises(ValueError, match=message):
        RoPEMixed(TokenLayout(2, 3), 2, head_dim, **options)
