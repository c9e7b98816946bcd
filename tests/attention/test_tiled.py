"""Tile by tile equals all at once, forward and in every gradient, for any size of tile."""

import gc
import weakref

import pytest
import timm
import torch
from torch.utils.checkpoint import checkpoint

import posenc
from posenc import TokenLayout, attend, explain, memo, pairs
from posenc.attention.backends import tile_loop, tiled
from posenc.terms import DenseBias

BATCH, HEADS, DIM = 3, 4, 5
CASES = {
    "irpe": {},
    "irpe on=qkv": {"on": "qkv"},
    "irpe on=qkv, tables per head": {"on": "qkv", "share_heads": False},
    "irpe mode=bias": {"mode": "bias", "on": "qk"},
    "irpe method=cross": {"on": "qkv", "method": "cross"},
    "swin": {},
    "quadratic": {},
    "human_part": {"strength": 1.3},
}
# 1 score, some rows, one pair, several heads or images, everything.
SIZES = [1, 60, 250, 900, 10**6]


@pytest.fixture(params=["kept", "computed again"], autouse=True)
def kept(request, monkeypatch):
    """Whether backward gets the attention weights from forward."""
    if request.param == "computed again":
        monkeypatch.setattr(tiled, "KEPT_TOKENS", 0)


@pytest.fixture
def size(request, monkeypatch):
    monkeypatch.setattr(tiled, "CPU_SCORES", request.param / torch.get_num_threads())


def build(case, layout, dtype=torch.float64):
    encoding = posenc.create_encoding(
        case.split()[0], layout=layout, num_heads=HEADS, head_dim=DIM, dtype=dtype, **CASES[case]
    )
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return encoding


def packed_qkv(tokens, batch=BATCH, dtype=torch.float64, requires_grad=True):
    """Views of one projection, as models have them."""
    packed = torch.randn(batch, tokens, 3, HEADS, DIM, dtype=dtype, requires_grad=requires_grad)
    return packed, packed.permute(2, 0, 3, 1, 4).unbind(0)


def results(encoding, packed, qkv, layout, backend, more=(), **options):
    """The output and the gradients of the projection, the parameters and `more`."""
    out = attend(*qkv, encoding(*qkv[:2], layout), backend=backend, **options)
    leaves = [x for x in (packed, *encoding.parameters(), *more) if x.requires_grad]
    return [out, *torch.autograd.grad(out.sin().sum(), leaves, retain_graph=True)]


