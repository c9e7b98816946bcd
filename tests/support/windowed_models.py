"""Constructors of timm's models with windows or stages, as small as they can be."""

from __future__ import annotations

from functools import partial

from timm.models.crossvit import CrossVit
from timm.models.davit import DaVit
from timm.models.hiera import Hiera
from timm.models.hieradet_sam2 import HieraDet
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, MaxxVitConvCfg, MaxxVitTransformerCfg
from timm.models.nest import Nest
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import SwinTransformer
from timm.models.tiny_vit import TinyVit
from timm.models.twins import Twins
from timm.models.visformer import Visformer
from timm.models.volo import VOLO

CLASSES = 5


def swin(cls=SwinTransformer, **options):
    settings = {
        "img_size": (12, 20),
        "patch_size": 2,
        "embed_dim": 8,
        "depths": (2, 2),
        "num_heads": (2, 4),
        "window_size": ((2, 4), (2, 4)),
        "mlp_ratio": 2.0,
        **options,
    }
    return cls(num_classes=CLASSES, **settings)


def davit(**options):
    return DaVit(
        depths=(1, 1),
        embed_dims=(8, 16),
        num_heads=(2, 4),
        window_size=(2, 3),
        mlp_ratio=2,
        num_classes=CLASSES,
        **options,
    )


def maxxvit(block_type, image, *, conv="mbconv", **transformer):
    config = MaxxVitCfg(
        embed_dim=(16, 32),
        depths=(1, 2),
        block_type=block_type,
        stem_width=8,
        conv_cfg=MaxxVitConvCfg(block_type=conv, expand_ratio=2.0),
        transformer_cfg=MaxxVitTransformerCfg(dim_head=8, expand_ratio=2.0, **transformer),
        weight_init="",
    )
    return MaxxVit(config, img_size=image, num_classes=CLASSES)


maxvit_stage = partial(maxxvit, ("C", "M"), (32, 48), window_size=(2, 3), grid_size=(4, 2))


def nest():
    return Nest(
        img_size=16,
        patch_size=2,
        num_levels=2,
        embed_dims=(8, 16),
        num_heads=(2, 4),
        depths=(2, 1),
        num_classes=CLASSES,
        mlp_ratio=2.0,
        drop_path_rate=0.0,
    )


def twins(wss, **options):
    return Twins(
        img_size=(24, 40),
        num_classes=CLASSES,
        embed_dims=(8, 16),
        num_heads=(2, 4),
        mlp_ratios=(2, 2),
        depths=(2, 2),
        sr_ratios=(2, 1),
        wss=wss,
        **options,
    )


def pit(distilled):
    return PoolingVisionTransformer(
        img_size=(24, 40),
        patch_size=8,
        stride=4,
        base_dims=(4, 4),
        depth=(2, 1),
        heads=(2, 4),
        mlp_ratio=2,
        num_classes=CLASSES,
        distilled=distilled,
    )


def tiny_vit():
    return TinyVit(
        num_classes=CLASSES,
        embed_dims=(8, 8, 16),
        depths=(1, 2, 1),
        num_heads=(1, 2, 4),
        window_sizes=(7, 2, 3),
        mlp_ratio=2.0,
        mbconv_expand_ratio=2.0,
    )


def visformer(**options):
    settings = {
        "img_size": (64, 96),
        "init_channels": 8,
        "embed_dim": 16,
        "depth": (1, 1, 1),
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "group": 2,
        "attn_stage": "111",
        "spatial_conv": "100",
        **options,
    }
    return Visformer(num_classes=CLASSES, **settings)


def volo():
    return VOLO(
        [1, 2],
        img_size=(48, 80),
        num_classes=CLASSES,
        stem_hidden_dim=8,
        embed_dims=[8, 16],
        num_heads=[2, 4],
        downsamples=(True, False),
        outlook_attention=(True, False),
        mlp_ratio=2.0,
        post_layers=("ca",),
    )


def crossvit(**options):
    settings = {
        "img_size": (48, 80),
        "patch_size": (8, 16),
        "embed_dim": (8, 16),
        "depth": ((1, 2, 0), (1, 1, 1)),
        "num_heads": (2, 4),
        "mlp_ratio": (2.0, 2.0, 1.0),
        **options,
    }
    return CrossVit(num_classes=CLASSES, **settings)


def hiera(**options):
    settings = {
        "img_size": (64, 96),
        "embed_dim": 4,
        "num_heads": 1,
        "stages": (1, 1, 2, 2),
        "mlp_ratio": 2.0,
        **options,
    }
    return Hiera(num_classes=CLASSES, **settings)


def hieradet():
    return HieraDet(
        num_classes=CLASSES,
        embed_dim=4,
        num_heads=1,
        stages=(2, 3),
        q_pool=1,
        window_spec=(4, (3, 5)),
        global_att_blocks=(4,),
    )
