"""What a user writes, for a type checker at its strictest, by `tests/test_typing.py`.

Lines that end with `# error: RULE` must be refused by that rule, and no other line may be.
"""

from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from typing_extensions import assert_type

import posenc
from posenc import TokenLayout

vit = VisionTransformer(img_size=(32, 48), depth=2)

# A patched model keeps its type, and so does one that is taken back.
model = posenc.patch_model(vit, "irpe", mode="bias")
assert_type(model, VisionTransformer)
assert_type(posenc.patch_model(vit, ["peg", posenc.IRPE], blocks=slice(0, 2)), VisionTransformer)
assert_type(posenc.unpatch_model(model), VisionTransformer)
assert_type(posenc.fold_biases(model), VisionTransformer)
assert_type(model.num_classes, int)

# Options of patch_model.
posenc.patch_model(vit, "learned", absolute="hide", layout=TokenLayout(2, 3, prefix=1))
posenc.patch_model(vit, absolute="remove")  # error: reportArgumentType
posenc.patch_model(vit, layout=(2, 3))  # error: reportArgumentType
posenc.patch_model(vit, share="yes")  # error: reportArgumentType
posenc.patch_model(vit, backend="tile")  # error: reportArgumentType
posenc.patch_model(vit, 3)  # error: reportArgumentType
posenc.patch_model("vit_tiny_patch16_224", "irpe")  # error: reportArgumentType

# Options of encodings, by their classes.
layout = TokenLayout(height=2, width=3, prefix=1)
encoding = posenc.IRPE(layout, num_heads=3, head_dim=64, mode="bias", method="product")
posenc.IRPE(layout, 3, 64, mode="biased")  # error: reportArgumentType
posenc.IRPE(layout, 3, 64, methods="cross")  # error: reportCallIssue
posenc.RoPE(layout, 3, 64, strengths=1.0)  # error: reportCallIssue

# In an attention of one's own.
q = k = v = torch.randn(2, 3, layout.num_tokens, 64)
out = posenc.attend(q, k, v, encoding(q, k, layout), backend="sdpa")
assert_type(out, torch.Tensor)
posenc.attend(q, k, "v")  # error: reportArgumentType
posenc.attend(q, k, v, backend="flash")  # error: reportArgumentType
made = posenc.create_encoding("swin", layout=layout, num_heads=3, head_dim=64)
out = posenc.attend(q, k, v, made(q, k, layout))

# Reports and files.
assert_type(posenc.summary(model), posenc.Summary)
assert_type(posenc.supports(model), posenc.Support)
assert_type(posenc.explain(q, k, v), posenc.Explanation)
for name, parameter in posenc.encoding_parameters(model):
    assert_type((name, parameter), tuple[str, torch.nn.Parameter])
posenc.save_encodings(model, Path("irpe.safetensors"))
assert_type(posenc.load_encodings(vit, "irpe.safetensors"), VisionTransformer)
groups = posenc.parameter_groups(model, lr=1e-4, encoding_lr=1e-3, weight_decay=0.05)
optimizer = torch.optim.AdamW(groups)


class Distance(posenc.AttentionEncoding):
    """An encoding of one's own."""

    is_static = True

    def terms(
        self, q: torch.Tensor, k: torch.Tensor, layout: TokenLayout, scale: float
    ) -> posenc.DenseBias:
        """No bias."""
        return posenc.DenseBias(q.new_zeros(1, 1, layout.num_tokens, layout.num_tokens))


posenc.register_encoding("distance", Distance)
posenc.register_encoding("distance", TokenLayout)  # error: reportArgumentType
