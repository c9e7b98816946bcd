"""A patched model under torch.export and in ONNX."""

import pytest
import tiny_vit
import torch
from execution_cases import all_cases, assert_same, patched, step, tracing

import posenc

pytestmark = pytest.mark.slow


def dynamic_batch():
    return ({0: torch.export.Dim("batch")},)


@tracing
@all_cases
def test_exported_with_a_dynamic_batch(case):
    model = patched(case, depth=1)
    with torch.no_grad():
        model(tiny_vit.images(model))  # what eager remembers must not be exported
        shapes = dynamic_batch()
        program = torch.export.export(model, (tiny_vit.images(model),), dynamic_shapes=shapes)
        for batch in (1, 3, 5):
            x = tiny_vit.images(model, batch, seed=batch)
            assert_same(program.module()(x), model(x))


@tracing
@pytest.mark.parametrize("case", ["irpe qkv", "swin"])
def test_an_exported_model_trains(case):
    model = patched(case).train()
    shapes = dynamic_batch()
    program = torch.export.export(model, (tiny_vit.images(model),), dynamic_shapes=shapes)
    exported = program.module()
    x = tiny_vit.images(model, 3, seed=3)
    exported(x).square().mean().backward()
    expected = step(model, x=x)
    for name, parameter in exported.named_parameters():
        assert_same(parameter.grad, expected[name])


@tracing
@pytest.mark.parametrize("case", ["irpe bias", "swin", "quadratic", "human_part"])
def test_a_frozen_model_is_exported_without_looking_anything_up(case):
    model = patched(case)
    x = tiny_vit.images(model, 3, seed=3)
    with torch.no_grad():
        expected = model(x)
        posenc.fold_biases(model)
        shapes = dynamic_batch()
        program = torch.export.export(model, (tiny_vit.images(model),), dynamic_shapes=shapes)
        assert_same(program.module()(x), expected)
    operations = {str(node.target) for node in program.graph.nodes}
    assert not {name for name in operations if "index" in name or "gather" in name}
    assert any("posenc" in name for name, _ in program.named_buffers())


@tracing
@pytest.mark.parametrize("case", ["irpe", "irpe qkv", "swin", "human_part"])
def test_onnx_runtime_gives_the_same(case, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = patched(case, depth=1, dtype=torch.float32)
    path = tmp_path / "model.onnx"
    with torch.no_grad():
        torch.onnx.export(
            model,
            (tiny_vit.images(model),),
            path,
            dynamo=True,
            dynamic_shapes=dynamic_batch(),
            verbose=False,
        )
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for batch in (1, 2, 5):
            x = tiny_vit.images(model, batch, seed=batch)
            (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            assert_same(torch.from_numpy(out), model(x), 1e-5)
