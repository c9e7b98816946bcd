"""Gradient times activation of a patched ViT and Swin by captum; writes captum.png.

pip install ".[interpret]" && python examples/interpret/with_captum.py

`LayerGradCam` of captum takes the second dimension for channels, and that of tokens `[B, N, C]`
is their count. What captum attributes to each number of a layer is right, and becomes a map here.
"""

from __future__ import annotations

import spots
from torch import Tensor, nn

from posenc.analysis import reshape_transform

try:
    from captum.attr import LayerGradientXActivation
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[interpret]"') from None


def maps(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Of each color, a number a patch: the part of the logit that comes from there."""
    transform = reshape_transform(model)
    method = LayerGradientXActivation(model, model.norm)
    found = {}
    for index, color in enumerate(spots.PLACES):
        (found[color],) = transform(method.attribute(image[None], target=index)).sum(1).detach()
    return found


if __name__ == "__main__":
    image = spots.example()
    spots.draw({name: maps(model, image) for name, model in spots.models()}, "captum.png")
