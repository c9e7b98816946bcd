"""The subspace of position in tokens: planted ones are found, and removed."""

import dataclasses
import math

import pytest
import tiny_vit
import torch
import windowed_models
from torch import nn

from posenc import TokenLayout, patch_model
from posenc.analysis import block_tokens, crops_of, debias, position_subspace


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def passing(prefix, **options):
    """A model whose blocks add nothing."""
    model = tiny_vit.vit(prefix, **options)
    for block in model.blocks:
        for layer in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def planted(prefix, rank):
    """A passing model with a table of this rank, and its directions."""
    model = passing(prefix)
    directions = torch.linalg.qr(random(16, rank, seed=3)).Q
    places = random(15, rank, seed=4) + 0.5
    model.pos_embed.data[0, -15:] = places @ directions.T
    return model, directions


def images_of(model, batch, seed=1):
    return 0.3 * tiny_vit.images(model, batch, seed)


def largest_angle(basis, directions):
    """In degrees, between the spaces."""
    cosines = torch.linalg.svdvals(basis @ directions)
    return math.degrees(math.acos(min(1.0, cosines.min().item())))


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("block", [0, -1])
def test_a_planted_subspace_is_found(prefix, block):
    model, directions = planted(prefix, rank=2)
    images = images_of(model, batch=100)
    found = position_subspace(model, images, 2, block=block)
    assert largest_angle(found.basis, directions) < 5
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(2, dtype=torch.float64))
    assert found.layout == TokenLayout(3, 5, prefix)
    assert found.block == f"blocks.{block % 2}"
    assert not found.approximate
    table = model.pos_embed.data[0, -15:]
    values = torch.linalg.eigvalsh((table - table.mean(0)).T @ (table - table.mean(0)) / 15)
    torch.testing.assert_close(found.strength, values[-2:].flip(0), rtol=0.15, atol=0.0)


def test_few_images_do_not_make_position_of_content():
    """Over many draws of two images, the variance of no position is 0 in the mean."""
    model = passing(0, img_size=(16, 20), pos_embed="none")
    found = [position_subspace(model, images_of(model, 2, seed), 16) for seed in range(60)]
    sums = torch.stack([each.strength.sum() for each in found])
    assert abs(sums.mean()) < 4 * sums.std() / 60**0.5
    tokens = block_tokens(model, images_of(model, 50)).tokens["blocks.1"]
    content = (tokens - tokens.mean(1, keepdim=True)).square().sum(-1).mean()
    assert sums.std() / 60**0.5 < 0.03 * content  # of which plain means would take half


def test_debias_removes_the_subspace_and_lets_prefix_tokens_pass():
    model, _ = planted(2, rank=3)
    found = position_subspace(model, images_of(model, batch=50), 3)
    tokens = random(4, 17, 16)
    cleared = debias(tokens, found)
    assert torch.equal(cleared[:, :2], tokens[:, :2])
    assert (cleared[:, 2:] @ found.basis.T).abs().max() < 1e-12
    torch.testing.assert_close(
        cleared[:, 2:], tokens[:, 2:] - tokens[:, 2:] @ found.basis.T @ found.basis
    )
    torch.testing.assert_close(debias(cleared, found), cleared)
    assert debias(tokens[:, :9].half(), found).dtype == torch.float16  # another grid
    # What is left of the model's own tokens has nearly no position.
    kept = block_tokens(model, images_of(model, batch=400, seed=9), batch_size=100)
    left = debias(kept.tokens["blocks.1"], found)[:, 2:].mean(0)
    before = kept.tokens["blocks.1"][:, 2:].mean(0)
    assert (left - left.mean(0)).square().sum() < 0.05 * (before - before.mean(0)).square().sum()


def test_one_image_becomes_crops():
    model, _ = planted(1, rank=2)
    image = images_of(model, batch=1)
    found = position_subspace(model, image, 2)
    assert found.approximate
    again = position_subspace(model, crops_of(image), 2)
    assert not again.approximate
    assert torch.equal(found.basis, again.basis)


@pytest.mark.parametrize("encoding", [None, "swin"])
def test_tokens_of_blocks(encoding):
    model = tiny_vit.vit(5)
    images = images_of(model, batch=5)
    states = []
    with torch.no_grad():
        tiny_vit.eager(model, images, after=lambda block, x: (states.append(x), x)[1])
    if encoding is not None:
        patch_model(model, encoding)
    whole = nn.ModuleDict({"vision": model}).eval()
    whole.forward = model.forward
    kept = block_tokens(whole, images, batch_size=2)
    assert list(kept.tokens) == ["vision.blocks.0", "vision.blocks.1"]
    for tokens, state in zip(kept.tokens.values(), states, strict=True):
        torch.testing.assert_close(tokens, state)
    assert kept.layout == TokenLayout(3, 5, prefix=5)
    assert not any(module._forward_hooks for module in model.modules())


def test_images_of_another_size_are_followed():
    for encoding in (None, "swin"):
        model = tiny_vit.vit(1, dynamic_img_size=True)
        if encoding is not None:
            patch_model(model, encoding)
        kept = block_tokens(model, random(2, 3, 8, 12), blocks=0)
        assert kept.layout == TokenLayout(2, 3, prefix=1)
        assert kept.tokens["blocks.0"].shape == (2, 7, 16)


def test_errors():
    model, _ = planted(1, rank=2)
    images = images_of(model, batch=3)
    for wrong, rank, options, error, message in [
        (images, 15, {}, ValueError, "rank must be 1 to 14 for 15 patches of width 16, got 15"),
        (images, 0, {}, ValueError, "got 0"),
        (images, 1.5, {}, TypeError, "rank must be an integer, got 1.5"),
        (images, 2, {"block": 2}, ValueError, "2 is not an index of the model's 2"),
        (images, 2, {"block": None}, TypeError, "block must be an integer, got None"),
        (images[0], 2, {}, ValueError, r"images must be \[B, 3, H, W\], got \[3, 12, 20\]"),
        (images[:0], 2, {}, ValueError, r"got \[0, 3, 12, 20\]"),
    ]:
        with pytest.raises(error, match=message):
            position_subspace(model, wrong, rank, **options)
    with pytest.raises(ValueError, match="have grids of their own"):
        block_tokens(windowed_models.swin().eval(), torch.rand(1, 3, 12, 20))
    patched = patch_model(tiny_vit.vit(), "swin")
    with pytest.raises(ValueError, match="the model is patched and knows its layout"):
        block_tokens(patched, images, layout=TokenLayout(3, 5, 1))
    with pytest.raises(ValueError, match="selects none of the 2 blocks"):
        block_tokens(model, images, blocks=[])
    with pytest.raises(ValueError, match="training mode"):
        block_tokens(patched.train(), images)
    found = position_subspace(model, images, 2)
    for tokens, error, message in [
        (random(1, 16, 8), ValueError, r"\[B, N, 16\] with more than 1 tokens.*got \[1, 16, 8\]"),
        (random(1, 1, 16), ValueError, r"got \[1, 1, 16\]"),
        (None, TypeError, "floating point tensor, got NoneType"),
    ]:
        with pytest.raises(error, match=message):
            debias(tokens, found)
    with pytest.raises(TypeError, match="must be what position_subspace returned, got dict"):
        debias(random(1, 16, 16), dataclasses.asdict(found))
