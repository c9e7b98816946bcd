"""A patched model under torch.func."""

import contextlib

import oracles
import pytest
import tiny_vit
import torch
from execution_cases import all_cases, assert_same, patched, step
from torch.func import functional_call, grad, vmap

import posenc


@all_cases
def test_functional_call_uses_the_given_parameters(case):
    model, other = patched(case), patched(case, seed=7)
    for module in posenc.patched_encodings(other).values():
        oracles.randomize(module, 9, 0.3)
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
            oracles.randomize(module, 20 + seed, 0.3)
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
