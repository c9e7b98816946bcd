"""Tokens as maps, in the form that packages of class activation maps ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from posenc.layout import TokenLayout
from posenc.patching.layouts import LayoutSource, SeenLayout
from posenc.patching.models.kinds import UnsupportedModelError
from posenc.patching.observe import told_layout
from posenc.patching.patch import find_patched


def reshape_transform(
    model: nn.Module, layout: TokenLayout | None = None
) -> Callable[[Any], Tensor]:
    """A function from what a block puts out to a map: `[B, N, C] -> [B, C, height, width]`.

    It is the `reshape_transform=` of pytorch-grad-cam, and for torchcam and captum it turns
    activations and attributions of a block into maps. Prefix tokens are left out, and rows and
    columns are those of the layout that the model has at the time: those of the latest image in a
    patched model, and after `set_input_size` those of the new size. Blocks that put out maps
    `[B, height, width, C]` (Swin, SAM) are turned to `[B, C, height, width]`, whatever the stage.
    A tuple stands for its first tensor, as blocks of Hugging Face put it out.

    Choose a layer before the pooling, such as `model.blocks[-1].norm1`: gradients of the last
    block's output reach only the token that the head reads.

    Args:
        model: any model that `posenc.patch_model` could patch, or one that it has patched.
        layout: of the tokens; needed where the model does not tell: outside timm, and for models
            that take images of any size and are not patched.

    Raises:
        ValueError: the layout is not known. By the function: tokens that do not fit the layout.
        TypeError: not a module. By the function: no tensor.

    Reference: Selvaraju et al. 2017 (Grad-CAM), arXiv 1610.02391, for maps `[B, C, h, w]`.

    >>> import timm, torch
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2)
    >>> reshape_transform(vit)(torch.zeros(4, 7, 192)).shape
    torch.Size([4, 192, 2, 3])
    """
    backbone, source = told_layout(model, layout, "reshape_transform")
    if source is None:
        return _of_stages(backbone.module)
    if isinstance(source, SeenLayout) and find_patched(model) is None and layout is None:
        raise UnsupportedModelError(
            f"reshape_transform: {type(model).__name__} takes images of any size and is not "
            "patched, so nothing tells the grid of the latest image: pass "
            "layout=posenc.TokenLayout(height, width, prefix) of your images"
        )
    return lambda tokens: _to_map(_tensor(tokens), source)


def _of_stages(backbone: Any) -> Callable[[Any], Tensor]:
    """Of a model of timm whose stages have grids of their own: maps tell theirs."""
    if getattr(backbone, "output_fmt", None) == "NHWC":
        return _channels_second
    raise UnsupportedModelError(
        f"reshape_transform: the stages of {type(backbone).__name__} have grids of their own, and "
        "it does not say that its blocks put out maps [B, height, width, C]"
    )


def _channels_second(maps: Any) -> Tensor:
    maps = _tensor(maps)
    if maps.dim() != 4:
        raise ValueError(
            "reshape_transform: blocks of this model put out [B, height, width, C], got "
            f"{list(maps.shape)}; choose a block, or a layer that receives what blocks put out"
        )
    return maps.permute(0, 3, 1, 2)


def _to_map(tokens: Tensor, source: LayoutSource) -> Tensor:
    layout = source.latest()
    if tokens.dim() == 4 and tuple(tokens.shape[1:3]) == layout.grid:
        return tokens.permute(0, 3, 1, 2)
    if tokens.dim() != 3 or tokens.shape[1] != layout.num_tokens:
        raise ValueError(
            f"reshape_transform: expected [B, {layout.num_tokens}, C], the tokens of {layout}, "
            f"got {list(tokens.shape)}; choose a layer whose output has all tokens, and pass "
            "layout= where images have another grid"
        )
    return tokens[:, layout.prefix :].transpose(1, 2).unflatten(-1, layout.grid)


def _tensor(given: Any) -> Tensor:
    first = given[0] if isinstance(given, tuple | list) and given else given
    if not isinstance(first, Tensor):
        raise TypeError(f"reshape_transform: expected a tensor, got {type(first).__name__}")
    return first
