"""Cosine attention; with Swin V2's bias it is compared with published code in test_cpb."""

import math

import layouts
import oracles
import pytest
import torch
from tiny_vit import images, vit

import posenc
from posenc import CosineAttention, SwinBias, TokenLayout, attend, patch_model
from posenc.attention import explain

BACKENDS = ["reference", "sdpa"]


def build(layout, heads=2):
    encoding = CosineAttention(TokenLayout(*layout), heads, dtype=torch.float64)
    return oracles.randomize(encoding)


def expected_scores(log_scale, q, k):
    """Pair by pair."""
    heads = []
    for head, logarithm in enumerate(log_scale):
        factor = torch.minimum(logarithm.exp(), logarithm.new_tensor(100.0))
        pairs = [[factor * (a @ b) / (a.norm() * b.norm()) for b in k[0, head]] for a in q[0, head]]
        heads.append(torch.stack([torch.stack(row) for row in pairs]))
    return torch.stack(heads)[None]


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle_beside_a_bias(layout):
    cosine = build(layout)
    tokens = oracles.num_tokens(*layout)
    q, k, v, cotangent = oracles.random_qkv(tokens, batch=1)
    swin = oracles.randomize(SwinBias(TokenLayout(*layout), 2, dtype=torch.float64))
    bias = oracles.swin_bias(swin.table, *layout)
    expected = (expected_scores(cosine.log_scale, q, k) + bias).softmax(-1) @ v
    leaves = [q, k, v, cosine.log_scale, swin.table]
    wanted = torch.autograd.grad(expected, leaves, cotangent)
    for backend in BACKENDS:
        layout_of_call = TokenLayout(*layout)
        terms = (*cosine(q, k, layout_of_call), *swin(q, k, layout_of_call))
        # The scale of the attention is replaced, so it does not matter.
        out = attend(q, k, v, terms, backend=backend, scale=7.0)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for grad, want in zip(torch.autograd.grad(out, leaves, cotangent), wanted, strict=True):
            torch.testing.assert_close(grad, want, atol=1e-10, rtol=0)


def test_the_scale_is_limited_and_then_has_no_gradient():
    layout = TokenLayout(2, 3, 1)
    cosine = CosineAttention(layout, 3, dtype=torch.float64)
    with torch.no_grad():
        cosine.log_scale.copy_(torch.tensor([5.0, 2.0, math.log(100) + 1e-9]))
    q, k, v, cotangent = oracles.random_qkv(7, heads=3)
    (term,) = cosine(q, k, layout)
    expected = torch.tensor([100.0, math.exp(2), 100.0], dtype=torch.float64)
    torch.testing.assert_close(term.factor.flatten(), expected)
    attend(q, k, v, (term,)).backward(cotangent)
    assert (cosine.log_scale.grad == 0).tolist() == [True, False, True]


def test_starts_at_the_scale_that_was_asked_for():
    assert CosineAttention(TokenLayout(2, 3), 2).log_scale.exp().tolist() == pytest.approx([10, 10])
    cosine = CosineAttention(TokenLayout(2, 3), 2, scale=0.5, dtype=torch.float64)
    assert cosine.log_scale.exp().tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("scale", [0, -1.0, 100, 1e3])
def test_refuses_a_scale_that_could_not_be_learned(scale):
    with pytest.raises(ValueError, match=rf"scale must be between 0 and 100, .*got {scale}"):
        CosineAttention(TokenLayout(2, 3), 2, scale=scale)


@pytest.mark.parametrize("scale", [math.nan, "ten", None])
def test_refuses_what_is_no_number(scale):
    with pytest.raises(ValueError, match="scale must be a finite number"):
        CosineAttention(TokenLayout(2, 3), 2, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_vector_of_length_zero_has_cosine_zero(dtype):
    layout = TokenLayout(2, 3, 1)
    q, k, v, _ = (tensor.detach().to(dtype) for tensor in oracles.random_qkv(7))
    k[:, :, 2] = 0.0
    q[:, :, 3] = 0.0
    out = attend(q, k, v, CosineAttention(layout, 2)(q, k, layout))
    assert out.isfinite().all()
    mean = v.mean(-2)
    torch.testing.assert_close(out[:, :, 3], mean, rtol=1e-2, atol=1e-2)


def test_it_needs_no_bias_and_runs_in_fused_attention():
    layout = TokenLayout(2, 3, 1)
    cosine = build((2, 3, 1))
    q, k, v, _ = oracles.random_qkv(7)
    assert explain(q, k, v, cosine(q, k, layout)).choice == "sdpa"


def test_a_patched_model_says_that_it_changes():
    model = vit()
    with pytest.warns(UserWarning, match="CosineAttention has an effect from the start") as record:
        patch_model(model, "cosine")
    assert "starts without" not in str(record[0].message)  # no option does
    before = model(images(model))
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.add_(1.0)
    assert not torch.allclose(model(images(model)), before)


def test_it_is_no_relative_bias():
    model = vit()
    model.blocks[0].attn.rel_pos_h = torch.nn.Parameter(torch.zeros(3))
    with pytest.warns(UserWarning, match="effect from the start"):
        patch_model(model, "cosine")
    assert posenc.summary(model).warnings == ()


@pytest.mark.parametrize("name", ["cosine_attention", "scaled cosine"])
def test_other_words_lead_here(name):
    with pytest.raises(ValueError, match=r"Did you mean 'cosine'\?"):
        posenc.create_encoding(name, layout=TokenLayout(2, 3))
