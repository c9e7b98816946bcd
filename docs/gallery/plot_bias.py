"""
Bias of each head
=================

What one patch gives to each: a row is a block, a column is a head. Each block has its own scale,
symmetric around 0, so that a strong one does not bleach the others. Static encodings need no image;
for others pass what `posenc.analysis.capture_attention` recorded, with ``image_index=`` of an image
or ``None`` for the mean.
"""

import timm

import posenc
from posenc.analysis import plot

model = timm.create_model(
    "vit_tiny_patch16_224", img_size=(256, 128), depth=2, embed_dim=72, num_heads=9
)
posenc.patch_model(model, "quadratic")  # a 3x3 convolution at the start
plot.plot_bias(model, query=(8, 4))

# %%
# Keys that a query does not see, at minus infinity, are gray. Here each head sees one direction.

wide = timm.create_model(
    "vit_tiny_patch16_224", img_size=(128, 192), depth=2, embed_dim=96, num_heads=8
)
posenc.patch_model(wide, "lookhere")
plot.plot_bias(wide)
