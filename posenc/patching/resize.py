"""Another input size for a patched model."""

from __future__ import annotations

from typing import Any

from torch import nn

from posenc.layout import TokenLayout
from posenc.patching.layouts import EmbeddingLayout, GivenLayout, SeenLayout
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.known import family_of
from posenc.patching.patch import PatchRecord, patched_backbone


def set_layout(model: nn.Module, layout: TokenLayout | tuple[int, int] | int) -> nn.Module:
    """Makes another layout the active one; stored tables stay and are resampled on the fly.

    A timm model of one image size gets `model.set_input_size(img_size)`, which its own position
    table needs too (calling that directly is as good). A model that takes images of any size
    follows them by itself: the layout then holds for this thread until the next image. Where
    `patch_model` was given a layout, it is replaced.

    Args:
        model: a patched model.
        layout: a TokenLayout with the model's prefix tokens, or an image size in pixels, one
            number or (height, width).

    Raises:
        ValueError: the model is not patched, cannot change its size, or the layout has another
            number of prefix tokens.

    Returns:
        The same model.
    """
    backbone = patched_backbone(model)
    record: PatchRecord = backbone._posenc_record
    if isinstance(layout, TokenLayout):
        _check_prefix(record, layout)
    source = record.layout
    if isinstance(source, GivenLayout):
        if not isinstance(layout, TokenLayout):
            raise ValueError(
                f"the model was patched with a given layout, so posenc does not know its patch "
                f"size: pass a TokenLayout, not {layout!r}"
            )
        source.layout = layout
    elif isinstance(source, SeenLayout):
        if hasattr(backbone, "set_input_size") and not getattr(backbone, "dynamic_img_size", False):
            # It lets other sizes through, but its own position table has one.
            _set_input_size(backbone, _image(backbone, layout, one_grid=True))
        source.see(*_grid(backbone, layout))
    else:
        _set_input_size(backbone, _image(backbone, layout, isinstance(source, EmbeddingLayout)))
    return model


def _check_prefix(record: PatchRecord, layout: TokenLayout) -> None:
    if record.layout is None:
        raise UnsupportedModelError(
            f"the model has windows or stages, each with its own layout: pass an image size "
            f"instead of {layout}"
        )
    prefix = record.layout.default().prefix
    if layout.prefix != prefix:
        raise ValueError(
            f"the model has {prefix} prefix tokens, {layout} has {layout.prefix}; pass "
            f"TokenLayout({layout.height}, {layout.width}, prefix={prefix})"
        )


def _grid(backbone: Any, layout: TokenLayout | tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(layout, TokenLayout):
        return layout.grid
    height, width = _pair(layout)
    patch_height, patch_width = _patch_size(backbone)
    return height // patch_height, width // patch_width


def _image(
    backbone: Any, layout: TokenLayout | tuple[int, int] | int, one_grid: bool
) -> tuple[int, int]:
    if isinstance(layout, TokenLayout):
        patch_height, patch_width = _patch_size(backbone)
        return layout.height * patch_height, layout.width * patch_width
    image = _pair(layout)
    patch = _patch_size(backbone) if one_grid else (1, 1)
    if any(size < side for size, side in zip(image, patch, strict=True)):
        raise ValueError(f"images of {image} pixels are smaller than a patch of {patch}")
    return image


def _pair(size: tuple[int, int] | int) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _patch_size(backbone: Any) -> tuple[int, int]:
    family: Any = family_of(backbone)
    embedding = getattr(backbone, family.embedding)
    if hasattr(embedding, "feat_ratio"):  # of a convolutional stem, times the patch
        height, width = embedding.feat_ratio(as_scalar=False)
    else:
        height, width = embedding.patch_size
    return height, width


def _set_input_size(backbone: Any, image: tuple[int, int]) -> None:
    if not hasattr(backbone, "set_input_size"):
        name = type(backbone).posenc_original_class.__name__
        raise UnsupportedModelError(
            f"timm's {name} cannot change its input size (it has no set_input_size): create it "
            f"with img_size={image}"
        )
    backbone.set_input_size(img_size=image)
