"""Patch embeddings whose stride is smaller than the patch, as in TransReID."""

from __future__ import annotations

import oracles
import pytest
import timm
import torch
from eager_attention import biased_attention
from expected_bias import BIAS
from torch import nn

import posenc
from posenc import TokenLayout, patch_model, patched_encodings
from posenc.patching.layouts import grid_of_pixels

IMAGE = (64, 48)
TRUE = (5, 3)  # (64 - 16) // 12 + 1, (48 - 16) // 12 + 1; patches of 16 give 4x3


def build(tell=True, padding=0, kernel=16, stride=12, **options):
    """Its projection and table replaced; `tell` whether the grid is, too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=IMAGE, depth=2, **options)
        embedding = model.patch_embed
        embedding.proj = nn.Conv2d(3, 192, kernel, stride, padding)
        grid = tuple((side + 2 * padding - kernel) // stride + 1 for side in IMAGE)
        model.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], 192))
        if tell:
            embedding.grid_size, embedding.num_patches = grid, grid[0] * grid[1]
        return oracles.randomize(model, 3, 0.1).double().eval()


def images(height=64, width=48):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def randomize_encodings(model):
    for seed, encoding in enumerate(patched_encodings(model).values()):
        oracles.randomize(encoding, seed, 0.3)
    return model


def check(model, plain, grid, x):
    """That the model is `plain` with the bias of the formulas for this grid."""
    found = patched_encodings(model)

    def bias(site, q, k):
        return BIAS["swin"](found[f"{site}.swin"], q, (*grid, 1), None)

    with torch.no_grad():
        without = plain(x)
        with biased_attention(plain, bias):
            expected = plain(x)
        assert (expected - without).abs().max() > 1e-6
        torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, TRUE),
        ({"padding": 5}, (5, 4)),
        ({"padding": 1, "kernel": 20, "stride": 16}, (3, 2)),  # of patches of 16, too
    ],
)
def test_an_embedding_that_tells_its_grid(options, grid):
    model = build(**options)
    assert posenc.supports(model).layout == TokenLayout(*grid, 1)
    randomize_encodings(patch_model(model, "swin"))
    check(model, build(**options), grid, images())


def test_a_kernel_beyond_the_patch_was_forgotten():
    model = build(tell=False, padding=1, kernel=20, stride=16)
    with pytest.raises(ValueError, match=r"kernel \(20, 20\).*give 3x2 .*grid_size is \(4, 3\)"):
        patch_model(model, "swin")


def test_the_grid_was_forgotten():
    """It still is that of patches side by side, 4x3."""
    model = build(tell=False)
    message = (
        r"has stride \(12, 12\).*give 5x3 .*grid_size is \(4, 3\).*TokenLayout\(5, 3, prefix=1"
    )
    assert not posenc.supports(model)
    with pytest.raises(ValueError, match=message):
        patch_model(model, "swin")
    for wrong in (TokenLayout(4, 3, 1), TokenLayout(3, 5, 1), TokenLayout(5, 3)):
        with pytest.raises(
            ValueError, match=r"and layout=.* was passed: set patch_embed.grid_size"
        ):
            patch_model(model, "swin", layout=wrong)
    assert posenc.supports(model, layout=TokenLayout(5, 3, 1))
    randomize_encodings(patch_model(model, "swin", layout=TokenLayout(5, 3, 1)))
    check(model, build(tell=False), TRUE, images())


@pytest.mark.parametrize("encoding", ["peg", "learned"])
def test_encodings_of_tokens(encoding):
    model, x = build(tell=False), images()
    with torch.no_grad():
        plain = model(x)
        patch_model(model, encoding, layout=TokenLayout(5, 3, 1))
        torch.testing.assert_close(model(x), plain)
        assert (randomize_encodings(model)(x) - plain).abs().max() > 1e-4


def test_a_given_layout_that_is_told_already():
    patch_model(build(), "swin", layout=TokenLayout(5, 3, 1))
    with pytest.raises(ValueError, match=r"give 5x3 .*layout=3x5 .* was passed"):
        patch_model(build(), "swin", layout=TokenLayout(3, 5, 1))


def test_save_and_load(tmp_path):
    layout = TokenLayout(5, 3, 1)
    model = randomize_encodings(patch_model(build(tell=False), "swin", layout=layout))
    posenc.save_encodings(model, tmp_path / "overlap.safetensors")
    fresh = posenc.load_encodings(build(tell=False), tmp_path / "overlap.safetensors")
    with torch.no_grad():
        assert torch.equal(fresh(images()), model(images()))


def test_images_of_any_size_are_followed():
    model, plain = (build(dynamic_img_size=True) for _ in range(2))
    randomize_encodings(patch_model(model, "swin"))
    assert posenc.summary(model).layout == TokenLayout(5, 3, 1)
    for height, width in [(64, 48), (48, 80), (72, 60)]:
        grid = (height - 16) // 12 + 1, (width - 16) // 12 + 1
        for each in (model, plain):
            each.patch_embed.strict_img_size = each.patch_embed.img_size = None
        check(model, plain, grid, images(height, width))
    posenc.set_layout(model, (48, 80))
    assert posenc.summary(model).layout.grid == (3, 6)


def test_timm_cannot_resize_it():
    model = patch_model(build(), "swin")
    with pytest.raises(ValueError, match=r"patches of the model overlap \(stride \(12, 12\)\)"):
        posenc.set_layout(model, (48, 64))
    assert posenc.summary(model).layout == TokenLayout(5, 3, 1)


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (80, 33), (17, 95)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(16, 16, 0), (16, 12, 0), (20, 7, 3)])
def test_the_grid_of_an_image_is_what_the_embedding_gives(kernel, stride, padding, size, pads):
    embedding = timm.layers.PatchEmbed(
        img_size=None, embed_dim=2, flatten=False, strict_img_size=False, dynamic_img_pad=pads
    )
    embedding.proj = nn.Conv2d(3, 2, kernel, stride, padding)
    grid = tuple(embedding(torch.zeros(1, 3, *size)).shape[-2:])
    assert grid_of_pixels(embedding, size) == grid


def test_images_of_any_size_start_from_what_timm_says_of_the_model():
    model = build(dynamic_img_size=True)
    embedding = model.patch_embed
    embedding.img_size = embedding.grid_size = embedding.num_patches = None
    model.pretrained_cfg["input_size"] = (3, *IMAGE)
    assert posenc.supports(model).layout == TokenLayout(*TRUE, 1)
