"""Swin V2's continuous position bias, alone and beside cosine attention."""

import math
import re

import golden_cases
import layouts
import oracles
import pytest
import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import WindowAttention

import posenc
from posenc import ContinuousBias, CosineAttention, TokenLayout, attend
from posenc.attention import attention_matrix
from posenc.functional.coordinates import log_offsets

BACKENDS = ["reference", "sdpa"]
KEYS = {"hidden_weight": "0.weight", "hidden_bias": "0.bias", "head_weight": "2.weight"}


def build(layout, *, heads=2, seed=0, **options):
    with torch.random.fork_rng():  # its hidden layer is drawn
        torch.manual_seed(seed)
        bias = ContinuousBias(TokenLayout(*layout), heads, dtype=torch.float64, hidden=6, **options)
    return oracles.randomize(bias, seed, scale=0.8)


def coordinate(offset, side):
    step = 8 * offset / max(side - 1, 1)
    return math.copysign(math.log2(1 + abs(step)) / math.log2(8), step)


def expected_bias(encoding, height, width, prefix, sides):
    """Pair by pair; 0 for pairs with a prefix token."""

    def entry(i, j):
        query, key = (oracles.position(token, width, prefix) for token in (i, j))
        if query is None or key is None:
            return encoding.head_weight.new_zeros(encoding.num_heads)
        offset = [coordinate(a - b, side) for a, b, side in zip(query, key, sides, strict=True)]
        row, column = offset
        weight, bias = encoding.hidden_weight, encoding.hidden_bias
        hidden = torch.clamp(weight[:, 0] * row + weight[:, 1] * column + bias, min=0)
        return 16 / (1 + torch.exp(-(encoding.head_weight * hidden).sum(-1))) - 8

    return oracles.build_bias(height, width, prefix, entry)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", golden_cases.names("swinv2_cpb"))
def test_with_cosines_it_is_the_published_attention(name, backend):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    heads, layout = options["heads"], TokenLayout(*options["window_h_w"])
    pretrained = options["pretrained_window_h_w"] if any(options["pretrained_window_h_w"]) else None
    weights = {key[2:]: golden.leaf(key) for key in golden.arrays if key.startswith("p.")}
    bias = ContinuousBias(layout, heads, pretrained=pretrained, dtype=torch.float64)
    bias.load_state_dict({own: weights[f"cpb_mlp.{key}"] for own, key in KEYS.items()})
    cosine = CosineAttention(layout, heads, dtype=torch.float64)
    cosine.load_state_dict({"log_scale": weights["logit_scale"].flatten()})
    x = golden.leaf("x")
    qkv_bias = torch.cat(
        [weights["q_bias"], torch.zeros_like(weights["q_bias"]), weights["v_bias"]]
    )
    qkv = F.linear(x, weights["qkv.weight"], qkv_bias)
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    (term,) = bias(q, k, layout)
    torch.testing.assert_close(term.dense()[0] + 8, golden["bias"], **golden.close)
    terms = (term, *cosine(q, k, layout))
    torch.testing.assert_close(attention_matrix(q, k, v, terms), golden["probs"], **golden.close)
    out = attend(q, k, v, terms, backend=backend).transpose(1, 2).flatten(2)
    out = F.linear(out, weights["proj.weight"], weights["proj.bias"])
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    grads = {key: weight.grad for key, weight in weights.items()}
    grads |= {f"cpb_mlp.{key}": getattr(bias, own).grad for own, key in KEYS.items()}
    grads["logit_scale"] = cosine.log_scale.grad.view(heads, 1, 1)
    for key, grad in grads.items():
        torch.testing.assert_close(grad, golden[f"grad.{key}"], **golden.close)
    torch.testing.assert_close(x.grad, golden["grad_x"], **golden.close)


@pytest.mark.parametrize("name", golden_cases.names("swinv2_cpb"))
def test_coordinates_and_their_order_are_those_of_the_published_code(name):
    golden = golden_cases.case(name)
    window, pretrained = (
        golden.hyperparameters[key] for key in ("window_h_w", "pretrained_window_h_w")
    )
    sides = tuple(pretrained if any(pretrained) else window)
    layout = TokenLayout(*window)
    table = log_offsets(layout, sides, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(table, golden["coords_table"].flatten(0, 2), atol=1e-6, rtol=0)
    (term,) = build(window)(*[torch.zeros(1, 2, layout.num_tokens, 4).double()] * 2, layout)
    assert torch.equal(term.index.dense(), golden["index"])


@pytest.mark.parametrize("pretrained", [None, (4, 2)])
@pytest.mark.parametrize("layout", [*layouts.LAYOUTS, (1, 1, 2), (1, 4, 1)])
def test_equals_the_oracle(layout, pretrained):
    bias = build(layout, pretrained=pretrained)
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout))
    wanted_bias = expected_bias(bias, *layout, pretrained or layout[:2])
    expected, _ = oracles.attention(q, k, v, wanted_bias)
    leaves = [q, k, v, *bias.parameters()]
    wanted = torch.autograd.grad(expected, leaves, cotangent, materialize_grads=True)
    for backend in BACKENDS:
        terms = bias(q, k, TokenLayout(*layout))
        torch.testing.assert_close(terms[0].dense()[0], wanted_bias, atol=1e-13, rtol=0)
        out = attend(q, k, v, terms, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("used", [(7, 4, 2), (5, 2, 2), (1, 3, 2)])
@pytest.mark.parametrize("pretrained", [None, 3])
def test_another_grid_is_read_at_its_own_coordinates(used, pretrained):
    bias = build((2, 5, 2), pretrained=pretrained)
    sides = used[:2] if pretrained is None else (3, 3)
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*used))
    actual = bias(q, k, TokenLayout(*used))[0].dense()
    expected = expected_bias(bias, *used, sides)
    torch.testing.assert_close(actual[0], expected, atol=1e-13, rtol=0)


