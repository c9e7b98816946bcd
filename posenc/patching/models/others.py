"""Attention modules of models outside timm, whose layout the user passes."""

from __future__ import annotations

from posenc.patching.models.kinds import AttentionKind, Family

# Any other model, whose layout the user passes: nothing is known of it but its attention modules.
OTHER = Family("torch.nn:Module", None, None, None, blocks="")


def _huggingface(path: str) -> AttentionKind:
    return AttentionKind(
        f"transformers.models.{path}",
        num_heads=lambda module: module.num_attention_heads,
        adapter="huggingface",
    )


# Attention modules of models outside timm. Their packages may be absent: nothing is imported.
ADAPTED = (
    AttentionKind("torch.nn.modules.activation:MultiheadAttention", adapter="multihead"),
    _huggingface("vit.modeling_vit:ViTAttention"),
    _huggingface("dinov2.modeling_dinov2:Dinov2Attention"),
    _huggingface(
        "dinov2_with_registers.modeling_dinov2_with_registers:Dinov2WithRegistersAttention"
    ),
)
