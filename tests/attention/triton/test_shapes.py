"""Head widths, strides, empty inputs and large scores."""

import pytest
import torch
from kernel_calls import (
    BATCH,
    DEVICE,
    EPS,
    HEADS,
    assert_equal_to_reference,
    gradients,
    numbers,
    qkv,
    random_terms,
)

from posenc import attend


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [1, 16, 20, 48, 64, 80, 128, 256])
@pytest.mark.parametrize("value_dim", [8, 40, 256])
def test_head_dims(head_dim, value_dim):
    terms, leaves = random_terms("static", (4, 5, 1))
    assert_equal_to_reference(qkv(21, head_dim, value_dim), terms, leaves, tolerance=1e-4)


@pytest.mark.parametrize("packed", ["tokens first", "heads first", "columns apart"])
def test_slices_of_one_projection(packed):
    layout = (3, 4, 1)
    sizes = {"tokens first": (BATCH, 13, 3, HEADS, 16), "heads first": (3, BATCH, HEADS, 13, 16)}
    whole = numbers(*sizes.get(packed, (3, BATCH, HEADS, 16, 13)))
    if packed == "tokens first":
        inputs = whole.permute(2, 0, 3, 1, 4).unbind()
    elif packed == "heads first":
        inputs = whole.unbind()
    else:
        inputs = whole.transpose(-2, -1).unbind()
    terms, _ = random_terms("value and all", layout, value_dim=16)
    expected = attend(*(x.double() for x in inputs), terms, backend="reference")
    out = attend(*inputs, terms, backend="triton")
    (got,), (want,) = (gradients(x, [whole]) for x in (out, expected))
    assert (out - expected).abs().max() < 1e-5
    assert (got - want).abs().max() < 1e-4


def test_a_gradient_that_is_one_number():
    """Of a sum: expanded, without memory of its own."""
    inputs = qkv(12)
    (term,), (table,) = random_terms("static", (3, 4, 0))
    ours = torch.autograd.grad(attend(*inputs, term, backend="triton").sum(), inputs[2])
    theirs = torch.autograd.grad(attend(*inputs, term, backend="reference").sum(), inputs[2])
    torch.testing.assert_close(ours, theirs)
    assert table.grad is None


def test_heads_of_a_token_are_together():
    """As after SDPA: the model's transpose and reshape is free."""
    out = attend(*qkv(12), random_terms("static", (3, 4, 0))[0], backend="triton")
    assert out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3, 7, 16), (2, 0, 7, 16)])
def test_nothing(shape):
    q = numbers(*shape)
    terms, leaves = random_terms("value", (2, 3, 1), value_dim=16, batch=1, heads=1)
    out = attend(q, q, q, terms[:1], backend="triton")
    assert out.shape == shape
    for grad in torch.autograd.grad(out.sum(), [q, leaves[0]]):
        assert not grad.any()


def test_no_keys():
    q, k = numbers(2, 3, 5, 16), numbers(2, 3, 0, 16)
    out = attend(q, k, k, backend="triton")
    assert not out.any()
    assert not torch.autograd.grad(out.sum(), q)[0].any()


@pytest.mark.parametrize("frozen", ["query", "key", "value", "all but terms", "terms"])
def test_what_needs_no_gradient_gets_none(frozen):
    layout = (3, 4, 1)
    inputs = dict(zip(["query", "key", "value"], qkv(13), strict=True))
    terms, leaves = random_terms("value and all", layout)
    for name, tensor in inputs.items():
        tensor.requires_grad_(frozen not in (name, "all but terms"))
    for leaf in leaves:
        leaf.requires_grad_(frozen != "terms")
    wanted = [x for x in (*inputs.values(), *leaves) if x.requires_grad]
    results = [
        gradients(attend(*inputs.values(), terms, backend=backend), wanted)
        for backend in ("triton", "reference")
    ]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode):
    with mode():
        terms, _ = random_terms("value and all", (3, 4, 1))
        inputs = [x.detach() for x in qkv(13)]
        out = attend(*inputs, terms, backend="triton")
        torch.testing.assert_close(out, attend(*inputs, terms, backend="reference"))
    assert not out.requires_grad


def test_a_mask_made_in_inference_mode():
    with torch.inference_mode():
        mask = torch.ones(12, 12, device=DEVICE).tril().bool()
    assert_equal_to_reference(qkv(12), *random_terms("static", (3, 4, 0)), attn_mask=mask)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static", "value and all"])
def test_large_scores(kind):
    """Whose exponentials would overflow; the last tile of queries and of keys is not full."""
    terms, leaves = random_terms(kind, (7, 5, 0))
    q, k, v = qkv(35)
    with torch.no_grad():
        for tensor in (q, leaves[0]):
            tensor *= 100
    assert_equal_to_reference([q, k, v], terms, leaves, tolerance=2000 * EPS)


@pytest.mark.skipif(DEVICE != "cpu", reason="needs memory that is never touched")
def test_rows_further_apart_than_32_bits_count():
    far = torch.empty(33 * 2**26, dtype=torch.float16)
    query = far.as_strided((1, 1, 33, 16), (0, 0, 2**26, 1))
    query.copy_(torch.randn(query.shape))
    key = value = torch.randn(1, 1, 33, 16, dtype=torch.float16)
    out = attend(query, key, value, backend="triton")
    torch.testing.assert_close(out, attend(query.contiguous(), key, value, backend="triton"))
