"""What posenc knows of timm models: where their layout and their attention are.

The only place with knowledge of a model family; timm is imported inside the functions.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from posenc.intercept import CannotRewrite, rewritten_forward
from posenc.layout import TokenLayout
from posenc.patching.layouts import EmbeddingLayout, GivenLayout, LayoutSource


class UnsupportedModelError(ValueError):
    """A model or module that posenc refuses, with the reason and what to do."""


@dataclass(frozen=True)
class AttentionSite:
    """A module with an attention call that can be replaced."""

    name: str
    module: nn.Module
    num_heads: int
    head_dim: int


@dataclass
class Anatomy:
    """The parts of a model that patching needs.

    Args:
        name: of the backbone in the model, "" when it is the model itself.
        backbone: the vision transformer.
        embed_dim: width of its tokens.
        layout: of its tokens, at run time.
        attention: its attention sites, in order.
        blocks: names of its blocks, in order.
        refused: name of an attention module -> why it is not a site.
    """

    name: str
    backbone: nn.Module
    embed_dim: int
    layout: LayoutSource
    attention: list[AttentionSite] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> nn.Parameter | None:
        """The model's own absolute position table, if it has one."""
        return getattr(self.backbone, "pos_embed", None)


def examine(model: nn.Module, layout: TokenLayout | None = None) -> Anatomy:
    """Finds the vision transformer in `model` and its parts, changing nothing.

    Raises:
        UnsupportedModelError: not a model that posenc can patch, with the reason.
    """
    check_model(model)
    name, backbone = _find_backbone(model)
    anatomy = Anatomy(
        name=name,
        backbone=backbone,
        embed_dim=backbone.embed_dim,
        layout=_layout_source(backbone, layout),
        blocks=[f"blocks.{index}" for index in range(len(backbone.blocks))],
    )
    _find_attention(anatomy)
    return anatomy


def check_model(model: Any) -> None:
    """Raises for things that are no plain module, or that froze one."""
    import torch

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


def _find_backbone(model: nn.Module) -> tuple[str, Any]:
    from timm.models.vision_transformer import VisionTransformer

    found = [(n, m) for n, m in model.named_modules() if isinstance(m, VisionTransformer)]
    if not found:
        raise UnsupportedModelError(
            f"found no timm VisionTransformer in {type(model).__name__}: posenc patches models of "
            "that class so far. Any other attention can call posenc.attend(q, k, v, terms) itself"
        )
    if len(found) > 1:
        names = ", ".join(name or "(the model)" for name, _ in found)
        raise UnsupportedModelError(
            f"found {len(found)} vision transformers ({names}): patch each by itself"
        )
    return found[0]


def _layout_source(backbone: Any, given: TokenLayout | None) -> LayoutSource:
    embedding = backbone.patch_embed
    if getattr(backbone, "dynamic_img_size", False):
        raise UnsupportedModelError(
            "dynamic_img_size=True changes the layout from call to call, which posenc does not "
            "follow yet: create the model with a fixed img_size"
        )
    grid = getattr(embedding, "grid_size", None)
    if grid is not None and not getattr(embedding, "strict_img_size", True):
        raise UnsupportedModelError(
            f"{type(embedding).__name__} has strict_img_size=False: images of another shape would "
            "pass with the positions of this one; create it with strict_img_size=True"
        )
    if grid is None and given is not None:
        return GivenLayout(given)
    if grid is None:
        raise UnsupportedModelError(
            f"{type(embedding).__name__} has no grid_size, so the layout is not known: pass "
            "layout=posenc.TokenLayout(height, width, prefix)"
        )
    source = EmbeddingLayout(backbone)
    if given not in (None, source.current()):
        raise UnsupportedModelError(
            f"layout={given} contradicts the model, whose patch embedding gives "
            f"{source.current()}; leave layout= out, or call model.set_input_size(...) first"
        )
    return source


def _attention_classes() -> tuple[type[nn.Module], ...]:
    """Classes with `num_heads` and `head_dim` whose one SDPA call sees all tokens, 4-D."""
    from timm.layers import Attention
    from timm.models.vision_transformer import ParallelScalingBlock

    return Attention, ParallelScalingBlock


def _find_attention(anatomy: Anatomy) -> None:
    known = _attention_classes()
    for name, module in anatomy.backbone.named_modules():
        if not name.startswith("blocks."):
            continue  # attention pooling is left alone
        if isinstance(module, known):
            reason = _refusal(module)
            if reason:
                anatomy.refused[name] = reason
            else:
                anatomy.attention.append(_attention_site(name, module))
        elif _looks_like_attention(module):
            anatomy.refused[name] = f"{type(module).__name__} is not among the known attentions"


def _attention_site(name: str, module: Any) -> AttentionSite:
    return AttentionSite(name, module, module.num_heads, module.head_dim)


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
