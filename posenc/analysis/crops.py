"""Many images of one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posenc.analysis.checks import check_floating

SMALLEST_SIDE = 0.5  # of a crop, as a share of the image's


def crops_of(image: Tensor, count: int = 30, *, seed: int = 0) -> Tensor:
    """Random crops of one image, each resized to the image's own size.

    Each crop keeps the image's ratio of sides, has a side of 0.5 to 1 times the image's, lies
    anywhere in it, and is mirrored every other time. They stand in for images where there is only
    one. They share its content, so statistics over them are approximate.

    Args:
        image: `[3, H, W]` or `[1, 3, H, W]`, any number of channels.
        count: number of crops.
        seed: of the choice; the random state of PyTorch stays as it is.

    Raises:
        ValueError: another shape, or a count that is not positive.
        TypeError: no floating point tensor.

    Returns:
        `[count, 3, H, W]`.

    >>> crops_of(torch.rand(3, 32, 48), 4).shape
    torch.Size([4, 3, 32, 48])
    """
    check_floating(image, "crops_of: image")
    if image.dim() not in (3, 4) or (image.dim() == 4 and len(image) != 1):
        raise ValueError(
            f"crops_of: image must be [3, H, W] or [1, 3, H, W], got {list(image.shape)}"
        )
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"crops_of: count must be a positive integer, got {count!r}")
    picture = image if image.dim() == 4 else image[None]
    generator = torch.Generator().manual_seed(seed)
    choices = torch.rand(count, 3, generator=generator).tolist()
    crops = [_crop(picture, *choice) for choice in choices]
    return torch.cat([c.flip(-1) if i % 2 else c for i, c in enumerate(crops)])


def _crop(picture: Tensor, side: float, top: float, left: float) -> Tensor:
    size = picture.shape[-2:]
    share = SMALLEST_SIDE + (1 - SMALLEST_SIDE) * side
    height, width = (max(1, round(share * n)) for n in size)
    y, x = round(top * (size[0] - height)), round(left * (size[1] - width))
    part = picture[..., y : y + height, x : x + width]
    return F.interpolate(part, size=size, mode="bilinear", antialias=True, align_corners=False)