def assert_equal_to_reference(*args, tolerance=1e-10, **options):
    ours, truth = (results(*args, backend, **options) for backend in ("tiled", "reference"))
    for got, want in zip(ours, truth, strict=True):
        assert want.abs().max() > 1e-6
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("size", SIZES, indirect=True)
@pytest.mark.parametrize("layout", [(3, 5, 0), (7, 2, 1), (2, 5, 2), (3, 3, 5)], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("size")
def test_equals_the_reference(case, layout):
    layout = TokenLayout(*layout)
    packed, qkv = packed_qkv(layout.num_tokens)
    assert_equal_to_reference(build(case, layout), packed, qkv, layout)


@pytest.mark.parametrize("size", SIZES, indirect=True)
@pytest.mark.parametrize("shape", [(9, 9), (1, 1, 1, 9), (BATCH, 1, 9, 9), (HEADS, 1, 9)], ids=str)
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.usefixtures("size")
def test_masks(shape, boolean):
    """A float mask gets its gradient, too."""
    layout = TokenLayout(2, 4, 1)
    packed, qkv = packed_qkv(9)
    if boolean:
        mask = torch.rand(shape) > 0.4
        mask[..., 0] = True
        mask[..., 3:4, :] = shape[-2] == 1  # a fully masked row
        more = ()
    else:
        mask = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        more = (mask,)
    for case in ("irpe on=qkv", "human_part"):
        encoding = build(case, layout)
        assert_equal_to_reference(encoding, packed, qkv, layout, attn_mask=mask, more=more)


def test_odd_value_width_and_scale():
    layout = TokenLayout(3, 4, 1)
    packed, (q, k, _) = packed_qkv(13)
    v = torch.randn(BATCH, HEADS, 13, 7, dtype=torch.float64, requires_grad=True)
    assert_equal_to_reference(
        build("swin", layout), packed, (q, k, v), layout, scale=-0.3, more=(v,)
    )


def test_float32_is_as_exact_as_the_reference():
    layout = TokenLayout(14, 14, 1)
    packed, qkv = packed_qkv(197, batch=2)
    encoding = build("irpe on=qkv", layout)
    exact = results(encoding, packed, qkv, layout, "reference")
    packed32 = packed.detach().float().requires_grad_()
    qkv32 = packed32.permute(2, 0, 3, 1, 4).unbind(0)
    encoding.float()
    errors = {
        backend: [
            (got.double() - want).abs().max().item()
            for got, want in zip(
                results(encoding, packed32, qkv32, layout, backend), exact, strict=True
            )
        ]
        for backend in ("tiled", "reference")
    }
    for ours, theirs in zip(errors["tiled"], errors["reference"], strict=True):
        assert ours <= 3 * theirs


@pytest.mark.parametrize("frozen", ["projection", "encoding", "one table"])
def test_what_needs_no_gradient_gets_none(frozen):
    layout = TokenLayout(3, 4, 1)
    encoding = build("irpe on=qkv", layout)
    packed, qkv = packed_qkv(13, requires_grad=frozen != "projection")
    if frozen == "encoding":
        encoding.requires_grad_(False)
    elif frozen == "one table":
        encoding.table_q.requires_grad_(False)
        encoding.table_v.requires_grad_(False)
    assert_equal_to_reference(encoding, packed, qkv, layout)


def test_without_gradients():
    layout = TokenLayout(3, 4, 1)
    encoding = build("irpe on=qkv", layout)
    _, qkv = packed_qkv(13)
    expected = attend(*qkv, encoding(*qkv[:2], layout), backend="reference").detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = attend(*qkv, encoding(*qkv[:2], layout), backend="tiled")
        torch.testing.assert_close(out, expected)
        assert not out.requires_grad


def saved_numbers(call):
    """How many each tensor has that waits for backward."""
    found = []

    def keep(tensor):
        found.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return found


def test_nothing_as_large_as_the_attention_waits_for_backward(monkeypatch):
    layout = TokenLayout(12, 10, 1)
    _, qkv = packed_qkv(121)
    terms = build("irpe on=qkv", layout)(*qkv[:2], layout)
    weights = BATCH * HEADS * 121 * 121
    saved = {}
    for kept_tokens in (0, 121):
        monkeypatch.setattr(tiled, "KEPT_TOKENS", kept_tokens)
        saved[kept_tokens] = saved_numbers(lambda: attend(*qkv, terms, backend="tiled"))
    assert max(saved[0]) < weights / 2
    assert sum(saved[121]) - sum(saved[0]) == weights


def test_under_activation_checkpointing():
    layout = TokenLayout(3, 4, 1)
    encoding = build("irpe on=qkv", layout)
    packed, qkv = packed_qkv(13)

    def block(*qkv):
        return attend(*qkv, encoding(*qkv[:2], layout), backend="tiled")

    leaves = [packed, *encoding.parameters()]
    plain = torch.autograd.grad(block(*qkv).sin().sum(), leaves)
    _, qkv = packed, packed.permute(2, 0, 3, 1, 4).unbind(0)
    again = checkpoint(block, *qkv, use_reentrant=False)
    for one, other in zip(plain, torch.autograd.grad(again.sin().sum(), leaves), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("keeps", [False, True])
def test_checkpointing_lets_the_tensors_of_terms_go(keeps, monkeypatch):
    if not keeps:
        monkeypatch.setattr(tiled, "KEPT_TOKENS", 0)
    layout = TokenLayout(3, 4, 1)
    encoding = build("irpe on=qkv", layout)
    _, qkv = packed_qkv(13)
    lookups = []

    def block(*qkv):
        terms = encoding(*qkv[:2], layout)
        lookups.append(weakref.ref(terms[0].lookup))
        return attend(*qkv, terms, backend="tiled")

    out = checkpoint(block, *qkv, use_reentrant=False)
    gc.collect()
    assert lookups[0]() is None
    out.sum().backward()


@pytest.mark.parametrize("case", ["irpe on=qkv", "swin", "human_part"])
@pytest.mark.parametrize("inside", ["backward", "both"])
def test_backward_under_autocast(case, inside):
    layout = TokenLayout(3, 4, 1)
    encoding = build(case, layout, torch.float32)
    packed, qkv = packed_qkv(13, dtype=torch.float32)
    grads = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside == "both"):
            loss = attend(*qkv, encoding(*qkv[:2], layout), backend="tiled").float().sin().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            grads.append(
                torch.autograd.grad(loss, [packed, *encoding.parameters()], retain_graph=True)
            )
    for one, other in zip(*grads, strict=True):  # that of the encoding itself runs in 16 bit
        assert (one - other).abs().max() <= 2e-2 * one.abs().max()


def test_another_number_of_threads_in_backward():
    layout = TokenLayout(3, 4, 1)
    encoding = build("irpe on=qkv", layout)
    packed, qkv = packed_qkv(13)
    threads = torch.get_num_threads()
    loss = attend(*qkv, encoding(*qkv[:2], layout), backend="tiled").sin().sum()
    once = torch.autograd.grad(loss, packed, retain_graph=True)[0]
    try:
        torch.set_num_threads(threads + 1)
        assert torch.equal(torch.autograd.grad(loss, packed)[0], once)
    finally:
        torch.set_num_threads(threads)


def test_an_empty_batch():
    layout = TokenLayout(3, 4, 1)
    encoding = build("irpe on=qkv", layout)
    _, qkv = packed_qkv(13, batch=0)
    out = attend(*qkv, encoding(*qkv[:2], layout), backend="tiled")
    assert out.shape == (0, HEADS, 13, DIM)
    out.sum().backward()
    assert not encoding.table_k.grad.any()


def test_rows_that_biases_alone_mask_are_zero():
    q = torch.randn(2, HEADS, 6, DIM, requires_grad=True)
    bias = torch.randn(1, 1, 6, 6)
    bias[..., 2, :] = -torch.inf
    bias.requires_grad_()
    for backend in ("tiled", "reference", "sdpa"):
        out = attend(q, q, q, DenseBias(bias), backend=backend)
        assert not out[:, :, 2].any()
        assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), [q, bias]))


