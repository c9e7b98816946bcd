"""`attend` refuses arguments that do not fit each other, and says which."""

import pytest
import torch
import torch.nn.functional as F

from posenc import IRPE, TokenLayout, attend
from posenc.functional.buckets import swin_index
from posenc.terms import DenseBias, LookupBias, LowRankBias

WITH_TERMS = ["reference", "sdpa", "tiled"]
HEADS, DIM = 2, 6


def index_of(layout):
    return swin_index(TokenLayout(*layout), "separate")


Q = torch.zeros(2, HEADS, 5, DIM)
BIAS = DenseBias(torch.zeros(1, 1, 5, 5))


@pytest.mark.parametrize("backend", ["auto", *WITH_TERMS])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_causal": True}, "is_causal=True is not defined together with position terms"),
        ({"enable_gqa": True}, "enable_gqa=True is not defined together with position terms"),
    ],
)
def test_undefined_together_with_terms(backend, options, message):
    with pytest.raises(ValueError, match=message):
        attend(Q, Q, Q, BIAS, backend=backend, **options)


@pytest.mark.parametrize("backend", ["auto", *WITH_TERMS])
def test_cross_attention_with_terms_is_refused(backend):
    with pytest.raises(ValueError, match="as many queries as keys, got Nq=3 and Nk=5"):
        attend(Q[:, :, :3], Q, Q, BIAS, backend=backend)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q[0], Q, Q), r"query must be \[B, heads, N, head_dim\], got \[2, 5, 6\]"),
        ((Q, Q, Q[..., None]), r"value must be \[B, heads, N, head_dim\], got \[2, 2, 5, 6, 1\]"),
        ((Q, Q[..., :4], Q), r"same head_dim.* \[2, 2, 5, 6\], \[2, 2, 5, 4\]"),
        ((Q, Q, Q[:, :, :4]), r"same number of tokens.* \[2, 2, 4, 6\]"),
        ((Q, Q, Q, DenseBias(torch.zeros(1, 1, 4, 4))), r"DenseBias.bias must have shape .*4, 4\]"),
        ((Q, Q, Q, DenseBias(torch.zeros(1, 3, 5, 5))), r"1 or 2, 1 or 2, 5, 5.*\[1, 3, 5, 5\]"),
    ],
)
def test_shapes_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        attend(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q, Q.double(), Q), "one floating point dtype, got torch.float32, torch.float64"),
        ((Q, Q, Q.bfloat16()), "one floating point dtype, got .* torch.bfloat16"),
        ((Q.int(), Q.int(), Q.int()), "one floating point dtype, got torch.int32"),
        ((Q, Q, Q, [torch.zeros(1, 1, 5, 5)]), "terms must be DenseBias, .* got Tensor"),
        (
            (Q, Q, Q, IRPE(TokenLayout(1, 5), 2, DIM)),
            r"got IRPE itself: pass encoding\(q, k, layou",
        ),
    ],
)
def test_types_that_do_not_fit(arguments, message):
    with pytest.raises(TypeError, match=message):
        attend(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q, Q.to("meta"), Q), "must be on one device, got cpu, meta, cpu"),
        ((Q, Q, Q.to("meta")), "must be on one device, got cpu, cpu, meta"),
        (
            (Q, Q, Q, DenseBias(torch.zeros(1, 1, 5, 5, device="meta"))),
            "DenseBias.bias is on meta, the query on cpu",
        ),
        (
            (Q, Q, Q, LookupBias(torch.zeros(1, 1, 1, 27, device="meta"), index_of((1, 5, 0)))),
            "LookupBias.lookup is on meta, the query on cpu",
        ),
        ((Q.to("meta"), Q, Q), "must be on one device, got meta, cpu, cpu"),
        (
            (
                Q,
                Q,
                Q,
                LowRankBias(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2, device="meta")),
            ),
            "LowRankBias.right is on meta, the query on cpu",
        ),
    ],
)
def test_devices_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        attend(*arguments)


@pytest.mark.parametrize("terms", [(), BIAS], ids=["plain", "terms"])
def test_a_mask_on_another_device(terms):
    with pytest.raises(ValueError, match="attn_mask is on meta, the query on cpu"):
        attend(Q, Q, Q, terms, attn_mask=torch.zeros(5, 5, device="meta"))


@pytest.mark.parametrize("terms", [(), BIAS], ids=["plain", "terms"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(4, 5).bool(), r"broadcast .* = \[2, 2, 5, 5\], got \[4, 5\]"),
        (torch.zeros(5).bool(), r"2 to 4 dimensions .* got \[5\]"),
        (torch.zeros(1, 1, 1, 5, 5).bool(), r"2 to 4 dimensions .* got \[1, 1, 1, 5, 5\]"),
        (torch.zeros(3, 5, 5).bool(), r"got \[3, 5, 5\]"),
    ],
)
def test_masks_that_do_not_fit(terms, mask, message):
    with pytest.raises(ValueError, match=message):
        attend(Q, Q, Q, terms, attn_mask=mask)


def test_integer_masks_are_refused():
    with pytest.raises(TypeError, match=r"attn_mask must be boolean .* got torch.int64"):
        attend(Q, Q, Q, BIAS, attn_mask=torch.ones(5, 5).long())


def test_mask_and_causal_exclude_each_other():
    with pytest.raises(ValueError, match="attn_mask and is_causal=True exclude each other"):
        attend(Q, Q, Q, attn_mask=torch.ones(5, 5).bool(), is_causal=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [((1, 2), (1, 2)), ((2, 1), (2, 2)), ((2, 2), (2, 1)), ((4, 2), (4, 2))],
)
def test_terms_need_equal_images_and_heads(key, value):
    """SDPA broadcasts; where terms are added it would not be told apart from a mistake."""
    shapes = (torch.zeros(*size, 5, DIM) for size in (key, value))
    with pytest.raises(ValueError, match=r"the same B and heads, got \[2, 2, 5, 6\], "):
        attend(Q, *shapes, BIAS)


def test_images_may_broadcast_without_terms():
    k = torch.randn(1, HEADS, 5, DIM)
    torch.testing.assert_close(attend(Q, k, k), F.scaled_dot_product_attention(Q, k, k))


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
@pytest.mark.parametrize("terms", [(), BIAS], ids=["plain", "terms"])
def test_dropout_is_a_probability(p, terms):
    with pytest.raises(ValueError, match="dropout_p must be a probability, got"):
        attend(Q, Q, Q, terms, dropout_p=p)
