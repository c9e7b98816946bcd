"""`set_layout` takes pixels or a layout, and hears when one was meant as the other."""

from __future__ import annotations

import dynamic_vit
import pytest
import timm
import tiny_global
import torch

import posenc
from posenc import TokenLayout, patch_model


def vit(**options):
    return timm.create_model("vit_tiny_patch16_224", img_size=(384, 288), depth=1, **options)


@pytest.mark.parametrize(
    ("size", "patches"),
    [
        ((24, 18), "1.5 x 1.125"),  # meant as patches
        ((16, 12), "1 x 0.75"),
        (16, "1 x 1"),
        ((32, 16), "2 x 1"),
        ((390, 288), "24.375 x 18"),
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_pixels_that_are_no_patches(size, patches, dynamic):
    model = patch_model(vit(dynamic_img_size=dynamic), "swin")
    before = posenc.summary(model).layout
    height, width = size if isinstance(size, tuple) else (size, size)
    message = (
        rf"pixels, and .*16\) pixels that is {patches} pat.*TokenLayout\({height}, {width}, pre"
    )
    with pytest.raises(ValueError, match=message):
        posenc.set_layout(model, size)
    assert posenc.summary(model).layout == before


def test_both_readings_that_the_message_names_work():
    model = patch_model(vit(), "swin")
    posenc.set_layout(model, TokenLayout(12, 9, prefix=1))
    assert model.patch_embed.img_size == (192, 144)
    posenc.set_layout(model, (288, 384))
    assert posenc.summary(model).layout == TokenLayout(18, 24, prefix=1)
    posenc.set_layout(model, TokenLayout(1, 2, prefix=1))  # not by mistake
    assert model(torch.zeros(1, 3, 16, 32)).isfinite().all()
    posenc.set_layout(model, (16, 48))  # of a model with one row of patches


def test_what_was_frozen_stays_frozen():
    """timm puts a new position table in place of the old one, with its gradient on."""
    model = patch_model(vit(), "learned", absolute="hide")
    assert not model.pos_embed.requires_grad
    posenc.set_layout(model, (288, 384))
    assert not model.pos_embed.requires_grad
    posenc.train_only_encodings(model)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    posenc.set_layout(model, (384, 288))
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_padded_images_need_no_multiple():
    model = patch_model(dynamic_vit.build("vit_padded"), "swin")
    posenc.set_layout(model, (10, 17))  # patches of 4
    assert posenc.summary(model).layout.grid == (3, 5)


def test_a_hybrid_model_hears_it_too():
    """It lets any size through and has a set_input_size: its patches are those of its stem."""
    model = patch_model(tiny_global.build("hybrid"), "swin")
    grid = posenc.summary(model).layout.grid
    with pytest.raises(ValueError, match=r"\(18, 12\) means pixels"):
        posenc.set_layout(model, (18, 12))
    assert posenc.summary(model).layout.grid == grid
    assert model.patch_embed.grid_size == grid


@pytest.mark.parametrize(
    "size", [None, "384", (384,), (384, 288, 3), (384.0, 288), True, 0, (-16, 32)]
)
def test_what_is_no_size(size):
    model = patch_model(vit(), "swin")
    with pytest.raises(TypeError, match=r"set_layout takes a posenc.TokenLayout or an image size"):
        posenc.set_layout(model, size)


@pytest.mark.parametrize("layout", [TokenLayout(18, 24, prefix=1), (288, 384)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_folded_model(layout, dynamic):
    model = patch_model(vit(dynamic_img_size=dynamic), "swin").eval()
    posenc.fold_biases(model)
    with pytest.raises(ValueError, match=r"are folded for 24x18.*then call posenc.fold_biases"):
        posenc.set_layout(model, layout)
    assert model(torch.zeros(1, 3, 384, 288)).isfinite().all()
