"""Grad-CAM of a patched ViT and Swin by pytorch-grad-cam; writes grad_cam.png.

pip install ".[interpret]" && python examples/interpret/with_grad_cam.py
"""

from __future__ import annotations

import spots
import torch
from torch import Tensor, nn

from posenc.analysis import reshape_transform

try:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[interpret]"') from None


def maps(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Of each color, as large as the image."""
    targets = {color: ClassifierOutputTarget(i) for i, color in enumerate(spots.PLACES)}
    transform = reshape_transform(model)
    with GradCAM(model, [model.norm], reshape_transform=transform) as cam:
        return {
            color: torch.from_numpy(cam(image[None], targets=[target])[0])
            for color, target in targets.items()
        }


if __name__ == "__main__":
    image = spots.example()
    spots.draw({name: maps(model, image) for name, model in spots.models()}, "grad_cam.png")
