"""Copies of patched models, in this process and a new one."""

import copy
import pickle

import pytest
import tiny_vit
import torch
from new_process import run_python

import posenc


def randomized(encoding, **options):
    model = posenc.patch_model(tiny_vit.vit(), encoding, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


COPIES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "deepcopy": copy.deepcopy,
    "twice": lambda model: copy.deepcopy(pickle.loads(pickle.dumps(model))),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("share", [False, True])
def test_copies_are_equal_and_independent(how, share):
    model = randomized("peg+irpe+swin+learned", share=share)
    x = tiny_vit.images(model)
    expected = model(x)
    clone = COPIES[how](model)
    assert torch.equal(clone(x), expected)
    assert list(clone.state_dict()) == list(model.state_dict())
    assert [type(m) for m in clone.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(clone):
            parameter.add_(1.0)
    assert not torch.equal(clone(x), expected)
    assert torch.equal(model(x), expected)
    posenc.unpatch_model(clone)
    assert not posenc.is_patched(clone)
    assert torch.equal(clone(x), tiny_vit.vit()(x))
    assert torch.equal(model(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("absolute", ["keep", "hide"])
def test_a_saved_model_loads_in_a_new_process(tmp_path, absolute):
    model = randomized("peg+irpe+learned", absolute=absolute)
    x = tiny_vit.images(model)
    torch.save(model, tmp_path / "model.pt")
    torch.save((x, model(x)), tmp_path / "expected.pt")
    code = (
        "import sys, torch\n"
        "model = torch.load(sys.argv[1] + '/model.pt', weights_only=False)\n"
        "x, expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "import posenc\n"
        "assert posenc.is_patched(model)\n"
        "print(torch.equal(model(x), expected))\n"
        "model.blocks[0].attn.fused_attn = False\n"
        "try:\n"
        "    model(x)\n"
        "except RuntimeError as error:\n"
        "    print('blocks.0.attn ran without' in str(error))\n"
        "posenc.unpatch_model(model)\n"
        "print('posenc' in str(list(model.state_dict())) or type(model).__name__)\n"
    )
    assert run_python(code, tmp_path).split() == ["True", "True", "VisionTransformer"]
