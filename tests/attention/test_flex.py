"""FlexAttention's mathematics on the CPU, uncompiled, and its kernels where there is CUDA."""

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from new_process import run_python
from random_calls import BATCH, DIM, HEADS, KINDS, MASKS, mask_of, qkv, random_index, terms_of
from torch._dynamo.testing import CompileCounterWithBackend

from posenc import TokenLayout, attend, explain
from posenc.attention.backends import flex
from posenc.functional.buckets import swin_index
from posenc.terms import LookupBias, LowRankBias, ValueLookup

LAYOUTS = [(3, 5, 0), (7, 4, 1), (1, 6, 2), (4, 1, 5), (1, 1, 0)]

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:flex_attention called without torch.compile:UserWarning",
    ),
    # Dynamo asks for it with the warning hidden, but not from pytest's filter.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning"),
]


@pytest.fixture
def uncompiled(monkeypatch):
    """`attend(..., backend="flex")` on the CPU, with gradients, which PyTorch forbids in public."""
    monkeypatch.setattr(flex, "_compiled", lambda: torch_flex.flex_attention)
    monkeypatch.setattr(flex, "_rejects_kernel", lambda call: None)
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *tensors: None)


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_same(inputs, terms, leaves, tolerance, **options):
    """Output and gradients, against the reference."""
    results = {}
    for backend in ("flex", "reference"):
        out = attend(*inputs, terms, backend=backend, **options)
        results[backend] = [out, *torch.autograd.grad(out.double().square().sum(), leaves)]
    for got, want in zip(results["flex"], results["reference"], strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    return results["flex"][0]


@pytest.mark.parametrize("layout", [*LAYOUTS, (14, 9, 1)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_buckets_are_those_of_the_dense_map(layout, transposed):
    index = random_index(TokenLayout(*layout))
    index = index.T if transposed else index
    i, j = torch.meshgrid(*2 * [torch.arange(index.layout.num_tokens)], indexing="ij")
    bucket = flex._bucket(index, torch.device("cpu"))
    assert torch.equal(bucket(i, j), index.dense())


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference(kind, layout):
    index = random_index(TokenLayout(*layout))
    inputs = qkv(index.layout.num_tokens)
    terms, leaves = terms_of(kind, index)
    assert_same(inputs, terms, [*inputs, *leaves], 1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, HEADS), (BATCH, 1)])
def test_terms_shared_by_images_or_heads(batch, heads):
    index = random_index(TokenLayout(3, 4, 1))
    inputs = qkv(13)
    terms, leaves = terms_of("all", index, batch, heads)
    assert_same(inputs, terms, [*inputs, *leaves], 1e-12, scale=0.7)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("axes", MASKS)
@pytest.mark.parametrize("boolean", [True, False])
def test_masks(axes, boolean):
    index = random_index(TokenLayout(2, 3, 1))
    inputs = qkv(7)
    terms, leaves = terms_of("static", index)
    mask = mask_of(axes, 7, boolean)
    leaves = [*inputs, *leaves] + ([] if boolean else [mask])
    out = assert_same(inputs, terms, leaves, 1e-12, attn_mask=mask, scale=0.7)
    if axes[-2] == "N":
        assert torch.equal(out[:, :, 2], torch.zeros_like(out[:, :, 2]))
        assert out[:, :, 0].any()


@pytest.mark.usefixtures("uncompiled")
def test_terms_may_share_a_tensor():
    index = random_index(TokenLayout(2, 3))
    inputs = qkv(6)
    (term,), leaves = terms_of("static", index)
    (table,) = leaves
    assert_same(inputs, [term, term, LookupBias(table, index.T)], [*inputs, table], 1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)]
)
def test_lower_precision(dtype, tolerance):
    """A 16-bit query meets float32 terms, as encodings return them."""
    index = random_index(TokenLayout(3, 4, 1))
    inputs = qkv(13, dtype)
    terms, _ = terms_of("all", index, dtype=torch.float32)
    out = attend(*inputs, terms, backend="flex")
    assert out.dtype == dtype
    exact = attend(*(x.double() for x in inputs), terms, backend="reference")
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


