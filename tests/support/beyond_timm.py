"""Tiny models outside timm, and their attention from a module's own weights."""

from __future__ import annotations

from dataclasses import dataclass

import oracles
import pytest
import torch
from expected_bias import BIAS
from torch import nn

from posenc import TokenLayout, patch_model, patched_encodings


@dataclass(frozen=True)
class Case:
    """A tiny model: `sites` are its attention modules, `shape` is that of an input."""

    sites: list[str]
    shape: tuple[int, ...]
    layout: tuple[int, int, int] = (3, 5, 1)


IMAGE = (2, 3, 12, 20)
CASES = {
    "hf_vit": Case([f"vit.layers.{i}.attention" for i in range(2)], IMAGE),
    "hf_dinov2": Case([f"encoder.layer.{i}.attention" for i in range(2)], IMAGE),
    "hf_registers": Case([f"encoder.layer.{i}.attention" for i in range(2)], IMAGE, (3, 5, 3)),
    "torchvision": Case(
        [f"encoder.layers.encoder_layer_{i}.self_attention" for i in range(2)],
        (2, 3, 12, 12),
        (3, 3, 1),
    ),
    "torchvision_encoder": Case(
        [f"layers.encoder_layer_{i}.self_attention" for i in range(2)], (2, 16, 8)
    ),
    "open_clip": Case([f"transformer.resblocks.{i}.attn" for i in range(2)], IMAGE),
    "torch": Case([f"layers.{i}.self_attn" for i in range(2)], (2, 16, 8)),
    "torch_norm_first": Case([f"layers.{i}.self_attn" for i in range(2)], (16, 2, 8)),
}


def hugging_face(library, name, **options):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{library}Config")(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        mlp_ratio=1,
        patch_size=4,
        **options,
    )
    return getattr(transformers, name)(config)


def torchvision_vit():
    models = pytest.importorskip("torchvision.models.vision_transformer")
    return models.VisionTransformer(12, 4, 2, 2, 8, 8, num_classes=5)


def torchvision_encoder():
    models = pytest.importorskip("torchvision.models.vision_transformer")
    return models.Encoder(16, 2, 2, 8, 8, 0.0, 0.0)


def open_clip_visual():
    transformer = pytest.importorskip("open_clip.transformer")
    return transformer.VisionTransformer((12, 20), 4, 8, 2, 2, 1.0, output_dim=5)


def torch_encoder(batch_first=True, norm_first=False):
    layer = nn.TransformerEncoderLayer(
        8, 2, 8, dropout=0.0, batch_first=batch_first, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first and not norm_first)


BUILD = {
    "hf_vit": lambda: hugging_face("ViT", "ViTForImageClassification", image_size=(12, 20)),
    # Its table is square, and is interpolated to the image.
    "hf_dinov2": lambda: hugging_face("Dinov2", "Dinov2Model", image_size=12),
    "hf_registers": lambda: hugging_face(
        "Dinov2WithRegisters", "Dinov2WithRegistersModel", image_size=12, num_register_tokens=2
    ),
    "torchvision": torchvision_vit,
    "torchvision_encoder": torchvision_encoder,
    "open_clip": open_clip_visual,
    "torch": torch_encoder,
    "torch_norm_first": lambda: torch_encoder(batch_first=False, norm_first=True),
}


def build(name):
    """In float64, all weights random, the same at each call."""
    return same_at_each_call(BUILD[name]).eval()


def same_at_each_call(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return oracles.randomize(make(), 7, 0.3).double()


def inputs(name):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(CASES[name].shape, generator=generator, dtype=torch.float64)


def outputs(model, x, **options):
    result = model(x, **options)
    if hasattr(result, "to_tuple"):  # of transformers
        return result.to_tuple()[0]
    return result


def patch(model, name, encoding="irpe", **options):
    return patch_model(model, encoding, layout=TokenLayout(*CASES[name].layout), **options)


# Attention from a module's own weights, in place of its forward


def heads(module, count, x):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def eager_multihead(module, bias):
    """A forward of nn.MultiheadAttention; in its boolean masks True is masked out."""

    def added(mask):
        if mask is None or mask.is_floating_point():
            return 0.0 if mask is None else mask
        return torch.where(mask, -torch.inf, 0.0).to(torch.float64)

    def forward(query, key, value, key_padding_mask=None, attn_mask=None, **_):
        count, tokens_first = module.num_heads, query.dim() == 3 and not module.batch_first
        x = query.transpose(0, 1) if tokens_first else query.reshape(-1, *query.shape[-2:])
        qkv = x @ module.in_proj_weight.T
        qkv = qkv if module.in_proj_bias is None else qkv + module.in_proj_bias
        q, k, v = (heads(module, count, part) for part in qkv.chunk(3, -1))
        mask = added(attn_mask)
        if attn_mask is not None and attn_mask.dim() == 3:
            mask = mask.unflatten(0, q.shape[:2])
        padding = added(key_padding_mask)
        if key_padding_mask is not None:
            padding = padding.reshape(len(x), 1, 1, -1)
        out, _ = oracles.attention(q, k, v, bias(q) + mask + padding)
        out = out.transpose(1, 2).flatten(2) @ module.out_proj.weight.T
        out = out if module.out_proj.bias is None else out + module.out_proj.bias
        return (out.transpose(0, 1) if tokens_first else out.reshape(query.shape)), None

    return forward


def eager_hugging_face(module, bias):
    def forward(x, attention_mask=None, **_):
        projections = (module.q_proj, module.k_proj, module.v_proj)
        q, k, v = (heads(module, module.num_attention_heads, p(x)) for p in projections)
        out, _ = oracles.attention(q, k, v, bias(q), attention_mask)
        return module.o_proj(out.transpose(1, 2).flatten(2)), None

    return forward


def written_out(model, found, encoding, layout):
    """The unpatched `model` with the encodings `found`, by site, in its attention."""
    for site, parameters in found.items():
        module = model.get_submodule(site)

        def bias(q, parameters=parameters):
            return BIAS[encoding](parameters, q, layout, q.shape[-1] ** -0.5)

        eager = eager_multihead if isinstance(module, nn.MultiheadAttention) else eager_hugging_face
        module.forward = eager(module, bias)
    return model


def expected_of(name, model, encoding, call=outputs, plain=None):
    """`call(model, x)` of the unpatched model with attention written out.

    Fused paths of torch would pass over it.
    """
    found = {key.rpartition(".")[0]: e for key, e in patched_encodings(model).items()}
    plain = written_out(plain or build(name), found, encoding, CASES[name].layout)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return call(plain, inputs(name))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


# nn.MultiheadAttention


def masks():
    generator = torch.Generator().manual_seed(2)
    keep_self = ~torch.eye(16, dtype=torch.bool)  # no row is fully masked
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[0, 12:], padding[1, 7:] = True, True
    pairs = (torch.rand(16, 16, generator=generator) < 0.4) & keep_self
    pairs[:, 0] = False
    per_head = (torch.rand(4, 16, 16, generator=generator) < 0.4) & keep_self
    per_head[:, :, 0] = False
    added = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    added_padding = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    return {
        "none": {},
        "pairs": {"attn_mask": pairs},
        "per_head": {"attn_mask": per_head},
        "added": {"attn_mask": added},
        "padding": {"key_padding_mask": padding},
        "added_padding": {"key_padding_mask": added_padding},
        "both": {"attn_mask": per_head, "key_padding_mask": padding},
        "both_added": {"attn_mask": added, "key_padding_mask": added_padding},
        "causal": {"attn_mask": torch.ones(16, 16).triu(1).bool(), "is_causal": True},
    }
