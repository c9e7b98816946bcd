"""What posenc knows of models: where their layout, their attention and their tables are.

Data, as far as possible; classes are named by path and imported when a model is examined.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from posenc.layout import TokenLayout
from posenc.patching.layouts import LayoutSource, StageLayout, WindowLayout

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
        map: "b h w c" or "b c h w" where forward receives a map of the tokens that attend to
            each other, "size" where it receives (tokens, (height, width)): these sides are then
            the layout, whatever the image.
        num_heads: of a module.
        head_dim: of a module.
        value_dim: of a module, default head_dim.
        adapter: what replaces the attention where its calls cannot be: a key of
            `posenc.patching.sites.ADAPTERS`.
    """

    path: str
    shape: str = "b h n d"
    map: str | None = None
    num_heads: Callable[[Any], int] = lambda module: module.num_heads
    head_dim: Callable[[Any], int] = lambda module: module.head_dim
    value_dim: Callable[[Any], int] | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Step:
    """Where the model adds positions to its tokens; `None` stands for the first block's input.

    Args:
        module: name in the backbone.
        method: that returns the tokens, positions added.
        before: whether instead the module's forward receives the tokens.
    """

    module: str = ""
    method: str = "_pos_embed"
    before: bool = False


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


# From a backbone, a name in it and the module to its layout; None stands for the layout of the
# whole model, words for the reason why the module is left alone.
SiteLayout = Callable[[Any, str, Any], LayoutSource | str | None]


@dataclass(frozen=True)
class Family:
    """A class of models.

    Args:
        path: "module:Class".
        embedding: name of the patch embedding whose grid all blocks see; None where stages or
            windows have grids of their own.
        step: where positions are added.
        table: the absolute position table.
        seen_grid: tells the grid that the embedding saw.
        blocks: what the names of attention modules start with.
        site_layout: tells what an attention module sees.
    """

    path: str
    embedding: str | None = "patch_embed"
    step: Step | None = Step()
    table: Table | None = Table()
    seen_grid: SeenGrid = grid_of_embedding
    blocks: str = "blocks."
    site_layout: SiteLayout = lambda backbone, name, module: None


def _sam(backbone: Any, name: str, module: Any) -> LayoutSource | None:
    block: Any = backbone.get_submodule(name.removesuffix(".attn"))
    return WindowLayout(block) if block.window_size > 0 else None


_FEATURES = ("forward_features", "forward_intermediates")

