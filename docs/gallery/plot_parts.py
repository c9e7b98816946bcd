"""
Parts of a body
===============

Where the body parts of `posenc.HumanPart` are, in each block, and those of `posenc.Body`, over the
image in ``background=`` (such as the mean of many crops) or alone. With ``adaptive=True`` they are
others in each image: ``image=`` is the one to look for them in, as the model receives it.
"""

import timm

import posenc
from posenc.analysis import plot

model = timm.create_model("vit_tiny_patch16_224", img_size=(256, 128), depth=4)
posenc.patch_model(model, "human_part")
plot.plot_parts(model)
