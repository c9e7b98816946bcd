"""Models and runs whose attention cannot be captured."""

import pytest
import tiny_windowed
import torch
from capture_cases import NAMES, patched
from tiny_vit import images, snapshot, vit
from torch import nn
from torch.func import functional_call, vmap

from posenc import TokenLayout, patch_model, unpatch_model
from posenc.analysis import capture_attention


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoding", [None, "swin"])
def test_a_compiled_model_is_refused(encoding):
    torch.compiler.reset()
    model = patched(encoding)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match=r"the model is compiled.*what went into"):
        capture_attention(compiled).__enter__()
    x = images(model)
    with torch.no_grad():
        expected = compiled(x)
        with (
            pytest.raises(RuntimeError, match=r"blocks\.0\.attn runs under torch\.compile"),
            capture_attention(model),
        ):
            compiled(x)
        with capture_attention(model) as captured:
            model(x)
        assert torch.equal(compiled(x), expected)
    assert list(captured.attention) == NAMES
    model.blocks[1].compile(backend="eager")
    with pytest.raises(ValueError, match=r"blocks\.1 is compiled.*before model\.compile"):
        capture_attention(model).__enter__()
    torch.compiler.reset()


@pytest.mark.parametrize("encoding", [None, "swin"])
def test_function_transforms_are_refused(encoding):
    model = patched(encoding)
    x = images(model)
    parameters = dict(model.named_parameters())
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="a function transform"),
        capture_attention(model),
    ):
        vmap(lambda image: functional_call(model, parameters, image[None]))(x)
    with torch.no_grad(), capture_attention(model) as captured:
        functional_call(model, parameters, x)
    assert list(captured.attention) == NAMES


def test_models_that_are_not_known_are_refused():
    for model, message in [
        (nn.Linear(2, 3), "found no model that posenc knows"),
        (tiny_windowed.build("hiera_unrolled"), r"no attention that can be recorded \(blocks\.0"),
        (nn.MultiheadAttention(8, 2), "pass layout="),
    ]:
        with pytest.raises(ValueError, match=message):
            capture_attention(model).__enter__()


def test_a_patched_model_knows_its_layout():
    with pytest.raises(ValueError, match=r"layout=3x5 \+ 1 prefix was passed.*leave layout= out"):
        capture_attention(patched("swin"), layout=TokenLayout(3, 5, 1)).__enter__()


def test_inside_a_model_is_not_unpatched():
    model = patched("swin")
    before = snapshot(model)
    with (
        capture_attention(model),
        pytest.raises(ValueError, match="not the class that patch_model gave it"),
    ):
        unpatch_model(model)
    assert snapshot(model) == before
    plain = vit()
    with capture_attention(plain), pytest.raises(ValueError, match="cannot be patched"):
        patch_model(plain, "swin")


def test_dropped_tokens_are_an_error():
    model = vit(patch_drop_rate=0.5).train()
    message = r"got \d+ tokens, but its layout 3x5 \+ 1 prefix"
    with pytest.raises(RuntimeError, match=message), capture_attention(model):
        model(images(model))
    assert snapshot(model)["classes"] == snapshot(vit(patch_drop_rate=0.5))["classes"]
