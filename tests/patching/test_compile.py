"""A patched model under torch.compile."""

import shutil

import oracles
import pytest
import tiny_vit
import torch
from execution_cases import all_cases, assert_same, patched, step, tracing
from torch._dynamo.testing import CompileCounterWithBackend

import posenc

pytestmark = pytest.mark.slow


@pytest.fixture
def compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@tracing
@all_cases
def test_compiled_in_one_graph_for_every_batch_size(case, compiler):
    model = patched(case, depth=1).train()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch in (2, 3, 5):
        x = tiny_vit.images(model, batch, seed=batch)
        torch._dynamo.mark_dynamic(x, 0)  # an error when the graph is for one size only
        assert_same(step(model, compiled, x), step(model, x=x))
    assert counter.frame_count == 1


@tracing
@pytest.mark.parametrize("case", ["irpe bias", "sinusoidal"])
def test_compiled_with_every_number_dynamic(case, compiler):
    model = patched(case, depth=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        assert_same(compiled(tiny_vit.images(model)), model(tiny_vit.images(model)))


@tracing
def test_compiled_with_other_options(compiler):
    """The ratio of a second model is no symbol."""
    for ratio in (1.9, 1.0, 2.5):
        model = posenc.patch_model(tiny_vit.vit(depth=1), "irpe", ratio=ratio)
        oracles.randomize(model)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        with torch.no_grad():
            assert_same(compiled(tiny_vit.images(model)), model(tiny_vit.images(model)))


@tracing
@pytest.mark.parametrize("case", ["irpe qkv", "swin", "human_part"])
@pytest.mark.parametrize("prefix", [0, 5])
def test_compiled_batch_sizes_become_dynamic_by_themselves(case, prefix, compiler):
    model = patched(case, depth=1, prefix=prefix)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    counts = []
    with torch.no_grad():
        for batch in (2, 3, 5, 4, 7):
            x = tiny_vit.images(model, batch, seed=batch)
            assert_same(compiled(x), model(x))
            counts.append(counter.frame_count)
    assert counts == [1, 2, 2, 2, 2]


@tracing
def test_compiled_follows_changed_parameters(compiler):
    """What eager remembers in eval must not become part of the graph."""
    model = patched("swin", depth=1)
    x = tiny_vit.images(model)
    with torch.no_grad():
        before = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same(compiled(x), before)
        for _, parameter in posenc.encoding_parameters(model):
            parameter.data.mul_(-2.0)
        assert_same(compiled(x), model(x))
        assert (compiled(x) - before).abs().max() > 1e-3


@tracing
def test_compiled_follows_another_input_size(compiler):
    """Same number of tokens, other positions."""
    model = patched("irpe", depth=1, pos_embed="none")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        for size in ((12, 20), (20, 12), (12, 20)):
            model.set_input_size(img_size=size)
            x = tiny_vit.images(model)
            assert_same(compiled(x), model(x))


@tracing
@pytest.mark.parametrize(("case", "share"), [("irpe qkv", False), ("human_part", True)])
def test_compiled_together_with_activation_checkpointing(case, share, compiler):
    model = patched(case, share=share).train()
    expected = step(model)
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(step(model, compiled), expected)


@tracing
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compiled_by_inductor(compiler):
    model = patched("swin", depth=1, dtype=torch.float32)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_same(compiled(tiny_vit.images(model)), model(tiny_vit.images(model)), 1e-4)
