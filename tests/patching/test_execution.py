"""A patched model under everything that runs a model in another way than eager, serial calls."""

import contextlib
import shutil
import threading

import oracles
import pytest
import tiny_vit
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap

import posenc

CASES = {
    "irpe": ("irpe", {}),
    "irpe qkv": ("irpe", {"on": "qkv"}),
    "irpe bias": ("irpe", {"mode": "bias", "on": "qk", "method": "cross"}),
    "swin": ("swin", {"prefix_pairs": "separate"}),
    "quadratic": ("quadratic", {"strength": 0.0}),
    "human_part": ("human_part", {}),
    "sinusoidal": ("sinusoidal", {"strength": 0.0}),
    "learned": ("learned", {"absolute": "hide"}),
    "peg": ("peg", {}),
}
# torch's own code warns while it traces.
tracing = pytest.mark.filterwarnings("ignore")
all_cases = pytest.mark.parametrize("case", CASES)


def patched(case, *, share=False, **vit):
    """All parameters random; the mean token makes the last block use every query."""
    encoding, options = CASES[case]
    vit = tiny_vit.vit(**{"global_pool": "avg", "pool_include_prefix": True, **vit})
    model = posenc.patch_model(vit, encoding, share=share, **options)
    for seed, module in enumerate(posenc.patched_encodings(model).values()):
        oracles.randomise(module, seed + 1, 0.3)
    return model


def step(model, forward=None, x=None):
    """Output and gradients by name; every parameter of an encoding must have one."""
    model.zero_grad()
    forward = model if forward is None else forward
    out = forward(tiny_vit.images(model) if x is None else x)
    out.square().mean().backward()
    assert all(p.grad.any() for _, p in posenc.encoding_parameters(model))
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": out.detach(), **gradients}


def assert_same(actual, expected, tolerance=1e-11):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture
def compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# torch.compile


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
        oracles.randomise(model)
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


# torch.export and ONNX


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


# autocast


@all_cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
@pytest.mark.parametrize("training", [True, False])
def test_autocast(case, dtype, tolerance, training):
    model = patched(case, dtype=torch.float32).train(training)
    expected = step(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype):
        out = model(tiny_vit.images(model))
    out.float().square().mean().backward()
    assert out.dtype == dtype
    assert_close_in_norm(out.float(), expected["output"], tolerance)
    for name, parameter in posenc.encoding_parameters(model):
        assert parameter.grad.dtype == torch.float32
        assert_close_in_norm(parameter.grad, expected[name], 2 * tolerance)


@pytest.mark.parametrize("case", ["irpe bias", "swin", "human_part", "irpe qkv"])
def test_autocast_without_gradient(case):
    """Remembered biases, in float32 before and after."""
    model = patched(case, dtype=torch.float32)
    x = tiny_vit.images(model)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close_in_norm(model(x).float(), expected, 0.1)
        assert torch.equal(model(x), expected)


def assert_close_in_norm(actual, expected, tolerance):
    assert actual.isfinite().all()
    assert (actual - expected).norm() <= tolerance * expected.norm()


# Activation checkpointing


