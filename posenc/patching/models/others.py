"""What posenc knows of models outside timm: their attention, and which layout they tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from posenc.layout import TokenLayout
from posenc.patching.layouts import grid_of_convolution
from posenc.patching.models.kinds import AttentionKind, Family, ImageEmbedding

# Any other model: nothing is known of it but its attention modules.
OTHER = Family("torch.nn:Module", None, None, None, blocks="")


def _huggingface(path: str, heads: str = "num_attention_heads") -> AttentionKind:
    return AttentionKind(
        f"transformers.models.{path}",
        num_heads=attrgetter(heads),
        adapter="huggingface",
        width=attrgetter("q_proj.in_features"),
    )


# Attention modules of models outside timm. Their packages may be absent: nothing is imported.
ADAPTED = (
    AttentionKind(
        "torch.nn.modules.activation:MultiheadAttention",
        adapter="multihead",
        width=attrgetter("embed_dim"),
    ),
    _huggingface("vit.modeling_vit:ViTAttention"),
    _huggingface("deit.modeling_deit:DeiTAttention"),
    _huggingface("dinov2.modeling_dinov2:Dinov2Attention"),
    _huggingface(
        "dinov2_with_registers.modeling_dinov2_with_registers:Dinov2WithRegistersAttention"
    ),
    _huggingface("dinov3_vit.modeling_dinov3_vit:DINOv3ViTAttention", "num_heads"),
    _huggingface("clip.modeling_clip:CLIPAttention", "num_heads"),
    _huggingface("siglip.modeling_siglip:SiglipAttention", "num_heads"),
)

# Modules whose attention is left alone, with the reason.
LEFT_ALONE = {
    "transformers.models.siglip.modeling_siglip:SiglipMultiheadAttentionPoolingHead": (
        "attention pooling: its query is no token of the grid"
    ),
}


def _projection(embedding: Any) -> Any:
    own = getattr(embedding, "patch_embeddings", None)
    return embedding.patch_embedding if own is None else getattr(own, "projection", own)


def _image_size(embedding: Any) -> int | Sequence[int]:
    """By the config where the embedding does not keep it, as DINOv3's."""
    patches = getattr(embedding, "patch_embeddings", embedding)
    return patches.image_size if hasattr(patches, "image_size") else embedding.config.image_size


def _grid_of_image(embedding: Any, image: Any, result: Any) -> tuple[int, int]:
    return grid_of_convolution(_projection(embedding), image.shape[-2:])


def _cls_and_registers(embedding: Any) -> int:
    return 1 + int(embedding.register_tokens.shape[1])


def _embedding(path: str, prefix: Callable[[Any], int]) -> ImageEmbedding:
    def layout(embedding: Any) -> TokenLayout:
        size = _image_size(embedding)
        sides = (size, size) if isinstance(size, int) else size
        return TokenLayout(*grid_of_convolution(_projection(embedding), sides), prefix(embedding))

    return ImageEmbedding(f"transformers.models.{path}", layout, _grid_of_image)


EMBEDDINGS = (
    _embedding("vit.modeling_vit:ViTEmbeddings", lambda embedding: 1),
    _embedding("deit.modeling_deit:DeiTEmbeddings", lambda embedding: 2),  # CLS and distillation
    _embedding("dinov2.modeling_dinov2:Dinov2Embeddings", lambda embedding: 1),
    _embedding(
        "dinov2_with_registers.modeling_dinov2_with_registers:Dinov2WithRegistersEmbeddings",
        _cls_and_registers,
    ),
    _embedding("dinov3_vit.modeling_dinov3_vit:DINOv3ViTEmbeddings", _cls_and_registers),
    _embedding("clip.modeling_clip:CLIPVisionEmbeddings", lambda embedding: 1),
    _embedding("siglip.modeling_siglip:SiglipVisionEmbeddings", lambda embedding: 0),
)
