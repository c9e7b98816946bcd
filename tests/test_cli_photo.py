"""A photo as a model sees it, where its size is no whole number of patches."""

import pytest
import timm
import torch
from PIL import Image

from posenc.cli import photo

NOISE = Image.effect_noise((90, 70), 60).convert("RGB")


def seen_by(model, pixels):
    """Height and width of the pixels that outputs depend on."""
    pixels = pixels[None].requires_grad_()
    model(pixels).sum().backward()
    rows, columns = pixels.grad.abs().sum(dim=(0, 1)).nonzero().max(dim=0).values + 1
    return int(rows), int(columns)


@pytest.mark.parametrize("size", [(32, 48), (45, 58)])
@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True, "dynamic_img_pad": True}])
def test_what_is_shown_is_what_the_model_sees(size, options):
    model = timm.create_model("vit_tiny_patch16_224", img_size=size, depth=1, **options).eval()
    pixels, shown = photo.prepare(NOISE, model, list(size))
    assert pixels.shape[1:] == size
    assert shown.shape[1:] == seen_by(model, pixels)
    height, width = shown.shape[1:]
    torch.testing.assert_close(shown, pixels[:, :height, :width] * 0.5 + 0.5)
    _, sharper = photo.prepare(NOISE, model, list(size), times=3)
    assert sharper.shape[1:] == (3 * height, 3 * width)