@all_cases
@pytest.mark.parametrize("share", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(case, share):
    model = patched(case, share=share).train()
    expected = step(model)
    model.set_grad_checkpointing()
    assert_same(step(model), expected)


@pytest.mark.parametrize("case", ["irpe qkv", "swin"])
def test_activation_checkpointing_with_dropout(case):
    model = patched(case, attn_drop_rate=0.4).train()
    results = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        results.append(step(model))
    assert_same(results[1], results[0])
    assert (step(model)["output"] - results[0]["output"]).abs().max() > 1e-3  # it drops


# Threads


def in_threads(works):
    """Results of the functions, started together."""
    results = [None] * len(works)
    barrier = threading.Barrier(len(works))

    def run(number):
        barrier.wait()
        try:
            results[number] = works[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.parametrize(
    ("one", "other"), [("irpe qkv", "irpe bias"), ("swin", "human_part"), ("peg", "learned")]
)
def test_two_models_train_in_two_threads(one, other):
    models = [patched(one), patched(other, seed=5)]
    expected = [step(model) for model in models]
    repeated = [lambda model=model: [step(model) for _ in range(10)] for model in models]
    for results, want in zip(in_threads(repeated), expected, strict=True):
        for result in results:
            assert_same(result, want)


@pytest.mark.parametrize("case", ["swin", "irpe bias", "human_part", "irpe qkv"])
def test_one_model_in_two_threads_in_eval(case):
    """Biases are remembered by whoever comes first."""
    model = patched(case)
    inputs = [tiny_vit.images(model, seed=seed) for seed in range(2)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    model.eval()  # nothing is remembered yet

    def work(x):
        with torch.no_grad():
            return [model(x) for _ in range(20)]

    results = in_threads([lambda x=x: work(x) for x in inputs])
    for outputs, want in zip(results, expected, strict=True):
        for out in outputs:
            assert_same(out, want)


@pytest.mark.parametrize("case", ["swin", "irpe", "learned", "peg"])
def test_one_model_in_two_threads_in_training(case):
    model = patched(case).train()
    inputs = [tiny_vit.images(model, seed=seed) for seed in range(2)]

    def gradients(x):
        names, parameters = zip(
            *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
        )
        values = torch.autograd.grad(model(x).square().mean(), parameters)
        return dict(zip(names, values, strict=True))

    expected = [gradients(x) for x in inputs]
    works = [lambda x=x: [gradients(x) for _ in range(10)] for x in inputs]
    for results, want in zip(in_threads(works), expected, strict=True):
        for result in results:
            assert_same(result, want)


def test_one_thread_in_eval_while_another_needs_gradients():
    model = patched("swin")
    x = tiny_vit.images(model)
    expected = step(model)

    def infer():
        with torch.inference_mode():
            return [model(x).clone() for _ in range(20)]

    outputs, steps = in_threads([infer, lambda: [step(model) for _ in range(10)]])
    for out in outputs:
        assert_same(out, expected["output"])
    for result in steps:
        assert_same(result, expected)


# torch.func


@all_cases
def test_functional_call_uses_the_given_parameters(case):
    model, other = patched(case), patched(case, seed=7)
    for module in posenc.patched_encodings(other).values():
        oracles.randomise(module, 9, 0.3)
    x = tiny_vit.images(model)
    with torch.no_grad():
        assert (model(x) - other(x)).abs().max() > 1e-3
        for source in (other, model):
            assert_same(functional_call(model, dict(source.named_parameters()), (x,)), source(x))


@all_cases
def test_gradients_per_sample(case):
    model = patched(case)
    x = tiny_vit.images(model, 3)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(values, image):
        return functional_call(model, values, (image[None],)).square().mean()

    with warns_of_the_slow_way():
        each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    for number in range(len(x)):
        expected = step(model, x=x[number : number + 1])
        assert_same({n: g[number] for n, g in each.items()}, {n: expected[n] for n in each})


@pytest.mark.parametrize("case", ["swin", "irpe qkv", "human_part"])
def test_vmap_over_models(case):
    """An ensemble: the parameters have a dimension more."""
    models = [patched(case, seed=seed) for seed in range(3)]
    for seed, model in enumerate(models):
        for module in posenc.patched_encodings(model).values():
            oracles.randomise(module, 20 + seed, 0.3)
    stacked, _ = torch.func.stack_module_state(models)
    x = tiny_vit.images(models[0])
    with torch.no_grad(), warns_of_the_slow_way():
        out = vmap(lambda values: functional_call(models[0], values, (x,)))(stacked)
        assert_same(out, torch.stack([model(x) for model in models]))


@contextlib.contextmanager
def warns_of_the_slow_way():
    """Operations without a batching rule run in a loop, with a warning."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield
