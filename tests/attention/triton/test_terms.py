"""Every kind of term in the fused kernels against the reference."""

import golden_cases
import oracles
import pytest
import torch
from kernel_calls import (
    BATCH,
    DEVICE,
    EPS,
    HEADS,
    LAYOUTS,
    VALUE_KINDS,
    assert_equal_to_reference,
    gradients,
    numbers,
    qkv,
    random_terms,
    run,
    set_tiles,
)

import posenc
from posenc import TokenLayout, attend
from posenc.functional.buckets import irpe_index
from posenc.terms import LookupBias


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_equals_the_reference(kind, layout):
    inputs = qkv(TokenLayout(*layout).num_tokens)
    assert_equal_to_reference(inputs, *random_terms(kind, layout))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("columns", [16, 64])
def test_any_size_of_tiles(rows, columns, monkeypatch):
    set_tiles(monkeypatch, rows, columns)
    assert_equal_to_reference(qkv(41), *random_terms("value and all", (9, 4, 5)))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("encoding", ["swin", "irpe", "irpe qkv"])
def test_as_many_tokens_as_a_vit_has(encoding, prefix, monkeypatch):
    set_tiles(monkeypatch, 64, 64)
    layout = TokenLayout(14, 14, prefix)
    name, on = (*encoding.split(), "k")[:2]
    module = posenc.create_encoding(
        name, layout=layout, num_heads=2, head_dim=16, **({"on": on} if name == "irpe" else {})
    ).to(DEVICE)
    oracles.randomize(module, 0, 0.5)
    q, k, v = (numbers(1, 2, layout.num_tokens, 16) for _ in range(3))
    out = attend(q, k, v, module(q, k, layout), backend="triton")
    grads = gradients(out, [q, k, v, *module.parameters()])
    module.double()
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    exact = attend(q, k, v, module(q, k, layout), backend="reference")
    expected = gradients(exact, [q, k, v, *module.parameters()])
    for got, want in zip([out, *grads], [exact, *expected], strict=True):
        assert (got.double() - want).abs().max() <= 128 * EPS * want.abs().max().clamp(min=1)


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, HEADS), (BATCH, 1)])
def test_terms_shared_by_images_or_heads(batch, heads):
    inputs = qkv(13)
    terms, leaves = random_terms("value and all", (3, 4, 1), batch=batch, heads=heads)
    if heads == 1:
        terms, leaves = terms[:-1], leaves[:-1]  # its table is of one head or all
    assert_equal_to_reference(inputs, terms, leaves, scale=0.7)


def test_several_terms_of_a_kind():
    layout = (3, 4, 1)
    calls = [random_terms("value and all", layout, batch=b, heads=h) for b, h in [(1, 3), (2, 3)]]
    terms, leaves = ([*one, *two] for one, two in zip(*calls, strict=True))
    assert_equal_to_reference(qkv(13), terms, leaves)


def test_terms_may_share_a_tensor():
    (term,), (table,) = random_terms("static", (2, 3, 0))
    assert_equal_to_reference(qkv(6), [term, term, LookupBias(table, term.index.T)], [table])


@pytest.mark.parametrize("images", [1, 2, 3])
def test_images_are_shared_among_programs(images, monkeypatch):
    """Of the kernel for static tables, in groups that need not be equal."""
    monkeypatch.setattr(run, "TABLE_PROGRAMS", images)
    shape = (5, 1, 12, 16)
    inputs = [numbers(*shape) for _ in range(3)]
    assert_equal_to_reference(inputs, *random_terms("static", (3, 4, 0), batch=1, heads=1))


@pytest.mark.parametrize(
    ("size", "by_token", "by_bucket"), [(14, 11.3, 9.6), (24, 10.6, 6.3), (32, 10.1, 5.1)]
)
def test_lookups_with_tokens_side_by_side_read_fewer_sectors(size, by_token, by_bucket):
    """What docs/kernels.md says: distinct 32 bytes that a warp reads of iRPE's lookup.

    A warp holds 8 queries and 4 pairs of keys of a tile in a register each.
    """
    index = irpe_index(TokenLayout(size, size, 1), "product", 1.9, "shared")
    buckets, tokens = index.dense(), index.layout.num_tokens // 8 * 8
    thread = torch.arange(32)
    counts = {"by token": [], "by bucket": []}
    for start in torch.cartesian_prod(*2 * [torch.arange(0, tokens, 8)]):
        i, j = start[0] + thread // 4, start[1] + thread % 4 * 2
        entries = {
            "by token": i * index.num_buckets + buckets[i, j],
            "by bucket": buckets[i, j] * index.layout.num_tokens + i,
        }
        for name, entry in entries.items():
            counts[name].append(len(set((entry // 8).tolist())))
    means = [sum(count) / len(count) for count in counts.values()]
    assert means == pytest.approx([by_token, by_bucket], abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_cases.names("irpe_attn"))
def test_attention_equals_the_published_code(name):
    golden = golden_cases.case(name)
    module, layout = golden_cases.irpe_of(golden)
    module.to(DEVICE, torch.float32)
    scale = golden.hyperparameters["scale"]
    q, k, v = (golden.leaf(x).detach().to(DEVICE, torch.float32).requires_grad_() for x in "qkv")
    out = attend(q, k, v, module(q, k, layout, scale=scale), scale=scale, backend="triton")
    tables = dict(module.named_parameters())
    grads = torch.autograd.grad(
        out, [q, k, v, *tables.values()], golden["grad_out"].to(DEVICE, torch.float32)
    )
    expected = [golden[f"grad_{name}"] for name in ("q", "k", "v", *tables)]
    for got, want in zip([out, *grads], [golden["out"], *expected], strict=True):
        error = (got.cpu().double() - want).abs().max()
        assert error <= 64 * EPS * want.abs().max().clamp(min=1)
