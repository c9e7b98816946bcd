"""A photo as a model of timm sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from posenc.cli.errors import UsageError, one_line
from posenc.cli.models import input_size


def read(path: Path) -> Any:
    """An image in RGB, turned as its camera was held.

    Raises:
        UsageError: it is not there, or no image, with the path and the reason.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise UsageError(f"cannot read the image {path}: no format that Pillow knows") from None
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UsageError(f"cannot read the image {path}: {reason}") from None
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"cannot read the image {path}: {one_line(error)}") from None


def prepare(
    image: Any, model: nn.Module, img_size: list[int] | None, *, times: int = 1
) -> tuple[Tensor, Tensor]:
    """Resized, cropped and normalized as timm evaluates the model, in a size so many times its own.

    Returns:
        `[3, H, W]` for the model; and what it sees of that before it was normalized, from 0 to 1:
        the rows and columns that fill no patch, which the model drops, are not there.
    """
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(model)
    size = input_size(model, img_size)
    config["input_size"] = (3, *(times * side for side in size))
    normalized = create_transform(**config)(image)
    mean, std = (normalized.new_tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    height, width = (times * side for side in _seen(model, size))
    return normalized, (normalized * std + mean).clamp(0, 1)[:, :height, :width]


def _seen(model: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Of the size in pixels, what whole patches fill, where the model does not pad the last."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    if patch is None or getattr(embed, "dynamic_img_pad", False):
        return size
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    return size[0] - size[0] % rows, size[1] - size[1] % columns
