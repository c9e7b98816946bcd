"""Tiny timm models that take images of any size, random weights."""

from __future__ import annotations

import oracles
import tiny_global
import torch
from timm.models.deepseek_vit import DeepseekVitClassifier
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

COMMON = tiny_global.COMMON
GRIDS = [(3, 5), (5, 3), (4, 4), (1, 6), (2, 7)]

DYNAMIC = {
    "vit": lambda: VisionTransformer(**COMMON, dynamic_img_size=True, reg_tokens=4),
    "vit_padded": lambda: VisionTransformer(
        **COMMON, dynamic_img_size=True, dynamic_img_pad=True, class_token=False, global_pool="avg"
    ),
    "eva": lambda: Eva(**COMMON, dynamic_img_size=True, use_rot_pos_emb=True),
    "eva_rope_attention": lambda: Eva(
        **COMMON, dynamic_img_size=True, use_rot_pos_emb=True, attn_type="rope"
    ),
    "deepseek": lambda: DeepseekVitClassifier(**COMMON),
    "qwen": tiny_global.CASES["qwen"].make,
    "naflex": tiny_global.CASES["naflex"].make,
    "gemma": tiny_global.CASES["gemma"].make,
    "sam": tiny_global.CASES["sam"].make,
}
PREFIX = {"vit": 5, "eva": 1, "eva_rope_attention": 1, "naflex": 4}


def build(name="vit"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DYNAMIC[name]()
    return oracles.randomize(model.double(), 0, scale=0.2).eval()


def images(grid, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, 4 * grid[0], 4 * grid[1])
    return torch.rand(shape, generator=generator, dtype=torch.float64)
