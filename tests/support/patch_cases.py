"""Encodings that start without effect, odd ones and odd models; a patched model written out."""

import oracles
import torch
from expected_bias import BIAS
from random_encodings import SILENT
from timm.layers import Attention
from tiny_vit import eager, images, vit
from torch import nn

import posenc
from posenc import SwinBias, TokenLayout, patched_encodings


def expected_logits(model, names, layout, x):
    """The model written out, with the encodings `names` from the papers' formulas."""
    found = patched_encodings(model)
    names = names.split("+")

    def bias(site, q, k):
        return sum(
            BIAS[n](found[f"{site}.{n}"], q, layout, q.shape[-1] ** -0.5)
            for n in names
            if n in BIAS
        )

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
