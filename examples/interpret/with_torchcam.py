"""Grad-CAM of a patched ViT and Swin by torchcam (Python 3.11 or newer); writes torchcam.png.

pip install ".[interpret]" && python examples/interpret/with_torchcam.py
"""

from __future__ import annotations

import spots
from torch import Tensor, nn

from posenc.analysis import reshape_transform

try:
    from torchcam.methods import GradCAM
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[interpret]"') from None


def maps(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Of each color, a number a patch."""
    transform = reshape_transform(model)
    found = {}
    with GradCAM(model, model.norm, reshape_transform=transform) as cam:
        for index, color in enumerate(spots.PLACES):
            (found[color],) = cam(index, model(image[None]))[0]
    return found


if __name__ == "__main__":
    image = spots.example()
    spots.draw({name: maps(model, image) for name, model in spots.models()}, "torchcam.png")
