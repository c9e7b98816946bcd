"""
Content, position and bias
==========================

`posenc.analysis.split_logits` tells, for each head, what share of the variance of its logits is
from what: content meeting content, position meeting position, both ways between them, the grand
mean of queries, the model's own bias and that of encodings. It needs at least 5 images, better 30.
From one image it makes 30 crops, and says that this is approximate.

Shares can be negative: parts that cancel each other have a negative interaction, and a part that is
nothing is estimated around 0.
"""

import timm
import torch
from matplotlib import pyplot as plt
from matplotlib.cbook import get_sample_data
from PIL import Image

import posenc
from posenc.analysis import split_logits

torch.manual_seed(0)
photo = Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False))
transform = timm.data.create_transform((3, 96, 96), crop_pct=1.0)

vit = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=3).eval()
model = posenc.patch_model(vit, "irpe")
for _, table in posenc.encoding_parameters(model):
    torch.nn.init.normal_(table, std=0.1)  # they start at zero
found = split_logits(model, transform(photo)[None])

figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
heads = [f"block {block}\nhead {head}" for block in range(3) for head in range(3)]
above, below = torch.zeros(9), torch.zeros(9)
for part in next(iter(found.shares.values())):
    share = torch.cat([shares[part] for shares in found.shares.values()])
    axes.bar(heads, share, bottom=torch.where(share > 0, above, below), label=part)
    above, below = above + share.clamp(min=0), below + share.clamp(max=0)
axes.axhline(0, color="black", linewidth=0.8)
axes.set_ylabel("share of the variance of logits")
axes.tick_params(labelsize=8)
figure.legend(loc="outside right upper", fontsize=8)
