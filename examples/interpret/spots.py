"""A ViT and a Swin that tell red from green, an image with both, and a picture of maps.

Where the spots are is known, so a map can be seen to be right: images are wider than high, and
the ViT has five prefix tokens. Nothing is downloaded: weights are random, and the classifier is
solved by least squares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import timm
import torch
from torch import Tensor, nn

import posenc

PLACES = {"red": (1, 7), "green": (4, 2)}  # rows and columns of patches, of 6 x 10
SIZE, PATCH = (48, 80), 8
COMMON = {"img_size": SIZE, "num_classes": 3}  # the third has no spot


def vit() -> nn.Module:
    """A CLS token and four registers before the patches, which the classifier reads."""
    sizes = {"patch_size": PATCH, "embed_dim": 48, "depth": 3, "num_heads": 3}
    prefix = {"class_token": True, "reg_tokens": 4, "global_pool": "avg"}
    return timm.create_model("vit_tiny_patch16_224", **COMMON, **sizes, **prefix)


def swin() -> nn.Module:
    """Windows of 3 x 5; its last stage has patches as large as those of the ViT."""
    sizes = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "window_size": (3, 5)}
    return timm.create_model("swin_tiny_patch4_window7_224", **COMMON, **sizes)


def with_spots(places: dict[int, tuple[int, int]]) -> Tensor:
    """Noise `[3, H, W]` with a spot as large as a patch in the channels that are named."""
    image = 0.3 * torch.randn(3, *SIZE)
    for channel, (row, column) in places.items():
        patch = image[channel].unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH)[row, column]
        patch += 2.0
    return image


def example() -> Tensor:
    """An image with a spot of each color at its place."""
    torch.manual_seed(1)
    return with_spots(dict(enumerate(PLACES.values())))


@torch.no_grad()
def fitted(build: Callable[[], nn.Module]) -> nn.Module:
    """Patched, with a classifier of 480 images, in eval."""
    torch.manual_seed(0)
    model = posenc.patch_model(build(), "irpe").eval()
    places = zip(torch.randint(6, (480,)).tolist(), torch.randint(10, (480,)).tolist(), strict=True)
    images = [with_spots({i % 3: at} if i % 3 < 2 else {}) for i, at in enumerate(places)]
    features = model.forward_features(torch.stack(images))
    pooled = model.forward_head(features, pre_logits=True)
    classes = nn.functional.one_hot(torch.arange(480) % 3).float() - 1 / 3
    weight = torch.linalg.lstsq(pooled - pooled.mean(0), classes).solution.T
    classifier = model.get_classifier()
    classifier.weight.copy_(weight)
    classifier.bias.copy_(-weight @ pooled.mean(0))
    return model


def models() -> Iterator[tuple[str, nn.Module]]:
    """Both, by name. `model.norm` is what the pooling before the classifier reads."""
    for build in (vit, swin):
        yield build.__name__, fitted(build)


def draw(maps: dict[str, dict[str, Tensor]], path: str) -> None:
    """A row a model: the image, and the map of each color over it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    shown = (example() / 2).clamp(0, 1).permute(1, 2, 0).numpy()
    for axes, (model, by_color) in zip(figure.subplots(2, 3), maps.items(), strict=True):
        for one, (title, map_) in zip(axes, {"image": None, **by_color}.items(), strict=True):
            one.imshow(shown)
            one.set(title=f"{model}: {title}", xticks=[], yticks=[])
            if map_ is not None:
                one.imshow(
                    map_.numpy(), alpha=0.7, extent=(-0.5, SIZE[1] - 0.5, SIZE[0] - 0.5, -0.5)
                )
    figure.savefig(path, dpi=100)
    print(path)
