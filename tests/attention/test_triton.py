"""The fused kernels against the reference in float64: on CUDA, or else in Triton's interpreter."""

import math

import golden_cases
import oracles
import pytest
import tiny_vit
import torch
import torch.nn.functional as F
from random_calls import KINDS, MASKS, mask_of, random_index, terms_of

import posenc
from posenc import TokenLayout, attend, explain
from posenc.attention.backends import triton
from posenc.attention.call import AttentionCall
from posenc.attention.kernels import blocks, memory, operands, ops
from posenc.attention.kernels.blocks import Blocks
from posenc.attention.kernels.operands import read_call
from posenc.functional.buckets import irpe_index
from posenc.terms import DenseBias, LookupBias, LowRankBias, ValueLookup

run = pytest.importorskip("posenc.attention.kernels.run", exc_type=ImportError)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, HEADS = 2, 3
LAYOUTS = [(7, 5, 0), (7, 5, 1), (9, 4, 5), (1, 6, 2), (4, 1, 0)]
VALUE_KINDS = [*KINDS[1:], "value", "value and all"]
EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """What a kernel does not write is NaN."""
    for module in (memory, run):
        monkeypatch.setattr(module, "empty", poisoned(memory.empty))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several of them in each direction, wider than high."""
    if DEVICE == "cpu":
        set_tiles(monkeypatch, 16, 32)


def poisoned(empty):
    def fill(*args, **options):
        result = empty(*args, **options)
        return result.fill_(math.nan) if result.is_floating_point() else result

    return fill


def set_tiles(monkeypatch, rows, columns):
    monkeypatch.setattr(blocks, "candidates", lambda *_: (Blocks(rows, columns, 4, 1),))
    monkeypatch.setattr(blocks, "_found", {})


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


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
    for name, got, want in zip(names, ours, theirs, strict=True):
        assert want.abs().max() > 1e-3, name
        error = (got.double() - want).abs().max() / want.abs().max().clamp(min=1)
        assert error <= tolerance, (name, error.item())
    return out


# Terms


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_equals_the_reference(kind, layout):
    inputs = qkv(TokenLayout(*layout).num_tokens)
    assert_equal_to_reference(inputs, *random_terms(kind, layout))


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("columns", [16, 64])
def test_any_size_of_tiles(rows, columns, monkeypatch):
    set_tiles(monkeypatch, rows, columns)
    assert_equal_to_reference(qkv(41), *random_terms("value and all", (9, 4, 5)))


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("encoding", ["swin", "irpe", "irpe qkv"])
def test_as_many_tokens_as_a_vit_has(encoding, prefix, monkeypatch):
    set_tiles(monkeypatch, 64, 64)
    layout = TokenLayout(14, 14, prefix)
    name, on = (*encoding.split(), "k")[:2]
    module = posenc.create_encoding(
        name, layout=layout, num_heads=2, head_dim=16, **({"on": on} if name == "irpe" else {})
    ).to(DEVICE)
    oracles.randomise(module, 0, 0.5)
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


# Masks


@pytest.mark.parametrize("axes", MASKS)
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("kind", [None, "static", "value and all"])
def test_masks(kind, axes, boolean):
    terms, leaves = random_terms(kind, (2, 3, 1)) if kind else ([], [])
    mask = mask_of(axes, 7, boolean, torch.float32).detach().to(DEVICE)
    out = assert_equal_to_reference(qkv(7), terms, leaves, attn_mask=mask, scale=0.7)
    if axes[-2] == "N":
        assert not out[:, :, 2].any()
        assert out[:, :, 0].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_mask_of_another_dtype(dtype):
    mask = torch.randn(7, 7).to(DEVICE, dtype)
    assert_equal_to_reference(qkv(7), *random_terms("static", (2, 3, 1)), attn_mask=mask)


@pytest.mark.parametrize("tiles", [(16, 32), (32, 16)])
@pytest.mark.parametrize("sizes", [(40, 40), (20, 50), (50, 20)])
@pytest.mark.parametrize("causal", [False, True])
def test_without_terms(sizes, causal, tiles, monkeypatch):
    """Cross attention and causal attention as in SDPA."""
    set_tiles(monkeypatch, *tiles)
    queries, keys = sizes
    q, k, v = numbers(2, 3, queries, 16), numbers(2, 3, keys, 16), numbers(2, 3, keys, 24)
    out = attend(q, k, v, is_causal=causal, backend="triton")
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*exact, is_causal=causal)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients(out, (q, k, v)), gradients(expected, exact), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_a_dense_bias_and_a_mask_together():
    terms, leaves = random_terms("all", (2, 3, 1))
    dense = [DenseBias(torch.randn(1, HEADS, 7, 7, device=DEVICE)) for _ in range(2)]
    mask = torch.randn(7, 7, device=DEVICE)
    assert_equal_to_reference(qkv(7), [*terms, *dense], leaves, attn_mask=mask)
    keep = mask > 0
    keep[:, 0] = True
    assert_equal_to_reference(qkv(7), [*terms, *dense], leaves, attn_mask=keep)


# Shapes


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


# 16 bits


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", VALUE_KINDS)
def test_16_bits(kind, dtype):
    """Rounded factors: a few eps of the largest entry."""
    terms, leaves = random_terms(kind, (7, 5, 1))
    inputs = qkv(36, dtype=dtype)
    assert_equal_to_reference(inputs, terms, leaves, tolerance=8 * torch.finfo(dtype).eps)


def gradient_of_alpha(backend, precision, dtype):
    """Squared distances between rows as factors, inputs rounded to `dtype`."""
    torch.manual_seed(1)
    y = torch.arange(81, device=DEVICE) // 9 - 4.0
    alpha = torch.tensor(6.0, device=DEVICE, requires_grad=True)
    left = torch.stack([2 * y, -torch.ones_like(y)], -1)[None, None]
    right = alpha * torch.stack([y, y * y], -1)[None, None]
    inputs = [x.to(precision) for x in qkv(81, dtype=dtype)]
    out = attend(*inputs, LowRankBias(left, right, wide=True), backend=backend)
    return gradients(out, [alpha])[0].double()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wide_factors_train_in_16_bits(dtype, monkeypatch):
    """`lowrank` refuses to."""
    exact = gradient_of_alpha("reference", torch.float64, dtype)
    assert abs(gradient_of_alpha("triton", dtype, dtype) / exact - 1) < 4 * torch.finfo(dtype).eps
    monkeypatch.setattr(operands, "_has_wide_factors", lambda call: False)
    with_rounded_weights = gradient_of_alpha("triton", dtype, dtype)
    assert abs(with_rounded_weights / exact - 1) > 20 * torch.finfo(dtype).eps


def test_wide_factors_and_value_tables_train_in_16_bits():
    layout = (5, 4, 1)
    (table,), leaves = random_terms("value", layout)[0][:1], []
    left, right = (numbers(1, HEADS, 21, 3) for _ in range(2))
    terms, leaves = [table, LowRankBias(left, right, wide=True)], [table.table, left, right]
    eps = torch.finfo(torch.float16).eps
    assert_equal_to_reference(qkv(21, dtype=torch.float16), terms, leaves, tolerance=8 * eps)


# Dropout


def dropout_factors(tokens, p, seed, **options):
    """Of uniform attention, with the identity as values."""
    zeros = torch.zeros(BATCH, HEADS, tokens, 16, device=DEVICE)
    identity = torch.eye(tokens, device=DEVICE).expand(BATCH, HEADS, -1, -1)
    torch.manual_seed(seed)
    out = attend(zeros, zeros, identity, dropout_p=p, backend="triton", **options)
    return out * tokens


def test_dropout_statistics():
    p = 0.3
    factors = dropout_factors(64, p, seed=0)
    count = factors.numel()
    kept = factors > 0.5
    torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], 1 / (1 - p)))
    deviation = math.sqrt(p * (1 - p) / count)
    assert abs(kept.double().mean() - (1 - p)) < 4 * deviation
    pairs = kept.flatten(0, 1).double().flatten(1) - (1 - p)
    assert (pairs @ pairs.T / pairs.shape[1]).fill_diagonal_(0).abs().max() < 4 * deviation * 3
    assert not torch.equal(kept[..., 0], kept[..., 1])


def test_dropout_repeats_with_the_seed(monkeypatch):
    one = dropout_factors(20, 0.4, seed=1)
    assert not torch.equal(one, dropout_factors(20, 0.4, seed=2))
    if DEVICE == "cpu":
        set_tiles(monkeypatch, 32, 16)  # it does not depend on the tiles
    torch.testing.assert_close(one, dropout_factors(20, 0.4, seed=1))


@pytest.mark.parametrize("kind", ["static", "value and all"])
def test_dropout_drops_the_same_in_backward(kind):
    layout, p = (5, 4, 1), 0.4
    terms, leaves = random_terms(kind, layout)
    exact_terms, exact_leaves, exact = in_float64(terms, leaves, inputs := qkv(21))
    factors = dropout_factors(21, p, seed=3).double()
    factors = (factors > 0.5) / (1 - p)  # without rounding
    torch.manual_seed(3)
    out = attend(*inputs, terms, dropout_p=p, backend="triton")
    q, k, v = exact
    scores = q @ k.transpose(-2, -1) * 16**-0.5
    biases = [term.dense() for term in exact_terms if not isinstance(term, ValueLookup)]
    attention = (scores + sum(biases)).softmax(-1) * factors
    expected = attention @ v
    for term in exact_terms:
        if isinstance(term, ValueLookup):
            expected = expected + term.apply(attention)
    ours = [out, *gradients(out, [*inputs, *leaves])]
    theirs = [expected, *gradients(expected, [*exact, *exact_leaves])]
    for got, want in zip(ours, theirs, strict=True):
        assert (got - want).abs().max() <= 128 * EPS * want.abs().max().clamp(min=1)


def test_dropout_of_more_keys_than_queries():
    """Backward, by keys, drops what forward dropped by queries."""
    q, k = numbers(BATCH, HEADS, 20, 16), numbers(BATCH, HEADS, 50, 16)
    v = torch.eye(50, device=DEVICE).expand(BATCH, HEADS, -1, -1).clone().requires_grad_()
    out = attend(q, k, v, dropout_p=0.4, backend="triton")  # the weights themselves
    kept = out > 0
    same = (kept[:, :, :-1, 20:] == kept[:, :, 1:, :-20]).double().mean()
    assert abs(same - (0.4**2 + 0.6**2)) < 0.1  # no two pairs share a number
    cotangent = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, v, cotangent)
    torch.testing.assert_close(grad, out.detach().transpose(-2, -1) @ cotangent)


def test_no_dropout_uses_no_random_numbers():
    terms, _ = random_terms("static", (2, 3, 1))
    inputs = qkv(7)
    before = torch.get_rng_state()
    attend(*inputs, terms, backend="triton")
    assert torch.equal(torch.get_rng_state(), before)


# Sums in a fixed order


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
    monkeypatch.setattr(run, "TABLE_PROGRAMS", 10**6)  # an image each: only atomics add them
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
    """A race would change more than the order of additions does."""
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
                assert (one - two).abs().max() <= 64 * EPS * one.abs().max()


# The operator


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning")
def test_the_operator_is_declared_truly():
    """Schema, shapes of fake tensors, gradients: as PyTorch checks them."""
    terms, _ = random_terms("value and all", (2, 3, 1))
    leaves = (
        x.detach().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x
        for x in read_call(call_of(qkv(7), terms))
    )
    torch.library.opcheck(ops.fused_attention, tuple(leaves))


@pytest.mark.parametrize("boolean", [None, True, False])
@pytest.mark.parametrize("kind", ["static", "value and all"])
def test_inside_a_compiled_model(kind, boolean):
    torch._dynamo.reset()
    layout = (3, 4, 1)
    mask = None
    if boolean is not None:
        mask = mask_of("B1NN", 13, boolean, torch.float32).detach().to(DEVICE)
    terms, leaves = random_terms(kind, layout)
    inputs = qkv(13)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def model(*inputs):
        return attend(*inputs, terms, attn_mask=mask, backend="triton") * 2

    eager = attend(*inputs, terms, attn_mask=mask, backend="triton") * 2
    compiled = model(*inputs)
    torch.testing.assert_close(compiled, eager)
    grads = (gradients(x, [*inputs, *leaves]) for x in (compiled, eager))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


def test_a_compiled_patched_vit():
    """The whole model in one graph, trained."""
    torch._dynamo.reset()
    model = tiny_vit.vit(global_pool="avg", dtype=torch.float32).to(DEVICE)
    posenc.patch_model(model, "irpe", on="qkv", backend="triton")
    for seed, module in enumerate(posenc.patched_encodings(model).values()):
        oracles.randomise(module, seed, 0.3)
    images = tiny_vit.images(model, 2).to(DEVICE)
    expected = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    grads = torch.autograd.grad(compiled(images).square().sum(), list(model.parameters()))
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_data_parallel_training():
    """Gradients reach every parameter, in the buckets that DDP sends."""
    model = tiny_vit.vit(global_pool="avg", dtype=torch.float32).to(DEVICE)
    posenc.patch_model(model, "irpe", on="qkv", backend="triton")
    for seed, module in enumerate(posenc.patched_encodings(model).values()):
        oracles.randomise(module, seed, 0.3)
    images = tiny_vit.images(model, 2).to(DEVICE)
    alone = torch.autograd.grad(model(images).square().sum(), list(model.parameters()))
    torch.nn.parallel.DistributedDataParallel(model)(images).square().sum().backward()
    for parameter, expected in zip(model.parameters(), alone, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inside", ["forward", "both"])
def test_autocast(inside):
    terms, leaves = random_terms("value and all", (3, 4, 1))
    inputs = qkv(13)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = attend(*inputs, terms, backend="triton")
    assert out.dtype == torch.bfloat16
    exact = attend(*inputs, terms, backend="reference")
    with torch.autocast(DEVICE, torch.bfloat16, enabled=inside == "both"):
        grads = gradients(out, [*inputs, *leaves])
    for got, want in zip(grads, gradients(exact, [*inputs, *leaves]), strict=True):
        assert got.dtype == torch.float32
        assert (got - want).abs().max() <= 8 * 2**-7 * want.abs().max().clamp(min=1)


def test_under_activation_checkpointing():
    layout = TokenLayout(3, 4, 1)
    module = posenc.create_encoding("irpe", layout=layout, num_heads=HEADS, head_dim=16, on="qkv")
    module.to(DEVICE)
    oracles.randomise(module, 0, 0.5)
    inputs = qkv(13, value_dim=16)

    def block(q, k, v):
        return attend(q, k, v, module(q, k, layout), dropout_p=0.2, backend="triton")

    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        if checkpointed:
            out = torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)
        else:
            out = block(*inputs)
        results.append(gradients(out, [*inputs, *module.parameters()]))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_nothing_of_n_x_n_is_made(monkeypatch):
    """Neither kept for backward nor written by a kernel."""
    tokens, sizes = 121, []

    def note(empty):
        def fill(*args, **options):
            result = empty(*args, **options)
            sizes.append(result.numel())
            return result

        return fill

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    for module in (memory, run):
        monkeypatch.setattr(module, "empty", note(module.empty))
    if DEVICE == "cpu":
        set_tiles(monkeypatch, 64, 64)
    layout = TokenLayout(12, 10, 1)
    module = posenc.create_encoding("irpe", layout=layout, num_heads=2, head_dim=16, on="qkv")
    module.to(DEVICE)
    q, k, v = (numbers(1, 2, tokens, 16) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = attend(q, k, v, module(q, k, layout), backend="triton")
    out.sum().backward()
    assert max(sizes) <= 2 * tokens * 50  # that of the lookup: tokens and buckets


def test_tables_are_expanded_once_in_eval():
    layout = TokenLayout(3, 4, 1)
    module = posenc.create_encoding("swin", layout=layout, num_heads=HEADS, head_dim=16)
    oracles.randomise(module.to(DEVICE).eval(), 0, 0.5)
    q, k, v = (x.detach() for x in qkv(13))
    with torch.no_grad():
        for _ in range(2):
            (term,) = module(q, k, layout)
            attend(q, k, v, term, backend="triton")
    assert term.memo is not None
    kept = term.memo.get("slots")
    assert read_call(call_of((q, k, v), [term])).table is kept


# The choice on devices


@pytest.fixture
def _on_a_device(monkeypatch):
    """Tensors without contents stand for those of a GPU."""
    monkeypatch.setattr(triton, "_rejects_device", lambda call: None)


def choice(encoding, tokens_wide=14, train=True, dtype=torch.bfloat16, **options):
    layout = TokenLayout(14, tokens_wide, 1)
    module = posenc.create_encoding(encoding, layout=layout, num_heads=6, head_dim=64, **options)
    module.to("meta").train(train).requires_grad_(train)
    q = torch.empty(8, 6, layout.num_tokens, 64, dtype=dtype, device="meta")
    return explain(q, q, q, module(q.float(), q.float(), layout))


@pytest.mark.usefixtures("_on_a_device")
@pytest.mark.parametrize(
    ("expected", "encoding", "options"),
    [
        ("triton", "swin", {}),
        ("sdpa", "swin", {"train": False}),
        ("triton", "swin", {"train": False, "tokens_wide": 100}),  # a mask of 47 MB
        ("triton", "irpe", {}),
        ("triton", "irpe", {"train": False}),
        ("triton", "irpe", {"train": False, "on": "qkv"}),
        ("triton", "quadratic", {}),
        ("lowrank", "human_part", {}),
        ("sdpa", "swin", {"dtype": torch.float64}),
    ],
)
def test_what_auto_chooses_by_estimate(expected, encoding, options):
    explanation = choice(encoding, **options)
    assert explanation.choice == expected
    if expected == "triton":
        assert "an estimate, not measured on a device" in explanation.why


@pytest.mark.usefixtures("_on_a_device")
@pytest.mark.parametrize("batch", [1, 8])
def test_a_dense_bias_is_a_mask_already(batch):
    q = torch.empty(8, 6, 2048, 64, device="meta")
    assert (
        explain(q, q, q, DenseBias(torch.empty(batch, 6, 2048, 2048, device="meta"))).choice
        == "sdpa"
    )


# Reasons


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
