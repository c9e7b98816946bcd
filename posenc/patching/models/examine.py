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
    GivenLayout,
    LayoutSource,
    MapLayout,
    SeenGrid,
    SeenLayout,
    StageLayout,
)
from posenc.patching.models.kinds import AttentionKind, Family, UnsupportedModelError
from posenc.patching.models.known import (
    adapted_of,
    attention_of,
    embedding_of,
    family_of,
    refusal_of,
)
from posenc.patching.models.model_layout import layout_in_timm, layout_outside_timm, left_alone
from posenc.patching.models.others import OTHER
from posenc.patching.sites.classes import ADAPTERS


@dataclass(frozen=True)
class AttentionSite:
    """A module with attention calls that can be replaced.

    Args:
        name: in the backbone.
        module: the module.
        kind: what is known of its class.
        layout: of its tokens, at run time.
        num_heads: of the attention.
        head_dim: width of queries and keys.
        value_dim: width of values.
        width: of the tokens that it receives; None where that is not known.
    """

    name: str
    module: nn.Module
    kind: AttentionKind
    layout: LayoutSource
    num_heads: int
    head_dim: int
    value_dim: int
    width: int | None


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
        """The different layouts of the model and its attention sites, by default."""
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
        source: LayoutSource | None = layout_outside_timm(model, layout)
    else:
        source = layout_in_timm(model, module, family, layout)
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


def _find_attention(backbone: Backbone) -> None:
    alone = left_alone(backbone.module)
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
            width = backbone.embed_dim
            if backbone.family is OTHER and kind.width is not None:
                width = kind.width(module)
            backbone.attention.append(_site(name, module, kind, layout, width))


def _layout_of_site(backbone: Backbone, name: str, module: nn.Module) -> LayoutSource | str | None:
    """What an attention module sees, or why that is not known."""
    read = backbone.family.stage
    if read is None:
        return backbone.family.site_layout(backbone.module, name, module) or backbone.layout
    told = read(backbone.module, name, module)
    return told if isinstance(told, str) else StageLayout(backbone.module, name, module, read)


def _site(
    name: str, module: Any, kind: AttentionKind, layout: LayoutSource, width: int | None
) -> AttentionSite:
    num_heads, head_dim, value_dim = _sizes(module, kind)
    return AttentionSite(
        name=name,
        module=module,
        kind=kind,
        layout=layout if kind.map is None else MapLayout(layout),
        num_heads=num_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        width=width,
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
            "it has no floating point parameters (quantized?): patch the floating point model, "
            "then quantize it"
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
