"""The parts of a model that patching needs, found without changing it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from posenc.intercept import CannotRewrite, rewritten_forward
from posenc.layout import TokenLayout
from posenc.patching.families import (
    Attention,
    Family,
    UnsupportedModelError,
    attention_of,
    family_of,
    grid_of_embedding,
    known_families,
)
from posenc.patching.layouts import EmbeddingLayout, GivenLayout, LayoutSource, SeenLayout


@dataclass(frozen=True)
class AttentionSite:
    """A module with attention calls that can be replaced."""

    name: str
    module: nn.Module
    kind: Attention
    layout: LayoutSource
    num_heads: int
    head_dim: int


@dataclass
class Anatomy:
    """The parts of a model that patching needs.

    Args:
        name: of the backbone in the model, "" when it is the model itself.
        backbone: the vision transformer.
        family: what is known of its class.
        layout: of its tokens, at run time.
        attention: its attention sites, in order.
        refused: name of an attention module -> why it is not a site.
    """

    name: str
    backbone: Any
    family: Family
    layout: LayoutSource
    attention: list[AttentionSite] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def embed_dim(self) -> int:
        """Width of the tokens."""
        width: int = self.backbone.embed_dim
        return width

    @property
    def blocks(self) -> list[str]:
        """Names of the blocks, in order."""
        name = self.family.blocks
        return [f"{name}.{index}" for index in range(len(self.backbone.get_submodule(name)))]

    @property
    def table(self) -> nn.Parameter | None:
        """The model's own absolute position table, if it has one."""
        where = self.family.table
        if where is None:
            return None
        return getattr(self.backbone.get_submodule(where.module), where.name, None)


def examine(model: nn.Module, layout: TokenLayout | None = None) -> Anatomy:
    """Finds the vision transformer in `model` and its parts, changing nothing.

    Raises:
        UnsupportedModelError: not a model that posenc can patch, with the reason.
    """
    check_model(model)
    name, backbone, family = _find_backbone(model)
    anatomy = Anatomy(name, backbone, family, _layout_source(backbone, family, layout))
    _find_attention(anatomy)
    return anatomy


def check_model(model: Any) -> None:
    """Raises for things that are no plain module, or that froze one."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            f"a scripted or traced model ({type(model).__name__}) has no Python forward left: "
            "patch the original model, then script or export it"
        )
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(f"expected a torch.nn.Module, got {type(model).__name__}")
    for wrapper in ("OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel"):
        if type(model).__name__ == wrapper:
            raise UnsupportedModelError(
                f"the model is already wrapped ({wrapper}), which would not see the new "
                "parameters: patch first, then compile or distribute"
            )


def _find_backbone(model: nn.Module) -> tuple[str, Any, Family]:
    found = [(n, m, f) for n, m in model.named_modules() if (f := family_of(m)) is not None]
    if not found:
        raise UnsupportedModelError(
            f"found no model that posenc knows in {type(model).__name__} (known are timm's "
            f"{known_families()}). Any other attention can call posenc.attend(q, k, v, terms) "
            "itself"
        )
    if len(found) > 1:
        names = ", ".join(name or "(the model)" for name, _, _ in found)
        raise UnsupportedModelError(
            f"found {len(found)} vision transformers ({names}): patch each by itself"
        )
    return found[0]


def _layout_source(backbone: Any, family: Family, given: TokenLayout | None) -> LayoutSource:
    embedding = getattr(backbone, family.embedding)
    if _takes_any_size(backbone, embedding, family):
        return SeenLayout(_layout_at_rest(backbone, embedding, given))
    if getattr(embedding, "grid_size", None) is None:
        if given is None:
            raise UnsupportedModelError(
                f"{type(embedding).__name__} has no grid_size, so the layout is not known: pass "
                "layout=posenc.TokenLayout(height, width, prefix)"
            )
        return GivenLayout(given)
    source = EmbeddingLayout(backbone)
    if given not in (None, source.at_rest()):
        raise UnsupportedModelError(
            f"layout={given} contradicts the model, whose patch embedding gives "
            f"{source.at_rest()}; leave layout= out, or call model.set_input_size(...) first"
        )
    return source


def _takes_any_size(backbone: Any, embedding: Any, family: Family) -> bool:
    """Whether images of another size than the stated one are let through, and can be followed."""
    if getattr(backbone, "dynamic_img_size", False):
        return True
    if getattr(embedding, "grid_size", None) is None:
        return hasattr(embedding, "dynamic_feat_size") or family.seen_grid is not grid_of_embedding
    return not getattr(embedding, "strict_img_size", True)


def _layout_at_rest(backbone: Any, embedding: Any, given: TokenLayout | None) -> TokenLayout:
    prefix = getattr(backbone, "num_prefix_tokens", 0)
    if given is not None:
        if given.prefix != prefix:
            raise UnsupportedModelError(
                f"layout={given} contradicts the model, which has {prefix} prefix tokens; pass "
                f"TokenLayout({given.height}, {given.width}, prefix={prefix})"
            )
        return given
    grid = getattr(embedding, "grid_size", None)
    if grid is None:
        image = (getattr(backbone, "pretrained_cfg", None) or {}).get("input_size")
        if image is None:
            raise UnsupportedModelError(
                f"{type(backbone).__name__} takes images of any size and names none, so sizes of "
                "parameters are not known: pass layout=posenc.TokenLayout(height, width, prefix) "
                "of your usual image; other sizes are followed"
            )
        grid = [size // patch for size, patch in zip(image[1:], embedding.patch_size, strict=True)]
    return TokenLayout(grid[0], grid[1], prefix)


def _find_attention(anatomy: Anatomy) -> None:
    for name, module in anatomy.backbone.named_modules():
        if not name.startswith(f"{anatomy.family.blocks}."):
            continue  # attention pooling is left alone
        kind = attention_of(module)
        if kind is None:
            if _looks_like_attention(module):
                anatomy.refused[name] = f"{type(module).__name__} is not among the known attentions"
            continue
        reason = _refusal(module)
        if reason:
            anatomy.refused[name] = reason
        else:
            anatomy.attention.append(_site(anatomy, name, module, kind))


def _site(anatomy: Anatomy, name: str, module: Any, kind: Attention) -> AttentionSite:
    layout = anatomy.family.window(anatomy.backbone, name) or anatomy.layout
    return AttentionSite(name, module, kind, layout, module.num_heads, kind.head_dim(module))


def _refusal(module: Any) -> str | None:
    if "forward" in vars(module):
        return "its forward was replaced on the instance (a hook of another library)"
    try:
        original: Any = type(module)
        rewritten_forward(original)
    except CannotRewrite as reason:
        return f"{type(module).__name__}: {reason}"
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


def warn_if_pointless(layout: TokenLayout) -> None:
    """A 1x1 grid has no positions."""
    if layout.num_grid == 1:
        warnings.warn(
            f"posenc: the layout {layout} has a single patch, position cannot matter",
            stacklevel=4,
        )