def test_a_mask_made_in_inference_mode():
    with torch.inference_mode():
        mask = torch.ones(6, 6).tril().bool()
    q = torch.randn(2, HEADS, 6, DIM, requires_grad=True)
    bias = torch.zeros(1, 1, 6, 6, requires_grad=True)
    attend(q, q, q, DenseBias(bias), attn_mask=mask, backend="tiled").sum().backward()


def test_more_buckets_than_tokens():
    layout = TokenLayout(3, 4)
    encoding = posenc.IRPE(layout, HEADS, DIM, on="v", ratio=9.0, dtype=torch.float64)
    with torch.no_grad():
        encoding.table_v.normal_()
    packed, qkv = packed_qkv(12)
    assert encoding.table_v.shape[1] > 12
    assert_equal_to_reference(encoding, packed, qkv, layout)


def test_large_maps_are_computed_in_blocks(monkeypatch):
    """As small ones, which are remembered whole."""
    monkeypatch.setattr(tiled, "CPU_SCORES", 50)
    monkeypatch.setattr(pairs, "REMEMBERED_PAIRS", 0)
    memo.clear_cache()
    layout = TokenLayout(3, 5, 2)
    packed, qkv = packed_qkv(17)
    for case in ("irpe on=qkv", "irpe method=cross", "swin"):
        assert_equal_to_reference(build(case, layout), packed, qkv, layout)


