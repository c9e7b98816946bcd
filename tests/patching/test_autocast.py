"""A patched model under autocast."""

import pytest
import tiny_vit
import torch
from execution_cases import all_cases, patched, step

import posenc


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
