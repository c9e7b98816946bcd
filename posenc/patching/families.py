"""What posenc knows of timm models: where their layout, their attention and their tables are.

Data, as far as possible; classes are named by path and imported when a model is examined.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from posenc.patching.layouts import LayoutSource, WindowLayout

# From an embedding, its first argument and its result to the grid of its tokens.
SeenGrid = Callable[[Any, Any, Any], tuple[int, int]]


class UnsupportedModelError(ValueError):
    """A model or module that posenc refuses, with the reason and what to do."""


def grid_of_embedding(embedding: Any, image: Any, result: Any) -> tuple[int, int]:
    """Of timm's PatchEmbed and HybridEmbed."""
    if getattr(embedding, "output_fmt", None) == "NHWC":
        return result.shape[1], result.shape[2]
    height, width = embedding.dynamic_feat_size(tuple(image.shape[-2:]))
    return height, width


def grid_of_naflex(embedding: Any, image: Any, result: Any) -> tuple[int, int]:
    """Of NaFlexEmbeds, which returns it for images only."""
    if result[1] is None:
        raise UnsupportedModelError(_PATCH_DICTIONARY)
    height, width = result[1]
    return height, width


def grid_of_gemma(embedding: Any, image: Any, result: Any) -> tuple[int, int]:
    """Of Gemma4PatchEmbed."""
    if not isinstance(image, Tensor) or image.dim() != 4 or result[2] is not None:
        raise UnsupportedModelError(_PATCH_DICTIONARY)
    patch_height, patch_width = embedding.patch_size
    return image.shape[2] // patch_height, image.shape[3] // patch_width


_PATCH_DICTIONARY = (
    "posenc: patches with coordinates (NaFlex dictionaries) have a grid per sample, and posenc "
    "needs one layout for the batch: call the model with images of one size [B, C, H, W]"
)


@dataclass(frozen=True)
class Attention:
    """A class whose forward computes self-attention by calls that can be replaced.

    Args:
        path: "module:Class".
        shape: of query, key and value at the call, as an einops pattern.
        value_ratio: width of the values over head_dim.
        head_dim: of a module.
    """

    path: str
    shape: str = "b h n d"
    value_ratio: int = 1
    head_dim: Callable[[Any], int] = lambda module: module.head_dim


@dataclass(frozen=True)
class Step:
    """Where the model adds positions to its tokens; `None` stands for the first block's input.

    Args:
        module: name in the backbone.
        method: that returns the tokens, positions added.
    """

    module: str = ""
    method: str = "_pos_embed"


@dataclass(frozen=True)
class Table:
    """An absolute position table that can be hidden.

    Args:
        module: its name in the backbone.
        methods: of the module, that add the table.
        name: of the parameter.
    """

    module: str = ""
    methods: tuple[str, ...] = ("_pos_embed",)
    name: str = "pos_embed"


@dataclass(frozen=True)
class Family:
    """A class of models whose attention sees one grid of tokens (and windows of it).

    Args:
        path: "module:Class".
        embedding: name of the patch embedding.
        step: where positions are added.
        table: the absolute position table.
        seen_grid: tells the grid that the embedding saw.
        blocks: name of the list of blocks.
        window: layout of an attention module that does not see the whole grid, else None.
    """

    path: str
    embedding: str = "patch_embed"
    step: Step | None = Step()
    table: Table | None = Table()
    seen_grid: SeenGrid = grid_of_embedding
    blocks: str = "blocks"
    window: Callable[[nn.Module, str], LayoutSource | None] = lambda backbone, name: None


def _sam_window(backbone: nn.Module, name: str) -> LayoutSource | None:
    block: Any = backbone.get_submodule(name.removesuffix(".attn"))
    return WindowLayout(block) if block.window_size > 0 else None


_FEATURES = ("forward_features", "forward_intermediates")

FAMILIES = (
    Family("timm.models.vision_transformer:VisionTransformer"),
    Family("timm.models.eva:Eva"),
    Family("timm.models.beit:Beit", step=None, table=Table(methods=_FEATURES)),
    Family(
        "timm.models.vision_transformer_relpos:VisionTransformerRelPos",
        step=None,
        table=None,
    ),
    Family(
        "timm.models.vision_transformer_sam:VisionTransformerSAM",
        step=None,
        table=Table(methods=_FEATURES),
        window=_sam_window,
    ),
    Family("timm.models.qwen3_vit:Qwen3VitEncoder"),
    Family("timm.models.deepseek_vit:DeepseekVitEncoder", table=None),
    Family(
        "timm.models.gemma4_vit:Gemma4VitEncoder",
        step=Step("patch_embed", "forward"),
        table=Table("patch_embed", ("_position_embeddings",), "position_embedding_table"),
        seen_grid=grid_of_gemma,
    ),
    Family(
        "timm.models.naflexvit:NaFlexVit",
        embedding="embeds",
        step=Step("embeds", "forward"),
        table=Table("embeds", ("_apply_learned_pos_embed",)),
        seen_grid=grid_of_naflex,
    ),
)


def _from_scale(module: Any) -> int:
    # BEiT keeps no head_dim; its scale is head_dim ** -0.5.
    return round(module.scale**-2)


ATTENTIONS = (
    Attention("timm.layers.attention:Attention"),
    Attention("timm.layers.attention:AttentionRope"),
    Attention("timm.models.eva:EvaAttention"),
    Attention("timm.models.beit:Attention", head_dim=_from_scale),
    Attention("timm.models.vision_transformer_relpos:RelPosAttention"),
    Attention("timm.models.vision_transformer_sam:Attention", shape="(b h) n d"),
    Attention("timm.models.gemma4_vit:Gemma4Attention"),
    Attention("timm.layers.diff_attention:DiffAttention", value_ratio=2),
    Attention("timm.models.vision_transformer:ParallelScalingBlock"),
    Attention("timm.models.vision_transformer:DiffParallelScalingBlock", value_ratio=2),
)


def family_of(module: nn.Module) -> Family | None:
    """The family of a backbone, None when it is none."""
    return _first(type(module), _by_class(FAMILIES))


def attention_of(module: nn.Module) -> Attention | None:
    """What is known of an attention module, None when nothing is."""
    return _first(type(module), _by_class(ATTENTIONS))


def known_families() -> str:
    """Names of the model classes, for messages."""
    return ", ".join(family.path.rpartition(":")[2] for family in FAMILIES)


def _first(cls: type, known: dict[type, Any]) -> Any:
    return next((known[base] for base in cls.__mro__ if base in known), None)


@functools.cache
def _by_class(entries: Iterable[Any]) -> dict[type, Any]:
    found = {}
    for entry in entries:
        module, _, name = entry.path.partition(":")
        try:
            found[getattr(importlib.import_module(module), name)] = entry
        except (ImportError, AttributeError):
            continue  # a model that this timm does not have
    return found
