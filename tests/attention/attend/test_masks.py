"""Masks, and rows that are masked wholly."""

import math

import oracles
import pytest
import torch
from attend_calls import (
    BACKENDS,
    HEADS,
    WITH_TERMS,
    assert_same,
    index_of,
    loop_bias,
    qkv,
    random,
    tensors,
    terms_of,
)

from posenc import attend
from posenc.terms import DenseBias


def masks(tokens):
    """Shape -> a boolean mask with a fully masked row."""
    shapes = [(tokens, tokens), (1, tokens), (HEADS, tokens, tokens), (2, HEADS, tokens, tokens)]
    shapes += [(2, 1, 1, tokens), (1, 1, tokens, tokens)]
    keep = {shape: random(*shape, seed=5) > -0.5 for shape in shapes}
    for mask in keep.values():
        mask[..., 0] = True
        if mask.shape[-2] > 1:
            mask[..., 2, :] = False
    return keep


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        *[(backend, None) for backend in BACKENDS],
        *[(backend, kind) for backend in WITH_TERMS for kind in ("static", "query", "all")],
    ],
)
@pytest.mark.parametrize("shape", list(masks(7)), ids=str)
@pytest.mark.parametrize("boolean", [True, False])
def test_masks_equal_loops(backend, kind, shape, boolean):
    layout = (2, 3, 1)
    index = index_of(layout)
    q, k, v = qkv(7)
    mask = masks(7)[shape]
    if not boolean:
        mask = random(*shape, seed=6).masked_fill(~mask, -math.inf)
    leaves = tensors(kind, 7, index.num_buckets) if kind else []
    terms = terms_of(kind, leaves, index) if kind else []
    bias = loop_bias(kind, leaves, layout) if kind else None
    out = attend(q, k, v, terms, attn_mask=mask, backend=backend)
    expected, _ = oracles.attention(q, k, v, bias, mask)
    assert_same(out, expected, [q, k, v, *leaves])
    if shape[-2] > 1:
        assert torch.equal(out[:, :, 2], torch.zeros_like(out[:, :, 2]))


@pytest.mark.parametrize(
    ("backend", "with_terms"),
    [("reference", False), ("sdpa", False), *[(backend, True) for backend in WITH_TERMS]],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("boolean", [True, False])
def test_fully_masked_rows_are_zero_with_finite_gradients(backend, dtype, with_terms, boolean):
    q, k, v = qkv(7, dtype=dtype)
    bias = random(1, HEADS, 7, 7, dtype=dtype).requires_grad_()
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[[1, 4]] = False
    if not boolean:
        mask = torch.zeros(7, 7, dtype=dtype).masked_fill(~mask, -math.inf)
    terms = [DenseBias(bias)] if with_terms else []
    out = attend(q, k, v, terms, attn_mask=mask, backend=backend)
    assert torch.equal(out[:, :, [1, 4]], torch.zeros_like(out[:, :, [1, 4]]))
    assert out[:, :, 0].abs().min() > 0
    leaves = [q, k, v, bias] if with_terms else [q, k, v]
    grads = torch.autograd.grad(out.float().square().sum(), leaves)
    assert all(bool(grad.isfinite().all()) for grad in grads)
    assert all(not grad[:, :, [1, 4]].any() for grad in (grads[0], *grads[3:]))


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_a_fully_masked_row_has_no_value_lookup_either(backend):
    index = index_of((2, 3, 1))
    q, k, v = qkv(7)
    table = tensors("value", 7, index.num_buckets)
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[3] = False
    out = attend(q, k, v, terms_of("value", table, index), attn_mask=mask, backend=backend)
    assert not out[:, :, 3].any()
    assert out[:, :, 2].any()
