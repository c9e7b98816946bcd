"""Encodings that start without effect, odd ones and odd models; a patched model written out."""

import functools

import oracles
import torch
from timm.layers import Attention
from tiny_vit import eager, images, vit
from torch import nn

import posenc
from posenc import SwinBias, TokenLayout, patched_encodings

# Options with which each encoding starts without effect.
SILENT = {
    "irpe": {},
    "swin": {},
    "human_part": {},
    "learned": {},
    "peg": {},
    "quadratic": {"strength": 0.0},
    "sinusoidal": {"strength": 0.0},
}


def randomise_encodings(model, scale=0.3):
    for seed, encoding in enumerate(patched_encodings(model).values()):
        oracles.randomise(encoding, seed, scale)
    return model


@functools.cache
def irpe_map(layout):
    tokens = range(oracles.num_tokens(*layout))
    entries = [
        [oracles.irpe_bucket(i, j, layout[1], layout[2], "product", 1.9, "shared") for j in tokens]
        for i in tokens
    ]
    return torch.tensor(entries)


def irpe_bias(encoding, q, layout):
    lookup = q / q.shape[-1] ** 0.5 @ encoding.table_k
    return torch.gather(lookup, -1, irpe_map(layout).expand(*q.shape[:3], -1))


BIAS = {
    "irpe": lambda e, q, layout: irpe_bias(e, q, layout),
    "swin": lambda e, q, layout: oracles.swin_bias(e.table, *layout),
    "quadratic": lambda e, q, layout: oracles.quadratic_bias(
        e.centers, e.alpha, e.strength, *layout
    ),
    "human_part": lambda e, q, layout: oracles.human_part_bias(dict(e.named_parameters()), *layout),
}


def expected_logits(model, names, layout, x):
    """The model written out, with the encodings `names` from the papers' formulas."""
    found = patched_encodings(model)
    names = names.split("+")

    def bias(site, q, k):
        return sum(BIAS[n](found[f"{site}.{n}"], q, layout) for n in names if n in BIAS)

    def position(tokens):
        for name in names:
            if name == "sinusoidal":
                table = oracles.sincos(*layout, 16, "mae")
                tokens = tokens + found[name].strength * table
            elif name == "learned":
                tokens = tokens + found[name].table
        return tokens

    def after(index, tokens):
        encoding = found.get(f"blocks.{index}.peg")
        if encoding is None:
            return tokens
        return oracles.peg(tokens, encoding.weight, encoding.bias, *layout)

    with torch.no_grad():
        return eager(model, x, bias, position, after)


def train(model, steps=2):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        model(images(model, seed=step)).square().sum().backward()
        optimizer.step()


# Which sites


def sites(model):
    return sorted(posenc.encoding_config(model)["sites"])


# What `encoding` may be


def custom(layout, num_heads, head_dim, embed_dim, *, fill=0.0):
    assert (layout, num_heads, head_dim, embed_dim) == (TokenLayout(3, 5, 1), 2, 8, 16)
    encoding = SwinBias(layout, num_heads)
    nn.init.constant_(encoding.table, fill)
    return encoding


class OwnEmbedding(nn.Module):
    """Somebody's patch embedding: no grid_size, no dynamic_feat_size."""

    def __init__(self, embedding):
        super().__init__()
        self.proj, self.img_size = embedding.proj, embedding.img_size

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def without_grid_size():
    model = vit()
    model.patch_embed = OwnEmbedding(model.patch_embed)
    return model


# Bad input: an exception that says what to do, and the model as it was


class OwnAttention(Attention):
    def forward(self, x):
        return super().forward(x)


# Random numbers, device, dtype, mode


ALL = "+".join(SILENT)
