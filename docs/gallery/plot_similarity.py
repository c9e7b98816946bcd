"""
Similarity of positions
=======================

In the place of each patch is a map of how alike its position is to those of all patches. Of a
model, the table is drawn that `posenc.LearnedAbsolute` or `posenc.Sinusoidal` adds, or else its
own; a table needs ``layout=``. ``center=True`` subtracts what all positions have in common.
"""

import timm

import posenc
from posenc.analysis import plot

model = timm.create_model("vit_tiny_patch16_224", img_size=(128, 96), depth=1)
posenc.patch_model(model, "sinusoidal", absolute="hide")
plot.plot_similarity(model, center=True)

# %%
# ``queries=`` draws some patches only.

plot.plot_similarity(model, queries=[(0, 0), (3, 2), (7, 5)], center=True)