def test_the_result_may_be_changed_in_place():
    layout = TokenLayout(3, 4, 1)
    _, qkv = packed_qkv(13)
    out = attend(*qkv, build("swin", layout)(*qkv[:2], layout), backend="tiled")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.transpose(1, 2).reshape(BATCH, 13, -1).mul_(2).sum().backward()
    with torch.no_grad():
        attend(*qkv, build("swin", layout)(*qkv[:2], layout), backend="tiled").mul_(2)


def test_a_second_derivative_is_refused():
    """Also by `torch.autograd.grad`, which runs only what leads to the tensors it is asked for."""
    layout = TokenLayout(2, 3)
    _, (q, k, v) = packed_qkv(6)
    encoding = build("swin", layout)
    (table,) = encoding.parameters()
    out = attend(q, k, v, encoding(q, k, layout), backend="tiled")
    inputs = (q, k, v, table)
    grads = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
    for grad in grads:
        with pytest.raises(RuntimeError, match=r"has no second derivative: .*\"reference\"\)"):
            grad.sum().backward(retain_graph=True)
        for source in inputs:
            with pytest.raises(RuntimeError, match="has no second derivative"):
                torch.autograd.grad(grad.sum(), source, retain_graph=True)


def test_inputs_changed_before_backward_are_noticed():
    layout = TokenLayout(2, 3)
    mask = torch.zeros(6, 6, dtype=torch.float64)
    _, (q, k, v) = packed_qkv(6)
    terms = build("swin", layout)(q, k, layout)
    out = attend(q, k, v, terms, attn_mask=mask, backend="tiled")
    mask.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_rejects_with_the_reason():
    layout = TokenLayout(2, 3)
    q = torch.randn(1, HEADS, 6, DIM)
    bias = DenseBias(torch.zeros(1, 1, 6, 6))
    with pytest.raises(ValueError, match="no term"):
        attend(q, q, q, backend="tiled")
    with pytest.raises(ValueError, match="could not drop the same"):
        attend(q, q, q, bias, dropout_p=0.1, backend="tiled")
    with pytest.raises(ValueError, match=r"for eager mode and torch\.compile"):
        torch.vmap(lambda x: attend(x, x, x, bias, backend="tiled"))(q[None])
    terms = build("irpe on=qkv", layout, torch.float32)(q, q, layout)
    assert explain(q, q, q, terms, dropout_p=0.1).choice == "reference"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((8, 6, 1000, 500), (1, 1, 1)),  # batch, heads, tokens, scores -> images, heads, rows
        ((8, 6, 1000, 250_000), (1, 1, 250)),
        ((8, 6, 100, 30_000), (3, 1, 100)),
        ((2, 6, 100, 30_000), (1, 3, 100)),
        ((2, 6, 10, 10**9), (1, 6, 10)),
    ],
)
def test_sizes_of_tiles(sizes, expected):
    assert tile_loop.tile_sizes(*sizes) == expected


def test_how_long_the_weights_are_kept():
    limit = tiled.KEPT_TOKENS * 64  # 0 where the fixture says "computed again"
    assert limit in (0, 640)
    assert tiled.keeps_attention(limit, 64)
    assert not tiled.keeps_attention(limit + 1, 64)


@pytest.mark.parametrize(("tokens", "share"), [(197, 0.19), (640, 0.62)])
def test_kept_weights_beside_what_a_block_keeps_anyway(tokens, share):
    """The shares that tiled.py and docs/performance.md name."""
    block = timm.models.vision_transformer.Block(dim=192, num_heads=3, qkv_bias=True)
    own = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(torch.randn(1, tokens, 192, requires_grad=True))
    anyway = sum(size for pointer, size in kept.items() if pointer not in own)
    assert 4 * 3 * tokens**2 / anyway == pytest.approx(share, abs=0.01)
