"""Patched models in several threads."""

import threading

import pytest
import tiny_vit
import torch
from execution_cases import assert_same, patched, step


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
