"""`share=True`: one encoding for all sites."""

import pytest
import torch
from random_encodings import randomize_encodings
from tiny_vit import images, vit

import posenc
from posenc import patch_model, patched_encodings


@pytest.mark.parametrize("names", ["irpe", "swin", "peg+irpe"])
def test_shared_encodings_are_registered_once(names):
    model = vit(depth=3)
    old = list(model.state_dict())
    options = {"peg": {"after": (0, 2)}} if "peg" in names else {}
    patch_model(model, names, share=True, **options)
    new = [key for key in model.state_dict() if key not in old]
    assert {tuple(key.split(".")[:2]) for key in new} == {("posenc", n) for n in names.split("+")}
    assert list(patched_encodings(model)) == sorted(patched_encodings(model), key=names.find)
    assert set(patched_encodings(model)) == set(names.split("+"))
    assert [name for name, _ in posenc.encoding_parameters(model)] == new


@pytest.mark.parametrize("name", ["irpe", "swin"])
def test_shared_gradients_are_summed(name):
    shared = randomize_encodings(patch_model(vit(depth=3), name, share=True))
    single = patch_model(vit(depth=3), name)
    values = patched_encodings(shared)[name].state_dict()
    for encoding in patched_encodings(single).values():
        encoding.load_state_dict(values)
    x = images(shared)
    for model in (shared, single):
        model(x).square().sum().backward()
    torch.testing.assert_close(shared(x), single(x), rtol=1e-12, atol=1e-12)
    total = sum(next(e.parameters()).grad for e in patched_encodings(single).values())
    assert total.abs().max() > 1e-3
    (parameter,) = patched_encodings(shared)[name].parameters()
    torch.testing.assert_close(parameter.grad, total, rtol=1e-10, atol=1e-10)
