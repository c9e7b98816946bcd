"""
How far each head looks
=======================

The mean distance of attention in pixels, against depth, as in figure 7 of the `ViT paper
<https://arxiv.org/abs/2010.11929>`_, beside attention that is the same everywhere. A dot is a head.
"""

import timm
import torch

import posenc
from posenc.analysis import capture_attention, plot

torch.manual_seed(0)
vit = timm.create_model("vit_small_patch16_224", depth=6).eval()
model = posenc.patch_model(vit, "alibi_2d")
with torch.no_grad(), capture_attention(model) as captured:
    model(torch.randn(2, 3, 224, 224))

plot.plot_distance(captured, patch_size=16)
