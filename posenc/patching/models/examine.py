"""The parts of a model that patching needs, found without changing it."""

from __future__ import annotations

import re
import reprlib
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from posenc.encodings.base import check_layout
from posenc.intercept import CannotRewrite, rewritten_forward
from posenc.layout import TokenLayout
from posenc.patching.layouts import (
    CheckedLayout,
    EmbeddingLayout,
    GivenLayout,
    LayoutSource,
    MapLayout,
    SeenGrid,
    SeenLayout,
    StageLayout,
    grid_of_embedding,
    grid_of_pixels,
    overlapping_projection,
)
from posenc.patching.models.kinds import AttentionKind, Family, UnsupportedModelError
from posenc.patching.models.known import (
    adapted_of,
    attention_of,
    embedding_of,
    family_of,
    known_families,
    left_alone_in,
    refusal_of,
)
from posenc.patching.models.others import ADAPTED, OTHER
from posenc.patching.sites.classes import ADAPTERS


@dataclass(frozen=True)
class AttentionSite:
    """A module with attention calls that can be replaced."""

    name: str
    module: nn.Module
    kind: AttentionKind
    layout: LayoutSource
    num_heads: int
    head_dim: int
    value_dim: int


@dataclass
class Backbone:
    """The parts of a model that patching needs.

    Args:
        name: of the backbone in the model, "" when it is the model itself.
        module: the vision transformer.
        family: what is known of its class.
        layout: of its tokens, at run time; None where stages or windows have their own.
        attention: its attention sites, in order.
        refused: name of an attention module -> why it cannot be a site.
        left_alone: name of an attention module -> why it sees no known grid, by design.
    """

    name: str
    module: Any
    family: Family
    layout: LayoutSource | None
    attention: list[AttentionSite] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)

    @property
    def embed_dim(self) -> int | None:
        """Width of the tokens; None where stages have their own, or where it is not known."""
        unknown = self.layout is None or self.family is OTHER
        return None if unknown else int(self.module.embed_dim)

    @property
    def table_grid(self) -> tuple[int, int] | None:
        """The grid of the table's rows, None when nothing tells."""
        if self.table is not None and self.table.dim() == 4:
            height, width = self.table.shape[1:3]
            return height, width
        side = getattr(self.module, "pos_embed_grid_size", None)
        if side is not None:
            return side, side
        embedding = getattr(self.module, self.family.embedding or "", None)
        grid = getattr(embedding, "grid_size", None)
        return None if grid is None else (grid[0], grid[1])

    def layouts(self) -> list[TokenLayout]:
        """The different layouts of the model and its attention sites, at rest."""
        sources = [self.layout] if self.layout is not None else []
        sources += [site.layout for site in self.attention]
        return list(dict.fromkeys(source.default() for source in sources))

    def windows(self) -> dict[str, tuple[int, int]]:
        """Name of an attention site -> its grid, where it is not the model's."""
        own = {s.name: s.layout.default().grid for s in self.attention}
        whole = self.layout.default().grid if self.layout is not None else None
        return {name: grid for name, grid in own.items() if grid != whole}

    @property
    def sees_images(self) -> tuple[str, SeenGrid] | None:
        """Name of the module that must tell which images it saw, and how it does."""
        if isinstance(self.layout, CheckedLayout):
            kind = embedding_of(self.module.get_submodule(self.layout.embedding))
            return None if kind is None else (self.layout.embedding, kind.seen_grid)
        if isinstance(self.layout, SeenLayout):
            return self.layout.embedding, self.family.seen_grid
        return None

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, in order."""
        prefix = self.family.blocks
        blocks = self.module.get_submodule(prefix.removesuffix("."))
        return [f"{prefix}{index}" for index in range(len(blocks))]

    def check_one_place(self) -> None:
        """Raises when the layout that the user passed is not clearly that of all attention.

        Layers of one stack differ in the last number of their names.
        """
        names = [*(site.name for site in self.attention), *self.refused]
        places = sorted({re.sub(r"\d+(?=\D*$)", "<i>", name) for name in names})
        if self.family is OTHER and len(places) > 1:
            raise UnsupportedModelError(
                f"{type(self.module).__name__} has attention in {len(places)} places "
                f"({', '.join(places)}), and layout={self.layout and self.layout.default()} may "
                "be that of one of them: patch that part of the model by itself, such as "
                "model.visual, or select by name, blocks=lambda name: name.startswith(...)"
            )

    @property
    def table(self) -> nn.Parameter | None:
        """The model's own absolute position table, if it has one."""
        where = self.family.table
        if where is None:
            return None
        return getattr(self.module.get_submodule(where.module), where.name, None)


