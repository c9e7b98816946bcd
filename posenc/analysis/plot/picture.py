"""Images as matplotlib shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from posenc.layout import TokenLayout

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

CHANNELS = (1, 3)
SLACK = 0.02  # that resampling goes beyond 0 and 1


def to_picture(
    image: Any,
    caller: str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> np.ndarray[Any, Any]:
    """An image as `[height, width, 3]`, 0 to 1.

    Args:
        image: a PIL image, a tensor `[3 or 1, H, W]` or an array `[H, W, 3 or 1]`; a tensor with
            channels last and an array with channels first are told by their shape, and `[H, W]`
            is gray. 0 to 255 in uint8, or floating point from 0 to 1.
        caller: for messages.
        mean: what was subtracted from the channels of a normalized image.
        std: what they were divided by afterwards.

    Raises:
        TypeError: no image, or numbers of another kind.
        ValueError: another shape, or numbers out of range, with what to do.
    """
    if (mean is None) != (std is None):
        raise ValueError(f"{caller}: mean and std go together, got mean={mean!r} and std={std!r}")
    values = _channels_last(_numbers(image, caller), isinstance(image, Tensor), caller)
    if mean is not None and std is not None:
        values = values * values.new_tensor(std) + values.new_tensor(mean)
    _check_range(values, caller, mean is not None)
    return values.clamp(0, 1).expand(-1, -1, 3).numpy()


def _numbers(image: Any, caller: str) -> Tensor:
    """In floating point, those of 8 bits from 0 to 1."""
    if hasattr(image, "convert") and hasattr(image, "getbands"):  # of PIL
        import numpy as np

        image = np.asarray(image.convert("RGB"))
    try:
        values = torch.as_tensor(image if isinstance(image, Tensor) else image.copy())
    except (AttributeError, TypeError):
        raise TypeError(
            f"{caller}: image must be a tensor, an array or a PIL image, got {type(image).__name__}"
        ) from None
    values = values.detach().cpu()
    if values.dtype == torch.uint8:
        return values.float() / 255
    if not values.is_floating_point():
        raise TypeError(
            f"{caller}: image must be uint8 (0 to 255) or floating point (0 to 1), got "
            f"{values.dtype}"
        )
    return values.float()


def _channels_last(values: Tensor, is_tensor: bool, caller: str) -> Tensor:
    if values.dim() == 2:
        return values[..., None]
    if values.dim() == 4:
        raise ValueError(
            f"{caller}: image must be one image, got the batch {list(values.shape)}: pass "
            "images[i] with image_index=i"
        )
    if values.dim() == 3 and min(values.shape):
        first, last = values.shape[0] in CHANNELS, values.shape[2] in CHANNELS
        if first and (is_tensor or not last):
            return values.permute(1, 2, 0)
        if last:
            return values
    raise ValueError(
        f"{caller}: image must be [3 or 1, H, W] or [H, W, 3 or 1], got {list(values.shape)}"
    )


def _check_range(values: Tensor, caller: str, is_restored: bool) -> None:
    low, high = values.min().item(), values.max().item()
    if low >= -SLACK and high <= 1 + SLACK:  # nan is not
        return
    advice = (
        "are mean and std those of the model?"
        if is_restored
        else "a normalized image needs mean= and std= (model.pretrained_cfg of timm has them), one "
        "of 0 to 255 must be uint8"
    )
    raise ValueError(
        f"{caller}: image has numbers from {low:.3g} to {high:.3g}, not 0 to 1: {advice}"
    )


def check_fits(
    picture: np.ndarray[Any, Any],
    layout: TokenLayout,
    patch_size: float | tuple[float, float] | None,
    caller: str,
) -> None:
    """Raises unless the grid lies on the image, in patches that are square or of this size.

    A tenth more or less is allowed without `patch_size`: overlapping patches do not quite divide
    their image.
    """
    height, width = picture.shape[0] / layout.height, picture.shape[1] / layout.width
    size = f"{picture.shape[0]}x{picture.shape[1]}"
    if patch_size is not None:
        sides = patch_size if isinstance(patch_size, tuple | list) else (patch_size, patch_size)
        if (height, width) != tuple(sides):
            raise ValueError(
                f"{caller}: the image is {size}, and {layout.height}x{layout.width} patches of "
                f"{sides[0]}x{sides[1]} are {layout.height * sides[0]}x{layout.width * sides[1]}: "
                "pass the image as the model saw it"
            )
    elif not 0.9 < height / width < 1 / 0.9:
        raise ValueError(
            f"{caller}: the image is {size}, so that the {layout.height}x{layout.width} patches "
            f"would be {height:.4g}x{width:.4g} pixels: pass the image as the model saw it, after "
            "resizing and cropping, or patch_size=(height, width) where patches are not square"
        )


def overlay(axes: Axes, picture: np.ndarray[Any, Any], numbers: Tensor, **options: Any) -> Any:
    """An image in gray under a map of its grid; returns what the map was drawn as."""
    height, width = picture.shape[:2]
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=1)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    return axes.imshow(numbers.cpu().numpy(), extent=extent, **options)
