"""Tiny timm vision transformers with random weights, and their forward written out plainly."""

from __future__ import annotations

import oracles
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import (
    ParallelScalingBlock,
    ParallelThingsBlock,
    VisionTransformer,
)

# Options of `vit` and the layout (height, width, prefix) that they make.
MODELS = {
    "cls": ({}, (3, 5, 1)),
    "no_prefix": ({"prefix": 0}, (3, 5, 0)),
    "distilled": ({"prefix": 2}, (3, 5, 2)),
    "reg4": ({"prefix": 5}, (3, 5, 5)),
    "square": ({"img_size": (12, 12)}, (3, 3, 1)),
    "no_embed_class": ({"prefix": 5, "no_embed_class": True}, (3, 5, 5)),
    "no_table": ({"pos_embed": "none"}, (3, 5, 1)),
    "qk_norm": ({"qk_norm": True, "init_values": 0.5}, (3, 5, 1)),
    "parallel_scaling": ({"block_fn": ParallelScalingBlock}, (3, 5, 1)),
    "parallel_things": ({"block_fn": ParallelThingsBlock}, (3, 5, 1)),
}


def vit(prefix: int = 1, *, seed: int = 0, dtype=torch.float64, **options):
    """3x5 patches, two blocks, two heads of width 8; all weights random."""
    settings = {
        "img_size": (12, 20),
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "num_classes": 5,
        "class_token": prefix > 0,
        "global_pool": "token" if prefix else "avg",
        **options,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if prefix == 2:
            model = VisionTransformerDistilled(**settings)
        else:
            model = VisionTransformer(reg_tokens=max(prefix - 1, 0), **settings)
    return oracles.randomize(model.to(dtype), seed, scale=0.3).eval()


def images(model, batch: int = 2, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, *model.patch_embed.img_size)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(next(model.parameters()).dtype)


def eager(model, x, bias=None, position=None, after=None, table=True):
    """Logits of `model`, with its attention as mathematics.

    `bias(name, q, k)` is added to the scores of the attention module `name`; `position(tokens)`
    and `after(block, tokens)` act on tokens; `table=False` leaves the model's own table out.
    """
    bias = bias or (lambda name, q, k: 0.0)
    tokens = model.patch_embed(x)
    first = [model.cls_token, getattr(model, "reg_token", None), getattr(model, "dist_token", None)]
    first = [token.expand(len(x), -1, -1) for token in first if token is not None]
    own = model.pos_embed if table and model.pos_embed is not None else torch.zeros(1, 1, 1)
    own = own.to(tokens.dtype)
    if model.no_embed_class:
        tokens = torch.cat([*first, tokens + own], 1)
    else:
        tokens = torch.cat([*first, tokens], 1) + own
    tokens = tokens if position is None else position(tokens)
    for index, block in enumerate(model.blocks):
        tokens = _block(block, f"blocks.{index}", tokens, bias)
        tokens = tokens if after is None else after(index, tokens)
    return model.forward_head(model.norm(tokens))


def _block(block, name, x, bias):
    if isinstance(block, ParallelScalingBlock):
        hidden, q, k, v = block.in_proj(block.in_norm(x)).split(block.in_split, -1)
        hidden = hidden if block.mlp_bias is None else hidden + block.mlp_bias
        mixed = _attention(block, name, q, k, v, bias)
        return x + block.attn_out_proj(mixed) + block.mlp_out_proj(block.mlp_act(hidden))
    if isinstance(block, ParallelThingsBlock):
        paths = [
            path.ls(_module(path.attn, f"{name}.attns.{index}.attn", path.norm(x), bias))
            for index, path in enumerate(block.attns)
        ]
        x = x + sum(paths)
        return x + sum(path.ls(path.mlp(path.norm(x))) for path in block.ffns)
    x = x + block.ls1(_module(block.attn, f"{name}.attn", block.norm1(x), bias))
    return x + block.ls2(block.mlp(block.norm2(x)))


def _module(module, name, x, bias):
    q, k, v = module.qkv(x).chunk(3, -1)
    return module.proj(_attention(module, name, q, k, v, bias))


def _attention(module, name, q, k, v, bias):
    def heads(x):
        return x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)

    q, k, v = module.q_norm(heads(q)), module.k_norm(heads(k)), heads(v)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + bias(name, q, k)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def snapshot(model):
    """Everything about a model that a failed or undone patch must not change."""
    return {
        "classes": [(name, type(module)) for name, module in model.named_modules()],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "children": [list(module._modules) for module in model.modules()],
        "flags": [
            (module.training, getattr(module, "fused_attn", None)) for module in model.modules()
        ],
        "keys": list(model.state_dict()),
        "identities": [id(parameter) for parameter in model.parameters()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "values": [value.tolist() for value in model.state_dict().values()],
    }
