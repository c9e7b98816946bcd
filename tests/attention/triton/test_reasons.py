"""What the fused kernels refuse, and why."""

import pytest
import torch
from kernel_calls import DEVICE, qkv, random_terms
from random_calls import random_index

from posenc import TokenLayout, attend, explain
from posenc.attention.backends import triton
from posenc.terms import DenseBias, LookupBias, LowRankBias


def cases():
    """Reason -> (query, value, terms, options)."""
    q = torch.zeros(1, 1, 6, 16)
    one, other = (random_index(TokenLayout(*size)) for size in [(2, 3), (3, 2)])
    lookups = [LookupBias(torch.zeros(1, 1, 1, i.num_buckets), i) for i in (one, other)]
    wide = torch.zeros(1, 1, 6, 33)
    trained = torch.zeros(1, 1, 6, 6, requires_grad=True)
    wider = torch.zeros(1, 1, 6, 257)
    return {
        "accumulate in float32, the query is torch.float64": (q.double(), q.double(), [], {}),
        "head_dim is 257 and 257 for values, more than 256": (wider, wider, [], {}),
        "head_dim is 16 and 257 for values": (q, wider, [], {}),
        "no grouped queries": (q, q, [], {"enable_gqa": True}),
        "different images or heads": (q, q.expand(2, 1, 6, 16), [], {}),
        "every weight is dropped": (q, q, [], {"dropout_p": 1.0}),
        "several layouts": (q, q, lookups, {}),
        "66 columns, more than 64": (q, q, 2 * [LowRankBias(wide, wide)], {}),
        "the gradient of a dense bias, or of a mask": (q, q, [DenseBias(trained)], {}),
        "or of a mask, is a matrix": (q, q, lookups[:1], {"attn_mask": trained}),
    }


@pytest.mark.parametrize("reason", list(cases()))
@pytest.mark.parametrize("function", [attend, explain])
def test_rejects_with_the_reason(function, reason):
    query, value, terms, options = cases()[reason]
    query, value = query.to(DEVICE), value.to(DEVICE)
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match=reason):
            function(query, query, value, terms, backend="triton", **options)
        assert reason in explain(query, query, value, terms, **options).reasons["triton"]


def test_rejects_devices_and_transforms(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.zeros(1, 1, 6, 16)
    with pytest.raises(ValueError, match="run on CUDA, the query is on cpu"):
        attend(q, q, q, backend="triton")
    with pytest.raises(ValueError, match="run on CUDA, the query is on meta"):
        attend(*3 * [q.to("meta")], backend="triton")
    with pytest.raises(ValueError, match="neither function transforms"):
        torch.vmap(lambda x: attend(x, x, x, backend="triton"))(q[None])
    monkeypatch.setattr(triton, "IS_INSTALLED", False)
    with pytest.raises(ValueError, match=r"pip install posenc\[triton\]"):
        attend(q, q, q, backend="triton")


def test_a_second_derivative_is_refused():
    inputs = qkv(12)
    out = attend(*inputs, *random_terms("static", (3, 4, 0))[0], backend="triton")
    (grad,) = torch.autograd.grad(out.sin().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()


def test_inputs_changed_before_backward_are_noticed():
    inputs = qkv(12)
    mask = torch.zeros(12, 12, device=DEVICE)
    terms, _ = random_terms("static", (3, 4, 0))
    out = attend(*inputs, terms, attn_mask=mask, backend="triton")
    mask.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
