"""Tiny timm models of every family whose blocks see one grid, random weights.

The same kind of cases as `tiny_windowed`: rectangular images, and what each site sees.
"""

from __future__ import annotations

from functools import partial

import oracles
import torch
from timm.layers import DiffAttention, HybridEmbed
from timm.models.beit import Beit
from timm.models.deepseek_vit import DeepseekVitClassifier
from timm.models.eva import Eva
from timm.models.gemma4_vit import Gemma4VitClassifier
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.qwen3_vit import Qwen3VitClassifier, Qwen3VitEncoder
from timm.models.vision_transformer import (
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    VisionTransformer,
)
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from tiny_windowed import Case, Expected
from torch import nn

IMAGE = (12, 20)
COMMON = {
    "img_size": IMAGE,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "num_classes": 5,
}


def _sites(layout, names=("blocks.0.attn", "blocks.1.attn"), heads=2, head_dim=8):
    return {name: Expected(layout, heads, head_dim) for name in names}


def _naflex(**options):
    settings = {k: v for k, v in COMMON.items() if k not in ("img_size", "num_classes")}
    config = NaFlexVitCfg(**settings, pos_embed_grid_size=(4, 4), **options)
    model = NaFlexVit(config, num_classes=5)
    model.pretrained_cfg = {"input_size": (3, *IMAGE)}
    return model


def _hybrid():
    stem = nn.Sequential(nn.Conv2d(3, 8, 2, stride=2), nn.GELU())
    return VisionTransformer(
        **{**COMMON, "patch_size": 2}, embed_layer=partial(HybridEmbed, backbone=stem)
    )


def _gemma():
    settings = {**COMMON, "img_size": None}
    del settings["img_size"], settings["mlp_ratio"]
    model = Gemma4VitClassifier(
        **settings, head_dim=8, intermediate_size=32, position_embedding_size=16, num_kv_heads=1
    )
    model.pretrained_cfg = {"input_size": (3, *IMAGE)}
    return model


def _encoder_based(cls, **options):
    settings = {**COMMON, "mlp_ratio": 2.0, **options}
    return cls(**settings)


IN_ENCODER = _sites((3, 5, 0), ("encoder.blocks.0.attn", "encoder.blocks.1.attn"))

CASES = {
    "vit": Case(partial(VisionTransformer, **COMMON), IMAGE, _sites((3, 5, 1))),
    "vit_parallel": Case(
        partial(VisionTransformer, **COMMON, block_fn=ParallelScalingBlock),
        IMAGE,
        _sites((3, 5, 1), ("blocks.0", "blocks.1")),
    ),
    "vit_diff": Case(
        partial(VisionTransformer, **COMMON, attn_layer=DiffAttention, reg_tokens=1),
        IMAGE,
        _sites((3, 5, 2), head_dim=4),
    ),
    "vit_diff_parallel": Case(
        partial(VisionTransformer, **COMMON, block_fn=DiffParallelScalingBlock, reg_tokens=4),
        IMAGE,
        _sites((3, 5, 5), ("blocks.0", "blocks.1"), head_dim=4),
    ),
    "vit_pooled": Case(
        partial(VisionTransformer, **COMMON, class_token=False, global_pool="map"),
        IMAGE,
        _sites((3, 5, 0)),
        {"attn_pool": "pools"},
    ),
    "hybrid": Case(_hybrid, IMAGE, _sites((3, 5, 1))),
    "eva": Case(partial(Eva, **COMMON), IMAGE, _sites((3, 5, 1))),
    "eva_rope": Case(
        partial(Eva, **COMMON, use_rot_pos_emb=True, num_reg_tokens=4, qkv_fused=False),
        IMAGE,
        _sites((3, 5, 5)),
    ),
    "eva_rope_attention": Case(
        partial(
            Eva,
            **COMMON,
            use_rot_pos_emb=True,
            attn_type="rope",
            class_token=False,
            global_pool="avg",
        ),
        IMAGE,
        _sites((3, 5, 0)),
    ),
    "eva_rope_mixed": Case(
        partial(Eva, **COMMON, use_rot_pos_emb=True, attn_type="rope", rope_type="mixed"),
        IMAGE,
        _sites((3, 5, 1)),
    ),
    "beit": Case(partial(Beit, **COMMON, use_rel_pos_bias=True), IMAGE, _sites((3, 5, 1))),
    "beit_shared": Case(
        partial(Beit, **COMMON, use_shared_rel_pos_bias=True, use_abs_pos_emb=False),
        IMAGE,
        _sites((3, 5, 1)),
    ),
    "relpos": Case(partial(VisionTransformerRelPos, **COMMON), IMAGE, _sites((3, 5, 0))),
    "relpos_cls_shared": Case(
        partial(
            VisionTransformerRelPos,
            **COMMON,
            class_token=True,
            rel_pos_type="bias",
            shared_rel_pos=True,
        ),
        IMAGE,
        _sites((3, 5, 1)),
    ),
    "sam": Case(
        partial(
            VisionTransformerSAM,
            **COMMON,
            window_size=2,
            global_attn_indexes=(1,),
            use_rel_pos=True,
            neck_chans=8,
        ),
        IMAGE,
        {
            "blocks.0.attn": Expected((2, 2, 0), 2, 8),
            "blocks.1.attn": Expected((3, 5, 0), 2, 8),
        },
    ),
    "sam_rope": Case(
        partial(VisionTransformerSAM, **COMMON, window_size=2, use_rope=True, neck_chans=8),
        IMAGE,
        _sites((2, 2, 0)),
    ),
    "naflex": Case(partial(_naflex, reg_tokens=4), IMAGE, _sites((3, 5, 4))),
    "naflex_rope": Case(
        partial(_naflex, class_token=False, rope_type="axial", pos_embed="none", global_pool="avg"),
        IMAGE,
        _sites((3, 5, 0)),
    ),
    "qwen_encoder": Case(
        partial(
            Qwen3VitEncoder,
            **{k: v for k, v in COMMON.items() if k != "num_classes"},
            pos_embed_grid_size=4,
            global_pool="",
        ),
        IMAGE,
        _sites((3, 5, 0)),
    ),
    "qwen": Case(
        partial(_encoder_based, Qwen3VitClassifier, pos_embed_grid_size=4),
        IMAGE,
        IN_ENCODER,
    ),
    "deepseek": Case(
        partial(_encoder_based, DeepseekVitClassifier),
        IMAGE,
        IN_ENCODER,
    ),
    "gemma": Case(_gemma, IMAGE, IN_ENCODER, scale=1.0),
}


def build(name: str, *, seed: int = 0, dtype=torch.float64) -> nn.Module:
    """The model of a case, all weights random, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CASES[name].make()
    return oracles.randomize(model.to(dtype), seed, scale=0.2).eval()
