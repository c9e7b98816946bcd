"""The layout of a whole model's tokens: told by its embedding or its config, or passed."""

from __future__ import annotations

from typing import Any

from torch import nn

from posenc.layout import TokenLayout
from posenc.patching.layouts import (
    CheckedLayout,
    EmbeddingLayout,
    GivenLayout,
    LayoutSource,
    SeenLayout,
    grid_of_embedding,
    grid_of_pixels,
    overlapping_projection,
)
from posenc.patching.models.kinds import Family, UnsupportedModelError
from posenc.patching.models.known import (
    adapted_of,
    embedding_of,
    known_families,
    left_alone_in,
)
from posenc.patching.models.others import ADAPTED


def layout_outside_timm(model: nn.Module, given: TokenLayout | None) -> LayoutSource:
    """The layout that the user passed, or that the model's own embedding tells.

    Raises:
        UnsupportedModelError: there is no attention known outside timm; its layout is not known;
            or the given one contradicts the model.
    """
    attention = _attention_outside_timm(model)
    if not attention:
        others = ", ".join(kind.path.rpartition(":")[2] for kind in ADAPTED)
        raise UnsupportedModelError(
            f"found no model that posenc knows in {type(model).__name__} (known are timm's "
            f"{known_families()}; and, with layout=, {others} in any model). A class of your "
            "own that calls F.scaled_dot_product_attention is made known by "
            "posenc.register_attention(cls); any other can call posenc.attend(q, k, v, terms)"
        )
    name, told = _told_layout(model, attention)
    if told is not None:
        _check_given(given, told, model)
        return CheckedLayout(given or told, name)
    if given is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} is no model of timm, so the layout of its tokens is not "
            f"known. Its attention ({attention[0] or 'the model itself'}, {len(attention)} in all) "
            "can be patched: pass layout=posenc.TokenLayout(height, width, prefix)"
        )
    return GivenLayout(given)


def _attention_outside_timm(model: nn.Module) -> list[str]:
    alone = left_alone(model)
    found = [name for name, module in model.named_modules() if adapted_of(module) is not None]
    return [name for name in found if name not in alone]


def left_alone(model: nn.Module) -> dict[str, str]:
    """Name of a module that is left alone, or is inside one -> why."""
    return {
        ".".join(filter(None, [name, inner])): reason
        for name, module in model.named_modules()
        if (reason := left_alone_in(module)) is not None
        for inner, _ in module.named_modules()
    }


def _told_layout(model: nn.Module, attention: list[str]) -> tuple[str, TokenLayout | None]:
    """The embedding of the images and its layout, where all attention stands beside it.

    With another tower in the model, the layout may be meant for that one.
    """
    found = [(n, m, kind) for n, m in model.named_modules() if (kind := embedding_of(m))]
    if len(found) != 1:
        return "", None
    name, module, kind = found[0]
    tower = name.rpartition(".")[0]
    inside = all(each.startswith(f"{tower}.") for each in attention) if tower else True
    return (name, kind.layout(module)) if inside else ("", None)


def _check_given(given: TokenLayout | None, told: TokenLayout, model: nn.Module) -> None:
    """Raises where a layout contradicts the model's config.

    Another image size is possible (`interpolate_pos_encoding=True`; DINOv2), and gives another
    number of patches; with the same number, the layout is more likely a mistake than an image.
    """
    if given is None or given == told:
        return
    if given.prefix == told.prefix and given.num_grid != told.num_grid:
        return
    raise UnsupportedModelError(
        f"layout={given} contradicts the config of {type(model).__name__}, which gives {told}: "
        f"leave layout= out, or pass a layout with prefix={told.prefix} and the grid of your "
        "images. For images of another shape with as many patches, patch without layout=, then "
        "call posenc.set_layout(model, layout)"
    )


