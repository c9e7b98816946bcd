"""Tiny timm models whose last stages attend on a map, of whatever size it is."""

from __future__ import annotations

import oracles
import torch
from timm.models.cpubone import CPUBone
from timm.models.fastvit import FastVit
from timm.models.iformer import IFormer
from timm.models.lowformer import LowFormer

LAST_TWO = {"width_list": [4, 4, 8, 8, 16], "depth_list": [0, 1, 1, 2, 1], "head_widths": (8, 8)}


def fastvit():
    mixers = ("repmixer", "repmixer", "repmixer", "attention")
    return FastVit(3, (1, 1, 1, 2), mixers, (8, 16, 32, 64), (1,) * 4, num_classes=5)


def iformer():
    return IFormer(
        num_classes=5,
        dims=(4, 8, 16, 24),
        depths=(1, 1, 4, 4),
        attn_groups=(0, 0, 1, 1),
        attn_head_dim_reduction=(0, 0, 2, 4),
    )


MAKE = {
    "fastvit": fastvit,
    "iformer": iformer,
    "cpubone": lambda: CPUBone(num_classes=5, **LAST_TWO),
    "cpubone_small_kernels": lambda: CPUBone(
        num_classes=5, small_kernels=True, attn_upsample="nearest", **LAST_TWO
    ),
    "lowformer": lambda: LowFormer(num_classes=5, **LAST_TWO),
    # Its second stage has no blocks, and does not halve the map.
    "lowformer_empty_stage": lambda: LowFormer(
        num_classes=5, **{**LAST_TWO, "depth_list": [0, 1, 0, 2, 1]}
    ),
}
# What each attention module is divided by, in order.
STRIDES = {
    "fastvit": [32, 32],
    "iformer": [16, 32],
    "cpubone": [32, 32, 32],
    "cpubone_small_kernels": [32, 32, 32],
    "lowformer": [32, 32, 32],
    "lowformer_empty_stage": [16, 16, 16],
}
SIZE = (96, 160)


def build(name, size=SIZE):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = oracles.randomize(MAKE[name](), 3, 0.3).double()
        with torch.no_grad():  # or the attention saturates
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0
            model.train()(images(*SIZE))
        model.eval()
    if size is not None:
        model.pretrained_cfg = {"input_size": (3, *size)}
    return model


def images(height, width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


def grids(name, height, width):
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES[name]]
