import oracles
import pytest
import tiny_vit
import torch

import posenc

# torch's own code warns while it traces.
pytestmark = pytest.mark.filterwarnings("ignore")


def patched(name, depth=1, **options):
    model = posenc.patch_model(tiny_vit.vit(dtype=torch.float32, depth=depth), name, **options)
    for seed, encoding in enumerate(posenc.patched_encodings(model).values()):
        oracles.randomise(encoding, seed, 0.3)
    return model


def step(model, forward):
    model.zero_grad()
    out = forward(tiny_vit.images(model))
    out.square().sum().backward()
    return out.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(other[1][name], gradient, rtol=1e-3, atol=1e-3)


@pytest.fixture(autouse=True)
def reset():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "training"),
    [("irpe", True), ("irpe", False), ("swin", True), ("human_part", False), ("peg+learned", True)],
)
def test_a_compiled_model_is_one_graph_and_equals_eager(name, training):
    model = patched(name).train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(step(model, model), step(model, compiled))


@pytest.mark.parametrize("name", ["irpe", "swin"])
def test_a_compiled_model_without_gradient(name):
    model = patched(name)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = tiny_vit.images(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
        for _, parameter in posenc.encoding_parameters(model):
            parameter.data.mul_(-2.0)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["irpe", "swin", "peg+irpe"])
@pytest.mark.parametrize("share", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(name, share):
    model = patched(name, depth=2, share=share).train()
    plain = step(model, model)
    model.set_grad_checkpointing()
    assert_same(plain, step(model, model))


def test_a_compiled_model_with_activation_checkpointing():
    model = patched("irpe", depth=2).train()
    plain = step(model, model)
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(plain, step(model, compiled))


@pytest.mark.parametrize("name", ["irpe", "swin", "peg"])
def test_export(name):
    model = patched(name)
    x = tiny_vit.images(model)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-4)
