"""Patches that overlap, and tables of positions on another grid."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import nn

from posenc.functional.resample import resample_grid


def check_has_one_size(vit: Any, what: str) -> None:
    """Raises `ValueError` for a model that takes images of any size."""
    if vit.dynamic_img_size or vit.patch_embed.dynamic_img_pad:
        raise ValueError(
            f"{what} needs a model of one image size; leave dynamic_img_size and dynamic_img_pad "
            "out of --vit-args"
        )


def is_overlapping(vit: Any) -> bool:
    """Whether its patches have another stride than their size."""
    projection = getattr(vit.patch_embed, "proj", None)
    return isinstance(projection, nn.Conv2d) and projection.stride != projection.kernel_size


def overlap(vit: Any, stride: int) -> None:
    """Gives its patches this stride, in pixels, on the images that it has.

    Raises:
        ValueError: patches of this model have no stride of their own, or the stride leaves gaps.
    """
    name, embedding = type(vit).__name__, getattr(vit, "patch_embed", None)
    if type(embedding) is not PatchEmbed:
        raise ValueError(
            f"patches of {name} are cut by {type(embedding).__name__}, which has no stride of its "
            "own; leave --stride out"
        )
    if stride > min(embedding.patch_size):
        raise ValueError(
            f"a stride of {stride} leaves gaps between patches of {embedding.patch_size} pixels; "
            "it must be at most their size"
        )
    embedding.proj.stride = (stride, stride)


def grid_of(embedding: Any, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches of an image; along an axis `floor((side - patch) / stride) + 1`.

    Reference: He et al. 2021, TransReID, arXiv 2102.04378, equation 2.
    """
    stride = embedding.proj.stride
    height, width = (
        (side - patch) // step + 1
        for side, patch, step in zip(size, embedding.patch_size, stride, strict=True)
    )
    return height, width


def set_image_size(vit: Any, size: tuple[int, int], mode: str = "bicubic") -> None:
    """Of the images that it takes from now on; its own table of positions is resized.

    Args:
        vit: of timm, with a table or without, overlapping or not.
        size: height and width in pixels.
        mode: `bicubic` with antialias, as timm, or `bilinear` without, as TransReID.

    Raises:
        ValueError: an image is smaller than a patch.
    """
    embedding = vit.patch_embed
    if any(side < patch for side, patch in zip(size, embedding.patch_size, strict=True)):
        raise ValueError(f"images of {size} pixels are smaller than {embedding.patch_size} patches")
    if vit.pos_embed is not None:
        _resize_table(vit, grid_of(embedding, size), mode)
    embedding.img_size, embedding.grid_size = size, grid_of(embedding, size)
    embedding.num_patches = embedding.grid_size[0] * embedding.grid_size[1]


def _resize_table(vit: Any, new: tuple[int, int], mode: str) -> None:
    old = vit.patch_embed.grid_size  # timm's, of patches side by side, where it has just been built
    first = 0 if vit.no_embed_class else vit.num_prefix_tokens
    prefix, rows = vit.pos_embed[0].detach().split([first, old[0] * old[1]])
    rows = resample_grid(rows, old, new, mode=mode, antialias=mode == "bicubic")
    vit.pos_embed = nn.Parameter(torch.cat([prefix, rows])[None], vit.pos_embed.requires_grad)
