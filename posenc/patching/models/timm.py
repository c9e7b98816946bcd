"""What posenc knows of timm's models: where their layout, their attention and their tables are.

Data, as far as possible; classes are named by path and imported when a model is examined.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from posenc.layout import TokenLayout
from posenc.patching.layouts import LayoutSource, WindowLayout, grid_of_convolution
from posenc.patching.models.kinds import (
    AbsoluteTable,
    AttentionKind,
    Family,
    MlpKind,
    PositionStep,
    SiteLayout,
    UnsupportedModelError,
)


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


def _sam(backbone: Any, name: str, module: Any) -> LayoutSource | None:
    block: Any = backbone.get_submodule(name.removesuffix(".attn"))
    return WindowLayout(block) if block.window_size > 0 else None


_FEATURES = ("forward_features", "forward_intermediates")

# All blocks see one grid (or, in SAM, windows of it).
GLOBAL_FAMILIES = (
    Family("timm.models.vision_transformer:VisionTransformer"),
    Family("timm.models.eva:Eva"),
    Family("timm.models.beit:Beit", step=None, table=AbsoluteTable(methods=_FEATURES)),
    Family("timm.models.vision_transformer_relpos:VisionTransformerRelPos", step=None, table=None),
    Family(
        "timm.models.vision_transformer_sam:VisionTransformerSAM",
        step=PositionStep("norm_pre", "forward", before=True),
        table=AbsoluteTable(methods=_FEATURES),
        site_layout=_sam,
    ),
    Family("timm.models.qwen3_vit:Qwen3VitEncoder"),
    Family("timm.models.deepseek_vit:DeepseekVitEncoder", table=None),
    Family(
        "timm.models.gemma4_vit:Gemma4VitEncoder",
        step=PositionStep("patch_embed", "forward"),
        table=AbsoluteTable("patch_embed", ("_position_embeddings",), "position_embedding_table"),
        seen_grid=grid_of_gemma,
    ),
    Family(
        "timm.models.naflexvit:NaFlexVit",
        embedding="embeds",
        step=PositionStep("embeds", "forward"),
        table=AbsoluteTable("embeds", ("_apply_learned_pos_embed",)),
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


def _twins(backbone: Any, name: str, module: Any) -> TokenLayout | str:
    if hasattr(module, "ws"):
        return TokenLayout(module.ws, module.ws)
    if module.sr is not None:
        return "its keys are a summary of the grid, fewer than its queries"
    embedding = backbone.patch_embeds[int(name.split(".")[1])]
    return TokenLayout(embedding.H, embedding.W)


def _pit(backbone: Any, name: str, module: Any) -> TokenLayout:
    height, width = backbone.pos_embed.shape[-2:]
    for stage in backbone.transformers[1 : int(name.split(".")[1]) + 1]:
        height, width = grid_of_convolution(stage.pool.conv, (height, width))
    return TokenLayout(height, width, backbone.cls_token.shape[1])


def _crossvit(backbone: Any, name: str, module: Any) -> TokenLayout:
    embedding = backbone.patch_embed[int(name.split(".")[3])]  # of its branch
    (height, width), (patch_height, patch_width) = embedding.img_size, embedding.patch_size
    return TokenLayout(height // patch_height, width // patch_width, prefix=1)


def _visformer(backbone: Any, name: str, module: Any) -> TokenLayout:
    # The last patch embedding before stage<k>.
    stages = range(int(name.removeprefix("stage")[0]), 0, -1)
    embeddings = (getattr(backbone, f"patch_embed{stage}", None) for stage in stages)
    return TokenLayout(*next(e.grid_size for e in embeddings if e is not None))


def _volo(backbone: Any, name: str, module: Any) -> TokenLayout | str:
    # The table is added before the first transformer stage.
    if int(name.split(".")[1]) < 2 or backbone.pos_embed is None:
        return "the grid of its stage is not known"
    return TokenLayout(*backbone.pos_embed.shape[1:3])


def _hiera(backbone: Any, name: str, module: Any) -> TokenLayout | str:
    strides, size = backbone.reroll.schedule[int(name.split(".")[1])]
    if module.q_stride > 1:
        return "its queries are pooled, fewer than its keys"
    if len(size) != 2:
        return "video has a third axis"
    if len(strides) > 0 or module.use_mask_unit_attn:
        return "its tokens lie in unrolled order, not row by row"
    return TokenLayout(*size)


def _reduced(backbone: Any, name: str, module: Any) -> TokenLayout | str:
    """For images of the size that the model was made for; the map tells that of others."""
    if getattr(module, "window_size", 0):
        return "it cuts its map into windows itself"
    size = (getattr(backbone, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        return (
            "sizes of parameters are not known: set model.pretrained_cfg = "
            "dict(input_size=(3, height, width)) of your usual image; other sizes are followed"
        )
    reduction = backbone.feature_info[int(name.split(".")[1])]["reduction"]
    stride = reduction * getattr(module, "att_stride", 1)
    return TokenLayout(-(-size[1] // stride), -(-size[2] // stride))


def _hieradet(backbone: Any, name: str, module: Any) -> LayoutSource | str:
    block: Any = backbone.get_submodule(name.removesuffix(".attn"))
    if module.q_pool is not None:
        return "its queries are pooled, fewer than its keys"
    if not block.is_windowed:
        return "it sees the whole grid of an image of any size"
    return WindowLayout(block)


def _staged(path: str, blocks: str, **layout: Any) -> Family:
    return Family(f"timm.models.{path}", None, None, None, blocks=blocks, **layout)


# Windows, or stages with grids of their own.
STAGED_FAMILIES = (
    _staged("swin_transformer:SwinTransformer", "layers.", site_layout=_own("window_size")),
    _staged("swin_transformer_v2:SwinTransformerV2", "layers.", site_layout=_own("window_size")),
    _staged(
        "swin_transformer_v2_cr:SwinTransformerV2Cr", "stages.", site_layout=_own("window_size")
    ),
    _staged("davit:DaVit", "stages.", site_layout=_own("window_size")),
    _staged("maxxvit:MaxxVit", "stages.", site_layout=_maxvit),
    _staged("nest:Nest", "levels.", site_layout=_nest),
    _staged("twins:Twins", "blocks.", stage=_twins),
    _staged("pit:PoolingVisionTransformer", "transformers.", stage=_pit),
    _staged("tiny_vit:TinyVit", "stages.", site_layout=_own("resolution")),
    _staged("visformer:Visformer", "stage", stage=_visformer),
    _staged("volo:VOLO", "network.", stage=_volo),
    _staged("crossvit:CrossVit", "blocks.", stage=_crossvit),
    _staged("hiera:Hiera", "blocks.", stage=_hiera),
    _staged("hieradet_sam2:HieraDet", "blocks.", site_layout=_hieradet),
    _staged("fastvit:FastVit", "stages.", stage=_reduced),
    _staged("iformer:IFormer", "stages.", stage=_reduced),
    _staged("cpubone:CPUBone", "stages.", stage=_reduced),
    _staged("lowformer:LowFormer", "stages.", stage=_reduced),
)

FAMILIES = (*GLOBAL_FAMILIES, *STAGED_FAMILIES)


def _from_qkv(module: Any) -> int:
    width: int = module.qkv.out_features
    return width // 3 // module.num_heads


def _diff_values(module: Any) -> int:
    head_dim: int = module.head_dim
    return 2 * head_dim


def _channels(convolution: Any) -> int:
    """That a convolution puts out, whether its normalization was fused into it or not."""
    weight: Tensor = next(convolution.parameters())
    return weight.shape[0]


ATTENTIONS = (
    AttentionKind("timm.layers.attention:Attention", width=lambda module: module.qkv.in_features),
    AttentionKind("timm.layers.attention:AttentionRope"),
    AttentionKind("timm.models.eva:EvaAttention"),
    AttentionKind("timm.models.beit:Attention", head_dim=_from_qkv),
    AttentionKind("timm.models.vision_transformer_relpos:RelPosAttention"),
    AttentionKind("timm.models.vision_transformer_sam:Attention", shape="(b h) n d", map="b h w c"),
    AttentionKind("timm.models.gemma4_vit:Gemma4Attention"),
    AttentionKind("timm.layers.diff_attention:DiffAttention", value_dim=_diff_values),
    AttentionKind("timm.models.vision_transformer:ParallelScalingBlock"),
    AttentionKind(
        "timm.models.vision_transformer:DiffParallelScalingBlock", value_dim=_diff_values
    ),
    AttentionKind("timm.models.swin_transformer:WindowAttention", head_dim=_from_qkv),
    AttentionKind(
        "timm.models.swin_transformer_v2:WindowAttention", head_dim=_from_qkv, adapter="swin_v2"
    ),
    AttentionKind(
        "timm.models.swin_transformer_v2_cr:WindowMultiHeadAttention",
        head_dim=_from_qkv,
        adapter="swin_v2_cr",
    ),
    AttentionKind("timm.models.davit:WindowAttention", head_dim=_from_qkv),
    AttentionKind(
        "timm.models.maxxvit:AttentionCl", map="b h w c", head_dim=lambda module: module.dim_head
    ),
    AttentionKind(
        "timm.models.maxxvit:Attention2d", map="b c h w", head_dim=lambda module: module.dim_head
    ),
    AttentionKind("timm.models.nest:Attention", shape="b h t n d", head_dim=_from_qkv),
    AttentionKind("timm.models.twins:LocallyGroupedAttn", shape="b t h n d", head_dim=_from_qkv),
    AttentionKind(
        "timm.models.twins:GlobalSubSampleAttn",
        map="size",
        head_dim=lambda module: module.dim // module.num_heads,
    ),
    AttentionKind(
        "timm.models.tiny_vit:Attention",
        head_dim=lambda module: module.key_dim,
        value_dim=lambda module: module.val_dim,
    ),
    AttentionKind("timm.models.visformer:Attention", map="b c h w"),
    AttentionKind("timm.models.volo:Attention", map="b h w c", head_dim=_from_qkv),
    AttentionKind("timm.models.hiera:MaskUnitAttention", num_heads=lambda module: module.heads),
    AttentionKind(
        "timm.models.hieradet_sam2:MultiScaleAttention", map="b h w c", head_dim=_from_qkv
    ),
    AttentionKind("timm.models.fastvit:Attention", map="b c h w"),
    AttentionKind(
        "timm.models.iformer:SHMA",
        map="b c h w",
        num_heads=lambda module: 1,
        head_dim=lambda module: _channels(module.q),
        value_dim=lambda module: _channels(module.v_gate) // 2,
    ),
    # Their attention runs on a smaller map than the one they receive.
    AttentionKind("timm.models.cpubone:ConvAttention", map="b c h w", map_of="pwise"),
    AttentionKind("timm.models.lowformer:ConvAttention", map="b c h w", map_of="pwise"),
)


def _of_split(module: Any) -> int:
    width: int = module.in_split[0]
    return width


MLPS = (
    MlpKind("timm.layers.mlp:Mlp"),
    MlpKind("timm.layers.mlp:GluMlp"),
    MlpKind("timm.layers.mlp:SwiGLU"),
    MlpKind("timm.models.vision_transformer:ParallelScalingBlock", "mlp_drop", _of_split),
    MlpKind("timm.models.vision_transformer:DiffParallelScalingBlock", "mlp_drop", _of_split),
    MlpKind(
        "timm.models.gemma4_vit:Gemma4GatedMlp",
        "down_proj",
        lambda module: module.down_proj.linear.in_features,
    ),
)


# Models whose attention cannot take position terms, or not at a known grid.
REFUSED = {
    "timm.models.cait:Cait": "talking heads: heads are mixed around the softmax",
    "timm.models.xcit:Xcit": "attends between channels, which have no position",
    "timm.models.pvt_v2:PyramidVisionTransformerV2": "keys are a pooled summary of the grid",
    "timm.models.levit:Levit": "attention is written out, with a bias of its own",
    "timm.models.levit:LevitDistilled": "attention is written out, with a bias of its own",
    "timm.models.mvitv2:MultiScaleVit": "query, key and value are pooled, attention written out",
    "timm.models.coat:CoaT": "factorized attention without a query-key map",
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
    "timm.models.metaformer:MetaFormer": "a stage takes images of any size and names no grid",
    "timm.models.mobilenetv5:MobileNetV5": "keys are strided and shared by all heads",
    "timm.models.mobilenetv5:MobileNetV5Encoder": "keys are strided and shared by all heads",
    "timm.models.csatv2:CSATv2": "a stage takes images of any size and names no grid",
    "timm.models.byobnet:ByobNet": "attention in convolutional stages, which name no grid",
}
