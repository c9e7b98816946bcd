"""
Attention and rollout over an image
===================================

Where each head looks from one token: CLS, or with ``query=(row, column)`` a patch. Each head has
its own scale, from 0 to its largest weight, which its title tells, with what prefix tokens get.
"""

import timm
import torch
from matplotlib.cbook import get_sample_data
from PIL import Image

import posenc
from posenc.analysis import capture_attention, plot

torch.manual_seed(0)
photo = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))
photo = photo.crop((0, 0, 512, 512)).resize((224, 224))

vit = timm.create_model("vit_small_patch16_224", depth=6).eval()
model = posenc.patch_model(vit, "alibi_2d")
transform = timm.data.create_transform((3, 224, 224), crop_pct=1.0)
with torch.no_grad(), capture_attention(model) as captured:
    model(transform(photo)[None])

plot.plot_attention(photo, captured, query=(4, 6), layer=-1)

# %%
# Windows and stages do not lie on the image as patches do, so such layers are refused
# (``captured.own_grids`` names them); `posenc.analysis.plot.plot_bias` and
# `posenc.analysis.plot.plot_distance` draw them.
#
# Rollout tells how much of each patch reaches the output through all layers (`Abnar and Zuidema
# 2020 <https://arxiv.org/abs/2005.00928>`_). It is drawn from its smallest value to its largest.

plot.plot_rollout(photo, captured, discard_ratio=0.5)
