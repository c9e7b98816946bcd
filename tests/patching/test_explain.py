"""`posenc.explain(model, images)`: the backend of each site, in inference and in training."""

import pytest
import tiny_vit
import tiny_windowed
import torch
from torch import nn

import posenc
from posenc import TokenLayout, patch_model


def patched(encoding="swin", **options):
    return patch_model(tiny_vit.vit(), encoding, **options)


def test_names_both_modes_of_every_site():
    model = patched(blocks=[1])
    report = posenc.explain(model, tiny_vit.images(model))
    assert set(report.inference) == set(report.training) == {"blocks.1.attn"}
    assert report.inference["blocks.1.attn"].choice == "sdpa"
    assert report.training["blocks.1.attn"].choice == "reference"
    first, inference, training = str(report).splitlines()
    assert first == "blocks.1.attn"
    assert inference.startswith("  inference: sdpa")
    assert training.startswith("  training : reference")


def test_equal_sites_are_printed_once():
    model = patched()
    text = str(posenc.explain(model, tiny_vit.images(model)))
    assert text.splitlines()[0] == "blocks.0.attn ... blocks.1.attn (2)"
    assert len(text.splitlines()) == 3


def test_a_named_backend_and_dropout():
    model = patched(backend="tiled")
    x = tiny_vit.images(model)
    assert {e.choice for e in posenc.explain(model, x).training.values()} == {"tiled"}
    for block in model.blocks:
        block.attn.attn_drop.p = 0.1
    with pytest.raises(ValueError, match=r'backend="tiled" does not compute this call: backward'):
        posenc.explain(model, x)


def test_changes_nothing():
    model = patched("irpe").train()
    model.blocks[0].eval()
    flags = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    posenc.explain(model, tiny_vit.images(model))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert not any(
        module._posenc.observers for module in model.modules() if "_posenc" in vars(module)
    )


def test_frozen_encodings_are_not_trained():
    model = patched()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    report = posenc.explain(model, tiny_vit.images(model))
    assert report.training["blocks.0.attn"].choice == "sdpa"


def test_sizes_are_those_of_the_images():
    """A batch of larger images is computed otherwise than one small image."""
    vit = tiny_vit.vit(dynamic_img_size=True)
    model = patch_model(vit, "irpe")
    images = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    large = posenc.explain(model, images)
    small = posenc.explain(model, images[:1, :, :12, :20])
    assert large.inference["blocks.0.attn"].choice == "tiled"
    assert small.inference["blocks.0.attn"].choice == "sdpa"


def test_windows():
    model = patch_model(tiny_windowed.build("swin"), "swin")
    report = posenc.explain(model, tiny_windowed.images("swin"))
    assert set(report.inference) == set(posenc.supports(tiny_windowed.build("swin")).sites)


def test_a_part_of_a_model():
    model = nn.ModuleDict({"vit": tiny_vit.vit()})
    patch_model(model, "swin")
    model.forward = lambda x: model["vit"](x)
    report = posenc.explain(model, tiny_vit.images(model["vit"]))
    assert set(report.inference) == {"vit.blocks.0.attn", "vit.blocks.1.attn"}


def test_the_call_itself_is_explained_as_before():
    layout = TokenLayout(2, 3, 1)
    q = torch.rand(1, 2, 7, 4)
    encoding = posenc.create_encoding("swin", layout=layout, num_heads=2, head_dim=4)
    explanation = posenc.explain(q, q, q, encoding(q, q, layout), backend="sdpa")
    assert (explanation.choice, explanation.why) == ("sdpa", "asked for")


def test_bad_input():
    with pytest.raises(ValueError, match="VisionTransformer is not patched"):
        posenc.explain(tiny_vit.vit(), torch.rand(1, 3, 12, 20))
    model = patched("peg")
    with pytest.raises(ValueError, match="no encoding of the model acts inside attention"):
        posenc.explain(model, tiny_vit.images(model))
    for nothing in ((), (None,), ("vit", torch.rand(1, 3, 12, 20))):
        with pytest.raises(TypeError, match=r"explain\(model, images\), or what attend takes"):
            posenc.explain(*nothing)
    with pytest.raises(TypeError, match="query must be a tensor, got 'vit'"):
        posenc.explain("vit", None, None)


def test_summary_names_inference_and_training():
    assert posenc.summary(patched()).backend == "inference sdpa, training reference"
    assert posenc.summary(patched(backend="reference")).backend == "reference"
    assert posenc.summary(patched("peg")).backend.startswith("not used")