def joint_graphs(module):
    """Graphs inside a backward graph that scatter gradients of captured tensors."""
    scatter = torch.ops.flex_lib.zeros_and_scatter.default
    for inner in module.modules():
        if isinstance(inner, torch.fx.GraphModule):
            nodes = [node for node in inner.graph.nodes if node.target is scatter]
            if nodes:
                yield nodes


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled", "fresh_compiler")
def test_the_kernel_can_differentiate_each_tensor(monkeypatch):
    """Compiled as for the kernel, which refuses a sum of two gradients of one tensor."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    index = random_index(TokenLayout(2, 3, 1))
    inputs = qkv(7)
    terms, leaves = terms_of("all", index)
    terms += [terms[0], terms[1]]  # a tensor of two terms, with and without axes of size 1
    scattered = []

    def backward_compiler(module, example_inputs):
        scattered.extend(node for nodes in joint_graphs(module) for node in nodes)
        return make_boxed_func(module)

    backend = aot_autograd(
        fw_compiler=lambda module, _: make_boxed_func(module), bw_compiler=backward_compiler
    )
    compiled = torch.compile(
        torch_flex.flex_attention, backend=backend, dynamic=False, fullgraph=True
    )
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    assert_same(inputs, terms, [*inputs, *leaves], 1e-12)
    assert len(scattered) == 4 + 2 + 2 * 3  # a tensor each, a column each of low-rank factors
    assert all(user.op == "output" for node in scattered for user in node.users)


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled", "fresh_compiler")
def test_compiles_once_for_each_size(monkeypatch):
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(
        torch_flex.flex_attention, backend=counter, dynamic=False, fullgraph=True
    )
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    for count, layout in enumerate([(2, 3, 1), (3, 3, 0)], start=1):
        for _ in range(3):  # other tensors, other indices, other closures
            index = random_index(TokenLayout(*layout))
            inputs = qkv(index.layout.num_tokens)
            terms, leaves = terms_of("all", index)
            assert_same(inputs, terms, [*inputs, *leaves], 1e-12)
        assert counter.frame_count == count


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled", "fresh_compiler")
def test_inside_a_compiled_model():
    index = random_index(TokenLayout(2, 3, 1))
    inputs = qkv(7)
    terms, _ = terms_of("all", index)

    @torch.compile(backend="eager", fullgraph=True)
    def model(*inputs):
        return attend(*inputs, terms, backend="flex")

    torch.testing.assert_close(model(*inputs), attend(*inputs, terms, backend="reference"))


def cases():
    """Reason -> (query, value, terms, options)."""
    index = swin_index(TokenLayout(2, 3), "none")
    q = torch.randn(BATCH, HEADS, 6, DIM)
    bias = LookupBias(torch.zeros(1, 1, 1, 15), index)
    wide = torch.zeros(1, 1, 6, 17)
    value_term = ValueLookup(torch.zeros(1, 15, DIM), index)
    return {
        "ValueLookup needs the attention": (q, q, [bias, value_term], {}),
        "nothing to add, use sdpa": (q, q, [], {}),
        "no dropout": (q, q, [bias], {"dropout_p": 0.1}),
        "accumulates in float32": (q.double(), q.double(), [bias], {}),
        "head_dim of 16 or more, got 15 and 16": (q[..., :15], q, [bias], {}),
        "head_dim of 16 or more, got 16 and 4": (q, q[..., :4], [bias], {}),
        "34 columns, more than 32": (q, q, 2 * [LowRankBias(wide, wide)], {}),
        "is used on CUDA only, the query is on cpu": (q, q, [bias], {}),
    }


@pytest.mark.parametrize("reason", list(cases()))
@pytest.mark.parametrize("function", [attend, explain])
def test_rejects_with_the_reason(function, reason):
    query, value, terms, options = cases()[reason]
    with pytest.raises(ValueError, match=reason):
        function(query, query, value, terms, backend="flex", **options)
    assert reason in explain(query, query, value, terms, **options).reasons["flex"]


@pytest.mark.parametrize("trained", ["term", "mask"])
def test_rejects_training_where_all_must_be_deterministic(trained):
    q, _, (term,), _ = cases()["is used on CUDA only, the query is on cpu"]
    mask = torch.zeros(6, 6)
    (term.lookup if trained == "term" else mask).requires_grad_()
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ValueError, match="in no fixed order, not deterministically"):
            attend(q, q, q, term, attn_mask=mask, backend="flex")
        with torch.no_grad():
            assert "CUDA only" in explain(q, q, q, term, attn_mask=mask).reasons["flex"]
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_the_import_is_late():
    code = (
        "import sys, torch; before = set(sys.modules); import posenc; "
        "print('torch.nn.attention.flex_attention' in set(sys.modules) - before, "
        "'torch._dynamo' in set(sys.modules) - before)"
    )
    assert run_python(code).split() == ["False", "False"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("layout", [(3, 5, 0), (12, 11, 1), (16, 15, 5)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("mask", [None, True, False], ids=["none", "bool", "float"])
def test_cuda_equals_the_reference(layout, dtype, tolerance, mask):
    index = random_index(TokenLayout(*layout))
    tokens = index.layout.num_tokens
    inputs = qkv(tokens, dtype, "cuda")
    terms, leaves = terms_of("all", index, heads=1, dtype=torch.float32, device="cuda")
    if mask is not None:
        mask = mask_of("B1NN", tokens, mask).detach().cuda()
    leaves = [*inputs, *leaves]
    out = assert_same(inputs, terms, leaves, tolerance, attn_mask=mask, scale=0.7)
    assert explain(*inputs, terms, attn_mask=mask).choice != "flex"
    if mask is not None:
        assert not out[:, :, 2].any()