def layout_in_timm(
    model: nn.Module, backbone: Any, family: Family, given: TokenLayout | None
) -> LayoutSource | None:
    """The layout that the embedding of a timm model tells; None where there is no single one.

    Raises:
        UnsupportedModelError: it is not known, or the given one contradicts the model.
    """
    if family.embedding is None:
        if given is not None:
            raise UnsupportedModelError(
                f"layout={given}: {type(backbone).__name__} has windows or stages, each with a "
                "layout of its own, which the model tells; leave layout= out"
            )
        return None
    embedding = getattr(backbone, family.embedding)
    if _takes_any_size(backbone, embedding, family):
        rest = _layout_at_rest(model, backbone, embedding, given)
        return SeenLayout(rest, backbone, family.embedding)
    if getattr(embedding, "grid_size", None) is None:
        if given is None:
            raise UnsupportedModelError(
                f"{type(embedding).__name__} has no grid_size, so the layout is not known: pass "
                "layout=posenc.TokenLayout(height, width, prefix)"
            )
        return GivenLayout(given)
    _check_overlap(backbone, embedding, given)
    source = EmbeddingLayout(backbone)
    if given is not None and _true_grid(embedding) not in (None, source.default().grid):
        return GivenLayout(given)
    if given not in (None, source.default()):
        raise UnsupportedModelError(
            f"layout={given} contradicts the model, whose patch embedding gives "
            f"{source.default()}; leave layout= out, or call model.set_input_size(...) first"
        )
    return source


def _true_grid(embedding: Any) -> tuple[int, int] | None:
    """What an overlapping projection makes of the embedding's image size; None for others."""
    image = getattr(embedding, "img_size", None)
    if image is None or overlapping_projection(embedding) is None:
        return None
    return grid_of_pixels(embedding, tuple(image))


def _check_overlap(backbone: Any, embedding: Any, given: TokenLayout | None) -> None:
    """Raises where patches overlap and neither the embedding nor the user tells the true grid."""
    true = _true_grid(embedding)
    if true is None or (given is None and true == tuple(embedding.grid_size)):
        return
    layout, conv = TokenLayout(*true, backbone.num_prefix_tokens), embedding.proj
    if given != layout:
        patch, image = tuple(embedding.patch_size), tuple(embedding.img_size)
        claimed = tuple(embedding.grid_size)
        raise UnsupportedModelError(
            f"the projection of the patch embedding has stride {conv.stride} and kernel "
            f"{conv.kernel_size} for patches of {patch}, so that images of {image} pixels give "
            f"{layout}; its grid_size is {claimed}"
            + ("" if given is None else f", and layout={given} was passed")
            + f": set patch_embed.grid_size = {true}, or pass layout=posenc.TokenLayout("
            f"{layout.height}, {layout.width}, prefix={layout.prefix})"
        )


def _takes_any_size(backbone: Any, embedding: Any, family: Family) -> bool:
    """Whether images of another size than the stated one are let through, and can be followed."""
    from timm.layers import HybridEmbed  # has strict_img_size, but does not look at it

    if getattr(backbone, "dynamic_img_size", False):
        return True
    if getattr(embedding, "grid_size", None) is None:
        return hasattr(embedding, "dynamic_feat_size") or family.seen_grid is not grid_of_embedding
    return isinstance(embedding, HybridEmbed) or not getattr(embedding, "strict_img_size", True)


def _layout_at_rest(
    model: nn.Module, backbone: Any, embedding: Any, given: TokenLayout | None
) -> TokenLayout:
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    if given is not None:
        if given.prefix != prefix:
            raise UnsupportedModelError(
                f"layout={given} contradicts the model, which has {prefix} prefix tokens; pass "
                f"TokenLayout({given.height}, {given.width}, prefix={prefix})"
            )
        return given
    grid = _true_grid(embedding) or getattr(embedding, "grid_size", None)
    if grid is None:
        image = _input_size(backbone) or _input_size(model)
        if image is None:
            raise UnsupportedModelError(
                f"{type(backbone).__name__} takes images of any size and names none, so sizes of "
                "parameters are not known: pass layout=posenc.TokenLayout(height, width, prefix) "
                "of your usual image; other sizes are followed"
            )
        grid = [size // patch for size, patch in zip(image[1:], embedding.patch_size, strict=True)]
        if overlapping_projection(embedding) is not None:
            grid = grid_of_pixels(embedding, image[1:])
    return TokenLayout(grid[0], grid[1], prefix)


def _input_size(model: nn.Module) -> tuple[int, int, int] | None:
    """Of the images that timm says a model was made for."""
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    return config.get("input_size")