# All blocks see one grid (or, in SAM, windows of it).
GLOBAL_FAMILIES = (
    Family("timm.models.vision_transformer:VisionTransformer"),
    Family("timm.models.eva:Eva"),
    Family("timm.models.beit:Beit", step=None, table=Table(methods=_FEATURES)),
    Family("timm.models.vision_transformer_relpos:VisionTransformerRelPos", step=None, table=None),
    Family(
        "timm.models.vision_transformer_sam:VisionTransformerSAM",
        step=Step("norm_pre", "forward", before=True),
        table=Table(methods=_FEATURES),
        site_layout=_sam,
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


def _own(attribute: str) -> SiteLayout:
    return lambda backbone, name, module: WindowLayout(module, attribute)


def _maxvit(backbone: Any, name: str, module: Any) -> LayoutSource | str:
    parent = backbone.get_submodule(name.rpartition(".")[0])
    if hasattr(parent, "partition_size"):
        return WindowLayout(parent, "partition_size")
    if hasattr(module.rel_pos, "window_size"):
        return WindowLayout(module.rel_pos)
    return "it sees a whole stage, whose grid no attribute holds (no relative position module)"


def _nest(backbone: Any, name: str, module: Any) -> LayoutSource:
    return WindowLayout(backbone.get_submodule(name.partition(".transformer")[0]), "block_size")


def _twins(backbone: Any, name: str, module: Any) -> LayoutSource | str:
    if hasattr(module, "ws"):
        return WindowLayout(module, "ws")
    if module.sr is not None:
        return "its keys are a summary of the grid, fewer than its queries"
    return StageLayout(backbone, name, twins_layout)


def twins_layout(backbone: Any, name: str) -> TokenLayout:
    """The grid of stage `blocks.<stage>.<i>.attn` for the image size that the model states."""
    embedding = backbone.patch_embeds[int(name.split(".")[1])]
    return TokenLayout(embedding.H, embedding.W)


def _pit(backbone: Any, name: str, module: Any) -> LayoutSource:
    return StageLayout(backbone, name, pit_layout)


def pit_layout(backbone: Any, name: str) -> TokenLayout:
    """The embedding's grid, after the pooling convolutions up to this stage."""
    grid = list(backbone.pos_embed.shape[-2:])
    for stage in backbone.transformers[1 : int(name.split(".")[1]) + 1]:
        conv = stage.pool.conv
        for axis in (0, 1):
            padded = grid[axis] + 2 * conv.padding[axis] - conv.kernel_size[axis]
            grid[axis] = padded // conv.stride[axis] + 1
    return TokenLayout(grid[0], grid[1], backbone.cls_token.shape[1])


def _crossvit(backbone: Any, name: str, module: Any) -> LayoutSource:
    return StageLayout(backbone, name, crossvit_layout)


def crossvit_layout(backbone: Any, name: str) -> TokenLayout:
    """The grid of the branch, `blocks.<i>.blocks.<branch>.<j>.attn`."""
    embedding = backbone.patch_embed[int(name.split(".")[3])]
    (height, width), (patch_height, patch_width) = embedding.img_size, embedding.patch_size
    return TokenLayout(height // patch_height, width // patch_width, prefix=1)


def _visformer(backbone: Any, name: str, module: Any) -> LayoutSource:
    return StageLayout(backbone, name, visformer_layout)


def visformer_layout(backbone: Any, name: str) -> TokenLayout:
    """The grid of the last patch embedding before `stage<k>`."""
    stages = range(int(name.removeprefix("stage")[0]), 0, -1)
    embeddings = (getattr(backbone, f"patch_embed{stage}", None) for stage in stages)
    return TokenLayout(*next(e.grid_size for e in embeddings if e is not None))


def _volo(backbone: Any, name: str, module: Any) -> LayoutSource | str:
    if int(name.split(".")[1]) < 2 or backbone.pos_embed is None:
        return "the grid of its stage is not known"
    return StageLayout(backbone, name, volo_layout)


def volo_layout(backbone: Any, name: str) -> TokenLayout:
    """The grid of the position table, which is added before the first transformer stage."""
    return TokenLayout(*backbone.pos_embed.shape[1:3])


def _hiera(backbone: Any, name: str, module: Any) -> LayoutSource | str:
    strides, size = backbone.reroll.schedule[int(name.split(".")[1])]
    if module.q_stride > 1:
        return "its queries are pooled, fewer than its keys"
    if len(size) != 2:
        return "video has a third axis"
    if len(strides) > 0 or module.use_mask_unit_attn:
        return "its tokens lie in unrolled order, not row by row"
    return StageLayout(backbone, name, hiera_layout)


def hiera_layout(backbone: Any, name: str) -> TokenLayout:
    """The grid of a stage whose unrolling is undone."""
    return TokenLayout(*backbone.reroll.schedule[int(name.split(".")[1])][1])


def _hieradet(backbone: Any, name: str, module: Any) -> LayoutSource | str:
    block: Any = backbone.get_submodule(name.removesuffix(".attn"))
    if module.q_pool is not None:
        return "its queries are pooled, fewer than its keys"
    if not block.is_windowed:
        return "it sees the whole grid of an image of any size"
    return WindowLayout(block)


def _staged(path: str, blocks: str, site_layout: SiteLayout) -> Family:
    return Family(path, None, None, None, blocks=blocks, site_layout=site_layout)


# Windows, or stages with grids of their own.
STAGED_FAMILIES = (
    _staged("timm.models.swin_transformer:SwinTransformer", "layers.", _own("window_size")),
    _staged("timm.models.davit:DaVit", "stages.", _own("window_size")),
    _staged("timm.models.maxxvit:MaxxVit", "stages.", _maxvit),
    _staged("timm.models.nest:Nest", "levels.", _nest),
    _staged("timm.models.twins:Twins", "blocks.", _twins),
    _staged("timm.models.pit:PoolingVisionTransformer", "transformers.", _pit),
    _staged("timm.models.tiny_vit:TinyVit", "stages.", _own("resolution")),
    _staged("timm.models.visformer:Visformer", "stage", _visformer),
    _staged("timm.models.volo:VOLO", "network.", _volo),
    _staged("timm.models.crossvit:CrossVit", "blocks.", _crossvit),
    _staged("timm.models.hiera:Hiera", "blocks.", _hiera),
    _staged("timm.models.hieradet_sam2:HieraDet", "blocks.", _hieradet),
)

FAMILIES = (*GLOBAL_FAMILIES, *STAGED_FAMILIES)

# Any other model, whose layout the user passes: nothing is known of it but its attention modules.
OTHER = Family("torch.nn:Module", None, None, None, blocks="")


def _from_qkv(module: Any) -> int:
    width: int = module.qkv.out_features
    return width // 3 // module.num_heads


def _diff_values(module: Any) -> int:
    head_dim: int = module.head_dim
    return 2 * head_dim


ATTENTIONS = (
    Attention("timm.layers.attention:Attention"),
    Attention("timm.layers.attention:AttentionRope"),
    Attention("timm.models.eva:EvaAttention"),
    Attention("timm.models.beit:Attention", head_dim=_from_qkv),
    Attention("timm.models.vision_transformer_relpos:RelPosAttention"),
    Attention("timm.models.vision_transformer_sam:Attention", shape="(b h) n d", map="b h w c"),
    Attention("timm.models.gemma4_vit:Gemma4Attention"),
    Attention("timm.layers.diff_attention:DiffAttention", value_dim=_diff_values),
    Attention("timm.models.vision_transformer:ParallelScalingBlock"),
    Attention("timm.models.vision_transformer:DiffParallelScalingBlock", value_dim=_diff_values),
    Attention("timm.models.swin_transformer:WindowAttention", head_dim=_from_qkv),
    Attention("timm.models.davit:WindowAttention", head_dim=_from_qkv),
    Attention(
        "timm.models.maxxvit:AttentionCl", map="b h w c", head_dim=lambda module: module.dim_head
    ),
    Attention(
        "timm.models.maxxvit:Attention2d", map="b c h w", head_dim=lambda module: module.dim_head
    ),
    Attention("timm.models.nest:Attention", shape="b h t n d", head_dim=_from_qkv),
    Attention("timm.models.twins:LocallyGroupedAttn", shape="b t h n d", head_dim=_from_qkv),
    Attention(
        "timm.models.twins:GlobalSubSampleAttn",
        map="size",
        head_dim=lambda module: module.dim // module.num_heads,
    ),
    Attention(
        "timm.models.tiny_vit:Attention",
        head_dim=lambda module: module.key_dim,
        value_dim=lambda module: module.val_dim,
    ),
    Attention("timm.models.visformer:Attention", map="b c h w"),
    Attention("timm.models.volo:Attention", map="b h w c", head_dim=_from_qkv),
    Attention("timm.models.hiera:MaskUnitAttention", num_heads=lambda module: module.heads),
    Attention("timm.models.hieradet_sam2:MultiScaleAttention", map="b h w c", head_dim=_from_qkv),
)


def _huggingface(path: str) -> Attention:
    return Attention(
        f"transformers.models.{path}",
        num_heads=lambda module: module.num_attention_heads,
        adapter="huggingface",
    )


# Attention modules of models outside timm. Their packages may be absent: nothing is imported.
ADAPTED = (
    Attention("torch.nn.modules.activation:MultiheadAttention", adapter="multihead"),
    _huggingface("vit.modeling_vit:ViTAttention"),
    _huggingface("dinov2.modeling_dinov2:Dinov2Attention"),
    _huggingface(
        "dinov2_with_registers.modeling_dinov2_with_registers:Dinov2WithRegistersAttention"
    ),
)

# Models whose attention cannot take position terms, or not at a known grid.
REFUSED = {
    "timm.models.swin_transformer_v2:SwinTransformerV2": "cosine attention, written out",
    "timm.models.swin_transformer_v2_cr:SwinTransformerV2Cr": "cosine attention, written out",
    "timm.models.cait:Cait": "talking heads: heads are mixed around the softmax",
    "timm.models.xcit:Xcit": "attends between channels, which have no position",
    "timm.models.pvt_v2:PyramidVisionTransformerV2": "keys are a pooled summary of the grid",
    "timm.models.levit:Levit": "attention is written out, with a bias of its own",
    "timm.models.levit:LevitDistilled": "attention is written out, with a bias of its own",
    "timm.models.mvitv2:MultiScaleVit": "query, key and value are pooled, attention written out",
    "timm.models.coat:CoaT": "factorised attention without a query-key map",
    "timm.models.tnt:TNT": "attention is written out, inside and between patches",
    "timm.models.gcvit:GlobalContextVit": "attention is written out, with queries of the image",
    "timm.models.convit:ConVit": "attention is written out, with positions gated after softmax",
    "timm.models.edgenext:EdgeNeXt": "attends between channels, which have no position",
    "timm.models.efficientformer:EfficientFormer": "attention is written out",
    "timm.models.efficientformer_v2:EfficientFormerV2": "talking heads, written out",
    "timm.models.efficientvit_msra:EfficientVitMsra": "heads run one after the other",
    "timm.models.efficientvit_mit:EfficientVit": "linear attention, no softmax",
    "timm.models.efficientvit_mit:EfficientVitLarge": "linear attention, no softmax",
    "timm.models.swiftformer:SwiftFormer": "additive attention, no query-key product",
    "timm.models.shvit:SHViT": "attention is written out on a part of the channels",
    "timm.models.nextvit:NextViT": "keys are a pooled summary of the grid",
    "timm.models.fastvit:FastVit": "a stage takes images of any size and names no grid",
    "timm.models.iformer:IFormer": "a stage takes images of any size and names no grid",
    "timm.models.metaformer:MetaFormer": "a stage takes images of any size and names no grid",
    "timm.models.cpubone:CPUBone": "a stage takes images of any size and names no grid",
    "timm.models.lowformer:LowFormer": "a stage takes images of any size and names no grid",
    "timm.models.mobilenetv5:MobileNetV5": "keys are strided and shared by all heads",
    "timm.models.mobilenetv5:MobileNetV5Encoder": "keys are strided and shared by all heads",
    "timm.models.csatv2:CSATv2": "a stage takes images of any size and names no grid",
    "timm.models.byobnet:ByobNet": "attention in convolutional stages, which name no grid",
}


def family_of(module: nn.Module) -> Family | None:
    """The family of a backbone, None when it is none."""
    return _first(type(module), _by_class({family.path: family for family in FAMILIES}))


def attention_of(module: nn.Module) -> Attention | None:
    """What is known of an attention module, None when nothing is."""
    return _first(type(module), _by_class({kind.path: kind for kind in ATTENTIONS}))


def adapted_of(module: nn.Module) -> Attention | None:
    """What is known of an attention module outside timm, None when nothing is."""
    known = {kind.path: kind for kind in ADAPTED}
    paths = (f"{base.__module__}:{base.__qualname__}" for base in type(module).__mro__)
    return next((known[path] for path in paths if path in known), None)


def refusal_of(module: nn.Module) -> str | None:
    """Why a known model is not supported, None when it is not known."""
    reason: str | None = _first(type(module), _by_class(REFUSED))
    return reason


def known_families() -> str:
    """Names of the model classes, for messages."""
    return ", ".join(family.path.rpartition(":")[2] for family in FAMILIES)


def _first(cls: type, known: dict[type, Any]) -> Any:
    return next((known[base] for base in cls.__mro__ if base in known), None)


def _by_class(entries: dict[str, Any]) -> dict[type, Any]:
    found = {path: _class(path) for path in entries}
    return {cls: entries[path] for path, cls in found.items() if cls is not None}


@functools.cache
def _class(path: str) -> type | None:
    module, _, name = path.partition(":")
    try:
        found: type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None  # a model that this timm does not have
    return found