def examine(model: nn.Module, layout: TokenLayout | None = None) -> Backbone:
    """Finds the vision transformer in `model` and its parts, changing nothing.

    Raises:
        TypeError: not a module, or not a layout.
        UnsupportedModelError: not a model that posenc can patch, with the reason.
    """
    check_model(model)
    if layout is not None:
        check_layout(layout, type(model).__name__)
    name, module, family = _find_backbone(model, layout)
    if family is OTHER:
        source: LayoutSource | None = _layout_outside_timm(model, layout)
    else:
        source = _layout_source(model, module, family, layout)
    backbone = Backbone(name, module, family, source)
    _find_attention(backbone)
    return backbone


def module_refusal(model: Any) -> str | None:
    """Why something is no module, None when it is one."""
    if isinstance(model, nn.Module):
        return None
    what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
    return f"expected a torch.nn.Module, got {what}: {reprlib.repr(model)}"


def check_module(model: Any) -> None:
    """Raises TypeError for what is no module: the first thing that each public function does."""
    if (reason := module_refusal(model)) is not None:
        raise TypeError(reason)


def check_model(model: Any) -> None:
    """Raises for things that are no plain module, or that froze one."""
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"a scripted or traced model ({type(model).__name__}) has no Python forward left: "
            "patch the original model, then script or export it"
        )
    for wrapper in ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel"):
        if type(model).__name__ == wrapper:
            raise UnsupportedModelError(
                f"the model is already wrapped ({wrapper}), which would not see the new "
                "parameters: patch first, then compile or distribute"
            )


def _find_backbone(model: nn.Module, layout: TokenLayout | None) -> tuple[str, Any, Family]:
    found = [(n, m, f) for n, m in model.named_modules() if (f := family_of(m)) is not None]
    if not found:
        for name, module in model.named_modules():
            if (reason := refusal_of(module)) is not None:
                raise UnsupportedModelError(f"{name or type(module).__name__}: {reason}")
        return "", model, OTHER
    if len(found) > 1:
        names = ", ".join(name or "(the model)" for name, _, _ in found)
        raise UnsupportedModelError(
            f"found {len(found)} vision transformers ({names}): patch each by itself"
        )
    return found[0]


def _layout_outside_timm(model: nn.Module, given: TokenLayout | None) -> LayoutSource:
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
    alone = _left_alone(model)
    found = [name for name, module in model.named_modules() if adapted_of(module) is not None]
    return [name for name in found if name not in alone]


def _left_alone(model: nn.Module) -> dict[str, str]:
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