def test_both_rules_for_another_grid():
    """With `pretrained` an offset keeps its value, without it a corner does."""

    def corner_and_step(grid, pretrained):
        bias = build((2, 5), heads=1, pretrained=pretrained)
        tokens = grid[0] * grid[1]
        q = torch.zeros(1, 1, tokens, 4, dtype=torch.float64)
        dense = bias(q, q, TokenLayout(*grid))[0].dense()[0, 0]
        return dense[0, -1], dense[0, 1]

    (corner, step), (other_corner, other_step) = (
        corner_and_step(grid, None) for grid in [(2, 5), (4, 7)]
    )
    torch.testing.assert_close(corner, other_corner, atol=1e-14, rtol=0)
    assert abs(step - other_step) > 1e-3
    (corner, step), (other_corner, other_step) = (
        corner_and_step(grid, (2, 5)) for grid in [(2, 5), (4, 7)]
    )
    torch.testing.assert_close(step, other_step, atol=1e-14, rtol=0)
    assert abs(corner - other_corner) > 1e-3


@pytest.mark.parametrize("pretrained", [(0, 0), (4, 2)])
@pytest.mark.parametrize("grid", [(3, 5), (1, 4), (1, 1)])
def test_timm_computes_the_same_with_a_side_of_one_too(grid, pretrained):
    module = WindowAttention(8, grid, 2, pretrained_window_size=pretrained).double().eval()
    oracles.randomize(module, 1, scale=0.3)
    layout = TokenLayout(*grid)
    options = {"pretrained": pretrained} if any(pretrained) else {}
    bias = ContinuousBias(layout, 2, dtype=torch.float64, **options)
    state = module.cpb_mlp.state_dict()
    bias.load_state_dict({own: state[key] for own, key in KEYS.items()})
    cosine = CosineAttention(layout, 2, dtype=torch.float64)
    cosine.load_state_dict({"log_scale": module.logit_scale.flatten()})
    x = torch.randn(3, layout.num_tokens, 8, dtype=torch.float64)
    qkv_bias = torch.cat([module.q_bias, module.k_bias, module.v_bias])
    q, k, v = (
        F.linear(x, module.qkv.weight, qkv_bias).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    )
    out = attend(q, k, v, (*bias(q, k, layout), *cosine(q, k, layout)))
    out = module.proj(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-6)  # its coordinates are float32


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_no_effect_at_the_start_and_a_gradient(prefix):
    layout = TokenLayout(2, 5, prefix)
    bias = ContinuousBias(layout, 2, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(layout.num_tokens)
    out = attend(q, k, v, bias(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    assert bias.head_weight.grad.abs().max() > 0
    assert bias.changes_at_start() is False


def test_the_start_of_the_paper_is_small_and_not_zero():
    torch.manual_seed(0)
    bias = ContinuousBias(TokenLayout(14, 14), 8, init="paper")
    for weight in (bias.hidden_weight, bias.head_weight):
        assert 0.015 < weight.std() < 0.025
    assert (bias.hidden_bias == 0).all()
    assert bias.changes_at_start() is True


def test_a_whole_number_and_a_list_are_grids():
    assert ContinuousBias(TokenLayout(2, 3), 2, pretrained=7).pretrained == (7, 7)
    assert ContinuousBias(TokenLayout(2, 3), 2, pretrained=[7, 4]).pretrained == (7, 4)
    assert "pretrained=(7, 4)" in repr(ContinuousBias(TokenLayout(2, 3), 2, pretrained=[7, 4]))


@pytest.mark.parametrize("pretrained", [0, (0, 0), (3,), (3, 4, 5), (3, -1), 2.5, True, "8", {}])
def test_refuses_what_is_no_grid(pretrained):
    message = (
        rf"pretrained must be the grid .*None for that in use, got {re.escape(repr(pretrained))}"
    )
    with pytest.raises(ValueError, match=message):
        ContinuousBias(TokenLayout(2, 3), 2, pretrained=pretrained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden must be a positive int, got 0"),
        ({"init": "ones"}, r"init.*zero.*paper.*'ones'"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        ContinuousBias(TokenLayout(2, 3), 2, **options)


@pytest.mark.parametrize("name", ["log_cpb", "swin_v2", "continuous position bias"])
def test_other_words_lead_here(name):
    with pytest.raises(ValueError, match=r"Did you mean 'cpb'\?"):
        posenc.create_encoding(name, layout=TokenLayout(2, 3))
