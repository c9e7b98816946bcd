"""LookHere against fields told by angles: forward, gradients, and entries of minus infinity."""

import math

import oracles
import pytest
import torch
from tiny_vit import images, vit

import posenc
from posenc import LookHere, TokenLayout, attend
from posenc.analysis import capture_attention
from posenc.terms import DenseBias

LAYOUTS = [(2, 5, 0), (4, 3, 1), (1, 6, 2), (5, 4, 5), (1, 1, 1)]
BACKENDS = ["reference", "sdpa", "tiled"]
# Degrees, counterclockwise from the right: the middle of the field of each directed head of twelve.
MIDDLES = {
    45: [112.5, 247.5, 157.5, 22.5, 67.5, 292.5, 202.5, 337.5],
    90: [135, 45, 225, 315, 90, 270, 180, 0],
    180: [90, 270, 180, 0, 45, 135, 315, 225],
}
SLOPES = [1 / 2] * 8 + [1 / 4, 1 / 16, 1 / 64, 1 / 256]


def sees(degrees, head, query, key):
    """Whether a key, as (row, column), is in the field of one of twelve heads."""
    if head >= 8 or query == key:
        return True
    angle = math.degrees(math.atan2(query[0] - key[0], key[1] - query[1]))
    away = abs((angle - MIDDLES[degrees][head] + 180) % 360 - 180)
    return away <= degrees / 2 + 1e-6


def expected_bias(degrees, slope, layout):
    height, width, prefix = layout

    def entry(i, j):
        query, key = (oracles.position(token, width, prefix) for token in (i, j))
        if query is None or key is None:
            return torch.zeros(1, 12, dtype=torch.float64)
        distance = math.hypot(query[0] - key[0], query[1] - key[1])
        heads = [
            -slope * own * distance if sees(degrees, head, query, key) else -math.inf
            for head, own in enumerate(SLOPES)
        ]
        return torch.tensor([heads], dtype=torch.float64)

    return oracles.build_bias(height, width, prefix, entry)


def dense(encoding, layout):
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*layout), heads=encoding.num_heads)
    return encoding(q, k, TokenLayout(*layout))[0].dense()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("degrees", MIDDLES)
def test_equals_the_oracle(degrees, layout):
    encoding = LookHere(TokenLayout(*layout), 12, field_of_view=degrees, block=1, num_blocks=5)
    bias = expected_bias(degrees, 2 * 1.25, layout)
    torch.testing.assert_close(dense(encoding, layout), bias, rtol=0, atol=1e-12)
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout), heads=12)
    expected, _ = oracles.attention(q, k, v, bias)
    wanted = torch.autograd.grad(expected, [q, k, v], cotangent)
    for backend in BACKENDS:
        out = attend(q, k, v, encoding(q, k, TokenLayout(*layout)), backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        grads = torch.autograd.grad(out, [q, k, v], cotangent)
        for grad, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degrees", MIDDLES)
def test_nothing_outside_the_fields_is_seen_in_any_dtype(degrees, backend, dtype):
    """Attention to a key outside is exactly zero, and no row is empty or not a number."""
    layout = (5, 4, 2)
    tokens = oracles.num_tokens(*layout)
    encoding = LookHere(TokenLayout(*layout), 12, field_of_view=degrees)
    q, k, _, _ = (x.detach().to(dtype) for x in oracles.random_qkv(tokens, heads=12))
    eye = torch.eye(tokens, dtype=dtype).expand(2, 12, -1, -1).clone().requires_grad_()
    q.requires_grad_()
    weights = attend(q, k, eye, encoding(q, k, TokenLayout(*layout)), backend=backend)
    outside = expected_bias(degrees, 2.0, layout) == -math.inf
    assert (weights[outside.expand_as(weights)] == 0).all()
    torch.testing.assert_close(
        weights.float().sum(-1), torch.ones(2, 12, tokens), atol=2e-2, rtol=0
    )
    grads = torch.autograd.grad(weights.square().sum(), [q, eye])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bool", "float", "dense"])
def test_masks_add_up_with_the_fields(kind, backend):
    """Where a mask takes the last key that a field has left, the row is zero and not NaN."""
    layout = (2, 5, 0)
    encoding = LookHere(TokenLayout(*layout), 12, field_of_view=45)
    q, k, v, cotangent = oracles.random_qkv(10, heads=12)
    mask = torch.ones(10, 10, dtype=torch.bool)
    mask[0, 0] = False  # the first patch: nobody is above it
    terms, attn_mask = encoding(q, k, TokenLayout(*layout)), mask
    if kind != "bool":
        attn_mask = torch.zeros(10, 10, dtype=torch.float64).masked_fill(~mask, -math.inf)
    expected, _ = oracles.attention(
        q, k, v, expected_bias(45, 2.0, layout).masked_fill(~mask, -1e30)
    )
    if kind == "dense":
        terms, attn_mask = (*terms, DenseBias(attn_mask[None, None])), None
    out = attend(q, k, v, terms, attn_mask=attn_mask, backend=backend)
    assert out.isfinite().all()
    assert (out[:, 0, 0] == 0).all()
    torch.testing.assert_close(out[:, :, 1:], expected[:, :, 1:], atol=1e-10, rtol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out, [q, k, v], cotangent))


