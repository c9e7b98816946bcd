"""The operator under torch.compile, DDP, autocast and activation checkpointing."""

import oracles
import pytest
import tiny_vit
import torch
from kernel_calls import (
    DEVICE,
    HEADS,
    call_of,
    gradients,
    numbers,
    qkv,
    random_terms,
    run,
    set_tiles,
)
from random_calls import mask_of
from random_encodings import randomize_encodings

import posenc
from posenc import TokenLayout, attend
from posenc.attention.kernels import memory, ops
from posenc.attention.kernels.operands import read_call


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning")
def test_the_operator_is_declared_truly():
    """Schema, shapes of fake tensors, gradients: as PyTorch checks them."""
    terms, _ = random_terms("value and all", (2, 3, 1))
    leaves = (
        x.detach().requires_grad_(x.requires_grad) if torch.is_tensor(x) else x
        for x in read_call(call_of(qkv(7), terms))
    )
    torch.library.opcheck(ops.fused_attention, tuple(leaves))


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_compiled_patched_vit():
    """The whole model in one graph, trained."""
    torch._dynamo.reset()
    model = tiny_vit.vit(global_pool="avg", dtype=torch.float32).to(DEVICE)
    posenc.patch_model(model, "irpe", on="qkv", backend="triton")
    randomize_encodings(model)
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


@pytest.mark.slow
@pytest.mark.usefixtures("process_group")
def test_data_parallel_training():
    """Gradients reach every parameter, in the buckets that DDP sends."""
    model = tiny_vit.vit(global_pool="avg", dtype=torch.float32).to(DEVICE)
    posenc.patch_model(model, "irpe", on="qkv", backend="triton")
    randomize_encodings(model)
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
    oracles.randomize(module, 0, 0.5)
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
    oracles.randomize(module.to(DEVICE).eval(), 0, 0.5)
    q, k, v = (x.detach() for x in qkv(13))
    with torch.no_grad():
        for _ in range(2):
            (term,) = module(q, k, layout)
            attend(q, k, v, term, backend="triton")
    assert term.memo is not None
    kept = term.memo.get("offsets")
    assert read_call(call_of((q, k, v), [term])).table is kept
