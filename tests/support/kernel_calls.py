"""Calls of the fused kernels against the reference in float64."""

import math

import pytest
import torch
from random_calls import KINDS, random_index, terms_of

import posenc
from posenc import TokenLayout, attend
from posenc.attention.call import AttentionCall
from posenc.attention.kernels import blocks, memory
from posenc.attention.kernels.blocks import Blocks
from posenc.terms import DenseBias, LookupBias, LowRankBias, ValueLookup

run = pytest.importorskip("posenc.attention.kernels.run", exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, HEADS = 2, 3
LAYOUTS = [(7, 5, 0), (7, 5, 1), (9, 4, 5), (1, 6, 2), (4, 1, 0)]
VALUE_KINDS = [*KINDS[1:], "value", "value and all"]
EPS = torch.finfo(torch.float32).eps


def set_tiles(monkeypatch, rows, columns):
    monkeypatch.setattr(blocks, "candidates", lambda *_: (Blocks(rows, columns, 4, 1),))
    monkeypatch.setattr(blocks, "_found", {})


def poison(monkeypatch):
    """What a kernel does not write is NaN."""
    for module in (memory, run):
        monkeypatch.setattr(module, "empty", _poisoned(memory.empty))


def _poisoned(empty):
    def fill(*args, **options):
        result = empty(*args, **options)
        return result.fill_(math.nan) if result.is_floating_point() else result

    return fill


def numbers(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64).to(DEVICE, dtype).requires_grad_()


def qkv(tokens, head_dim=16, value_dim=20, dtype=torch.float32):
    shape = (BATCH, HEADS, tokens)
    return [numbers(*shape, width, dtype=dtype) for width in (head_dim, head_dim, value_dim)]


def random_terms(kind, layout, value_dim=20, batch=BATCH, heads=HEADS):
    """Terms and their leaves; DenseBias is not trained."""
    index = random_index(TokenLayout(*layout))
    biases = "all" if kind == "value and all" else kind
    terms, leaves = terms_of(biases, index, batch, heads, device=DEVICE, dtype=torch.float32)
    for term in terms:
        if isinstance(term, DenseBias):
            term.bias.requires_grad_(False)
    if "value" in kind:
        tables = [numbers(1, index.num_buckets, value_dim), numbers(heads, 3, value_dim)]
        other = posenc.pairs.PairIndex(
            index.layout, index.buckets % 3, 3, (0, 2, 1) if index.layout.prefix else None
        )
        indices = (index.T, other)
        terms += [ValueLookup(*pair) for pair in zip(tables, indices, strict=True)]
        leaves += tables
    return terms, [leaf for leaf in leaves if leaf.requires_grad]


def call_of(inputs, terms):
    return AttentionCall(*inputs, tuple(terms), None, 0.0, False, None, False)


def gradients(out, leaves):
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).sin() + 0.1
    return torch.autograd.grad(out, leaves, cotangent.view(out.shape).to(out))


def in_float64(terms, leaves, inputs):
    """The same numbers, to differentiate again."""
    twins = {leaf: leaf.detach().double().requires_grad_() for leaf in [*inputs, *leaves]}

    def twin(value):
        if isinstance(value, LookupBias):
            return LookupBias(twin(value.lookup), value.index, value.side)
        if isinstance(value, LowRankBias):
            return LowRankBias(twin(value.left), twin(value.right), value.wide)
        if isinstance(value, ValueLookup):
            return ValueLookup(twin(value.table), value.index)
        if isinstance(value, DenseBias):
            return DenseBias(twin(value.bias))
        return twins.get(value, value.detach().double())

    return [twin(term) for term in terms], [twins[x] for x in leaves], [twins[x] for x in inputs]


def assert_equal_to_reference(inputs, terms, leaves=(), tolerance=64 * EPS, **options):
    """Output and every gradient, relative to the largest entry."""
    out, errors = compare_to_reference(inputs, terms, leaves, **options)
    for name, error in errors.items():
        assert error <= tolerance, (name, error)
    return out


def compare_to_reference(inputs, terms, leaves=(), **options):
    """Output, and errors by name: of the output and every gradient, over the largest entry."""
    exact_terms, exact_leaves, exact_inputs = in_float64(terms, leaves, inputs)
    out = attend(*inputs, terms, backend="triton", **options)
    if options.get("attn_mask") is not None and options["attn_mask"].is_floating_point():
        options["attn_mask"] = options["attn_mask"].double()
    exact = attend(*exact_inputs, exact_terms, backend="reference", **options)
    assert out.dtype == inputs[0].dtype
    assert out.shape == exact.shape
    names = ["out", "query", "key", "value", *(f"leaf {i}" for i in range(len(leaves)))]
    ours = [out, *gradients(out, [*inputs, *leaves])]
    theirs = [exact, *gradients(exact, [*exact_inputs, *exact_leaves])]
    errors = {}
    for name, got, want in zip(names, ours, theirs, strict=True):
        assert want.abs().max() > 1e-3, name
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1)
        errors[name] = error.item()
    return out, errors