def test_the_low_rank_backend_refuses_it():
    layout = TokenLayout(2, 3)
    q, k, v, _ = oracles.random_qkv(6, heads=12)
    with pytest.raises(ValueError, match="no low-rank factors in LookupBias over both axes"):
        attend(q, k, v, LookHere(layout, 12)(q, k, layout), backend="lowrank")


@pytest.mark.parametrize(
    ("block", "num_blocks", "slope"),
    [(None, None, 1.0), (None, 5, 1.0), (0, 12, 1.5), (11, 12, 0.5), (3, 5, 0.75), (0, 1, 1.5)],
)
def test_slopes_fall_with_depth(block, num_blocks, slope):
    encoding = LookHere(TokenLayout(2, 3), 12, None, block, num_blocks)
    torch.testing.assert_close(encoding.slopes, [2 * slope * own for own in SLOPES])
    other = LookHere(
        TokenLayout(2, 3), 12, None, block, num_blocks, global_slope=0.5, layer_slopes=[1, 1]
    )
    torch.testing.assert_close(other.slopes, [0.5 * own for own in SLOPES])


@pytest.mark.parametrize("heads", [1, 3, 6, 8, 16, 24])
def test_other_numbers_of_heads(heads):
    """Groups of four: A, B and those that see all; 16 heads have A twice, as published."""
    own = LookHere(TokenLayout(3, 3), heads, field_of_view=90)
    twelve = LookHere(TokenLayout(3, 3), 12, field_of_view=90)
    a, b, rest = twelve.fields[:4], twelve.fields[4:8], twelve.fields[8:]
    expected = {1: a, 3: a, 6: a + b, 8: a + b, 16: a + a + b + rest, 24: a + a + b + b + 2 * rest}
    assert own.fields == expected[heads][:heads]
    directed = {1: 1, 3: 3, 6: 6, 8: 8, 16: 12, 24: 16}[heads]
    powers = {16: [1 / 2] * 4 + [1 / 4] * 4 + [1 / 2] * 4, 24: ([1 / 2] * 4 + [1 / 4] * 4) * 2}
    slopes = powers.get(heads, [1 / 2] * directed) + SLOPES[8:] * (heads // 12)
    torch.testing.assert_close(own.slopes, [2 * slope for slope in slopes])


def test_each_block_of_a_model_has_its_slope_and_sees_its_fields_only():
    model = vit(depth=3, num_heads=12, embed_dim=48)
    with pytest.warns(UserWarning, match="LookHere has an effect from the start"):
        posenc.patch_model(model, "lookhere", field_of_view=180)
    slopes = [encoding.slopes[0] for encoding in posenc.patched_encodings(model).values()]
    assert slopes == [1.5, 1.0, 0.5]
    assert not list(posenc.encoding_parameters(model))
    with capture_attention(model.eval()) as captured, torch.no_grad():
        model(images(model))
    for name, weights in captured.attention.items():
        layout = captured.layouts[name]
        bias = expected_bias(180, 1.0, (layout.height, layout.width, layout.prefix))
        assert torch.equal(weights > 0, (bias > -math.inf).expand_as(weights))


def test_a_shared_encoding_has_the_mean_slope():
    with pytest.warns(UserWarning, match="LookHere has an effect from the start"):
        model = posenc.patch_model(vit(depth=3, num_heads=4), "lookhere", share=True)
    (encoding,) = posenc.patched_encodings(model).values()
    assert encoding.slopes[0] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field_of_view": 60}, r"field_of_view must be 45, 90 or 180 \(degrees\), got 60"),
        ({"layer_slopes": 1.0}, r"layer_slopes must be two numbers.*got 1.0"),
        ({"layer_slopes": (1.0,)}, r"layer_slopes must be two numbers.*got \(1.0,\)"),
        ({"layer_slopes": (1.0, -1.0)}, r"layer_slopes must not be negative, got -1.0"),
        ({"global_slope": "x"}, r"global_slope must be a finite number, got 'x'"),
        (
            {"block": 2, "num_blocks": 2},
            r"block must be 0 to .*block=2, num_blocks=2",
        ),
        ({"block": 2}, r"or None where it is not known.* block=2, num_blocks=None"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        LookHere(TokenLayout(2, 3), 4, **options)
