"""Another input size for a patched model."""

from __future__ import annotations

from typing import Any

from posenc.layout import TokenLayout
from posenc.patching.fold import FoldedBias
from posenc.patching.layouts import (
    GivenLayout,
    MapLayout,
    SeenLayout,
    grid_of_pixels,
    overlapping_projection,
    patch_size_of,
)
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.models.known import family_of
from posenc.patching.patch import Model, PatchRecord, patched_backbone, site_modules


def set_layout(model: Model, layout: TokenLayout | tuple[int, int] | int) -> Model:
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
        ValueError: the model is not patched, or folded; it cannot change its size; the layout has
            another number of prefix tokens; or pixels that give no whole patches, or fewer than
            2x2, and may have been meant as patches.
        TypeError: neither a TokenLayout nor one or two whole numbers.

    Returns:
        The same model.
    """
    backbone = patched_backbone(model)
    record: PatchRecord = backbone._posenc_record
    _check_not_folded(backbone)
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
            _set_input_size(backbone, _image(backbone, layout))
        source.see(*_grid(backbone, layout))
    else:
        _set_input_size(backbone, _image(backbone, layout))
    return model


def _check_not_folded(backbone: Any) -> None:
    folded = next((m for m in backbone.modules() if isinstance(m, FoldedBias)), None)
    if folded is not None:
        raise ValueError(
            f"the biases of the model are folded for {folded.layout}, and their tables are gone: "
            "set the layout of a model that is not folded, then call posenc.fold_biases"
        )


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
    image = _pair(layout)
    _check_pixels(backbone, image)
    return _grid_of_pixels(backbone, image)


def _image(backbone: Any, layout: TokenLayout | tuple[int, int] | int) -> tuple[int, int]:
    if isinstance(layout, TokenLayout):
        patch_height, patch_width = _patch_size(backbone)
        return layout.height * patch_height, layout.width * patch_width
    image = _pair(layout)
    if backbone._posenc_record.layout is not None:  # windows and stages have no one patch size
        _check_pixels(backbone, image)
    return image


def _pair(size: Any) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else size
    right = isinstance(pair, (tuple, list)) and [type(side) for side in pair] == [int, int]
    if not right or min(pair) < 1:
        raise TypeError(
            "set_layout takes a posenc.TokenLayout or an image size in pixels, one positive whole "
            f"number or (height, width), got {size!r}"
        )
    return pair[0], pair[1]


def _check_pixels(backbone: Any, image: tuple[int, int]) -> None:
    """Raises for pixels that are more likely patches."""
    patch, source = _patch_size(backbone), backbone._posenc_record.layout.default()
    embedding = _embedding(backbone)
    whole = getattr(embedding, "dynamic_img_pad", False) or overlapping_projection(embedding)
    parts = any(side % step for side, step in zip(image, patch, strict=True))
    few = min(_grid_of_pixels(backbone, image)) < min(2, *source.grid)
    if few or (parts and not whole):
        raise ValueError(
            f"{image} means pixels, and with patches of {patch} pixels that is "
            f"{' x '.join(f'{n / p:g}' for n, p in zip(image, patch, strict=True))} patches: pass "
            f"multiples of {patch}, at least 2x2 patches; or, if you mean patches, "
            f"TokenLayout({image[0]}, {image[1]}, prefix={source.prefix})"
        )


def _grid_of_pixels(backbone: Any, image: tuple[int, int]) -> tuple[int, int]:
    embedding = _embedding(backbone)
    if hasattr(embedding, "dynamic_feat_size"):
        return grid_of_pixels(embedding, image)
    patch_height, patch_width = _patch_size(backbone)
    return image[0] // patch_height, image[1] // patch_width


def _embedding(backbone: Any) -> Any:
    family: Any = family_of(backbone)
    return getattr(backbone, family.embedding)


def _patch_size(backbone: Any) -> tuple[int, int]:
    size: Any = patch_size_of(_embedding(backbone))  # these models have one
    return size


def _set_input_size(backbone: Any, image: tuple[int, int]) -> None:
    if not hasattr(backbone, "set_input_size"):
        name = type(backbone).posenc_original_class.__name__
        sites = [module._posenc for module in site_modules(backbone).values()]
        if all(isinstance(site.layout, MapLayout) for site in sites if site.attention):
            raise UnsupportedModelError(
                f"timm's {name} takes images of any size, and its encodings follow the map that "
                "each attention module receives: call it on the new images, without set_layout"
            )
        raise UnsupportedModelError(
            f"timm's {name} cannot change its input size (it has no set_input_size): create it "
            f"with img_size={image}"
        )
    if (projection := overlapping_projection(getattr(backbone, "patch_embed", None))) is not None:
        raise UnsupportedModelError(
            f"the patches of the model overlap (stride {projection.stride}), and timm's "
            "set_input_size would size its position table by the patch size: create it for "
            f"images of {image} pixels"
        )
    trained = {name: p.requires_grad for name, p in backbone.named_parameters()}
    backbone.set_input_size(img_size=image)
    for name, parameter in backbone.named_parameters():  # timm makes a new position table
        parameter.requires_grad_(trained.get(name, parameter.requires_grad))