def _layout_source(
    model: nn.Module, backbone: Any, family: Family, given: TokenLayout | None
) -> LayoutSource | None:
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
    layout = TokenLayout(*true, backbone.num_prefix_tokens)
    if given != layout:
        given_text = "" if given is None else f", and layout={given} was passed"
        raise UnsupportedModelError(
            f"the projection of the patch embedding has stride {embedding.proj.stride} and patch "
            f"size {tuple(embedding.patch_size)}, so that images of {tuple(embedding.img_size)} "
            f"pixels give {layout}; its grid_size is {tuple(embedding.grid_size)}{given_text}: set "
            f"patch_embed.grid_size = {true}, or pass layout=posenc.TokenLayout({layout.height}, "
            f"{layout.width}, prefix={layout.prefix})"
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


def _find_attention(backbone: Backbone) -> None:
    alone = _left_alone(backbone.module)
    for name, module in backbone.module.named_modules():
        if not name.startswith(backbone.family.blocks):
            continue  # attention pooling is left alone
        if name in alone:
            if adapted_of(module) is not None:
                backbone.left_alone[name] = alone[name]
            continue
        kind = adapted_of(module) if backbone.family is OTHER else attention_of(module)
        if kind is None:
            if _looks_like_attention(module):
                own = type(module).__name__
                backbone.refused[name] = f"{own} is not among the known attentions"
            continue
        layout = _layout_of_site(backbone, name, module)
        reason = _refusal(module, kind) or _map_refusal(kind, layout)
        if isinstance(layout, str):
            backbone.left_alone[name] = layout
        elif reason or layout is None:
            backbone.refused[name] = reason or "its layout is not known"
        else:
            backbone.attention.append(_site(name, module, kind, layout))


def _layout_of_site(backbone: Backbone, name: str, module: nn.Module) -> LayoutSource | str | None:
    """What an attention module sees, or why that is not known."""
    read = backbone.family.stage
    if read is None:
        return backbone.family.site_layout(backbone.module, name, module) or backbone.layout
    told = read(backbone.module, name, module)
    return told if isinstance(told, str) else StageLayout(backbone.module, name, module, read)


def _site(name: str, module: Any, kind: AttentionKind, layout: LayoutSource) -> AttentionSite:
    num_heads, head_dim, value_dim = _sizes(module, kind)
    return AttentionSite(
        name=name,
        module=module,
        kind=kind,
        layout=layout if kind.map is None else MapLayout(layout),
        num_heads=num_heads,
        head_dim=head_dim,
        value_dim=value_dim,
    )


def _sizes(module: Any, kind: AttentionKind) -> tuple[int, int, int]:
    head_dim = kind.head_dim(module)
    value_dim = head_dim if kind.value_dim is None else kind.value_dim(module)
    return kind.num_heads(module), head_dim, value_dim


def _refusal(module: Any, kind: AttentionKind) -> str | None:
    if "forward" in vars(module):
        return "its forward was replaced on the instance (a hook of another library)"
    if not any(parameter.is_floating_point() for parameter in module.parameters()):
        return (
            "it has no floating point parameters (quantised?): patch the floating point model, "
            "then quantise it"
        )
    if kind.adapter is not None:
        return ADAPTERS[kind.adapter].refusal(module)
    try:
        original: Any = type(module)
        rewritten_forward(original)
    except CannotRewrite as reason:
        return f"{type(module).__name__}: {reason}"
    return _size_refusal(module, kind)


def _map_refusal(kind: AttentionKind, layout: LayoutSource | str | None) -> str | None:
    """A map is a grid and nothing else; a model of timm with prefix tokens has none."""
    if kind.map is None or not isinstance(layout, GivenLayout) or layout.layout.prefix == 0:
        return None
    return f"layout {layout.layout} has prefix tokens, and a map [{kind.map}] has none"


def _size_refusal(module: Any, kind: AttentionKind) -> str | None:
    """Why the sizes of a module cannot be read; they are what a user registered, perhaps."""
    say = "say where posenc.register_attention finds num_heads=, head_dim= and value_dim="
    try:
        sizes = _sizes(module, kind)
    except AttributeError as error:
        return f"{error}: {say}"
    if any(type(size) is not int or size < 1 for size in sizes):
        return f"(num_heads, head_dim, value_dim) = {sizes} of {type(module).__name__}: {say}"
    return None


def _looks_like_attention(module: nn.Module) -> bool:
    return hasattr(module, "fused_attn") or isinstance(module, nn.MultiheadAttention)


def check_fused_flag() -> None:
    """Raises when the user switched timm's fused attention off everywhere."""
    from timm.layers import use_fused_attn

    if not use_fused_attn():
        raise UnsupportedModelError(
            "timm's fused attention is switched off globally (timm.layers.set_fused_attn(False), "
            "TIMM_FUSED_ATTN=0 or exportable mode), and posenc replaces the fused call: call "
            "timm.layers.set_fused_attn(True) before patching"
        )


def warn_if_pointless(layouts: list[TokenLayout]) -> None:
    """A 1x1 grid has no positions."""
    if layouts and all(layout.num_grid == 1 for layout in layouts):
        warnings.warn(
            f"posenc: the layout {layouts[0]} has a single patch, position cannot matter",
            stacklevel=4,
        )
