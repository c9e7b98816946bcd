"""Sums in a fixed order, and what is not finite."""

import math

import pytest
import torch
from kernel_calls import (
    BATCH,
    DEVICE,
    EPS,
    HEADS,
    call_of,
    gradients,
    in_float64,
    numbers,
    qkv,
    random_terms,
    run,
)

from posenc import attend
from posenc.attention.kernels.operands import read_call
from posenc.terms import ValueLookup

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_deterministic_sums_equal_the_reference(scale):
    """Whatever the size of the gradients."""
    terms, leaves = random_terms("value and all", (7, 5, 1))
    inputs = qkv(36)
    with torch.no_grad():
        inputs[2] *= scale
        for term in terms:
            if isinstance(term, ValueLookup):
                term.table.mul_(scale)
    exact_terms, exact_leaves, exact_inputs = in_float64(terms, leaves, inputs)
    ours = gradients(attend(*inputs, terms, backend="triton"), leaves)
    theirs = gradients(attend(*exact_inputs, exact_terms, backend="reference"), exact_leaves)
    for got, want in zip(ours, theirs, strict=True):
        assert (got - want).abs().max() <= 64 * EPS * want.abs().max()


def tables_of_permuted_images(order):
    """A static table's gradient, when images come in another order."""
    torch.manual_seed(0)
    (term,), (table,) = random_terms("static", (5, 4, 1), batch=1)
    inputs = [numbers(6, HEADS, 21, 16).detach()[order] for _ in range(3)]
    inputs[0].requires_grad_()
    out = attend(*inputs, term, backend="triton")
    return torch.autograd.grad(out.sin().sum(), table)[0]


def test_the_order_of_additions(monkeypatch):
    monkeypatch.setattr(run, "TABLE_PROGRAMS", 10**6)
    monkeypatch.setattr(run, "TABLE_IMAGES", 1)  # each by another program: only atomics add them
    orders = torch.arange(6), torch.tensor([3, 5, 1, 0, 4, 2])
    assert not torch.equal(*map(tables_of_permuted_images, orders))
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(*map(tables_of_permuted_images, orders))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("broken", ["query", "value", "gradient"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(broken, number):
    q, _, v = inputs = qkv(12)
    (term,), (table,) = random_terms("static", (3, 4, 0))
    factor = torch.ones(1, device=DEVICE)
    with torch.no_grad():
        {"query": q, "value": v, "gradient": factor}[broken].view(-1)[0] = number
    out = attend(*inputs, term, backend="triton")
    (grad,) = torch.autograd.grad((out * factor).sum(), table)
    assert not grad.isfinite().all()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_reaches_the_gradient_of_a_value_table():
    q, _, _ = inputs = qkv(12)
    (first, _), leaves = random_terms("value", (3, 4, 0))
    with torch.no_grad():
        q.view(-1)[0] = math.nan
    out = attend(*inputs, first, backend="triton")
    (grad,) = torch.autograd.grad(out[1].sum() + out[0].sum(), leaves[0])
    assert grad.isnan().any()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_no_unit_fits_what_is_not_finite(number):
    read = read_call(call_of(qkv(12), random_terms("static", (3, 4, 0))[0]))
    out_grad, delta = numbers(BATCH, HEADS, 12, 20).detach(), numbers(BATCH, HEADS, 12).detach()
    assert run._units(read, out_grad, None, delta).isfinite()
    delta[0, 0, 0] = number
    assert run._units(read, out_grad, None, delta).isnan()


@pytest.mark.usefixtures("deterministic")
def test_deterministic_gradients_of_zero():
    terms, leaves = random_terms("value and all", (3, 4, 0))
    out = attend(*qkv(12), terms, backend="triton")
    for grad in torch.autograd.grad(out, leaves, torch.zeros_like(out)):
        assert not grad.any()


@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
@pytest.mark.parametrize("fixed", [False, True])
def test_cuda_many_runs_agree(fixed):
    """A race would change more than the order of additions does, which may turn a last bit."""
    terms, leaves = random_terms("value and all", (16, 15, 1))
    inputs = qkv(241, dtype=torch.bfloat16)
    torch.use_deterministic_algorithms(fixed)
    try:
        runs = []
        for _ in range(20):
            out = attend(*inputs, terms, backend="triton")
            runs.append([out, *gradients(out, [*inputs, *leaves])])
    finally:
        torch.use_deterministic_algorithms(False)
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            if fixed:
                assert torch.equal(one, two)
            else:
                apart = max(64 * EPS, 2 * torch.finfo(one.dtype).eps) * one.abs().max()
                assert (one - two).abs().max() <= apart
