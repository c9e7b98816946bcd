"""The tokens of every windowed site lie row-major on the layout that its case says.

Coordinates are put in where the tokens still are an image, everything on the way to the attention
call is made an identity, and the query that arrives there is read.
"""

from __future__ import annotations

import pytest
import tiny_windowed
import torch
from eager_attention import biased_attention
from tiny_windowed import CASES
from torch import nn

# Where scores are cosines, queries of length one no longer hold the numbers of the tokens.
SITES = [(name, site) for name, case in CASES.items() for site in case.sites if case.scale is None]


def coordinates(height, width):
    """1000 * (row + 1) + column + 1; padding is 0."""
    rows, columns = torch.arange(1.0, height + 1), torch.arange(1.0, width + 1)
    return (1000 * rows[:, None] + columns).double()


class Fill(nn.Module):
    """Gives the coordinates, whatever comes in."""

    def __init__(self, inner, channels_last):
        super().__init__()
        self.inner = inner
        self.channels_last = channels_last

    def forward(self, x, *rest):
        x = self.inner(x, *rest)
        if self.channels_last:
            self.size = x.shape[1:3]
            return coordinates(*self.size)[None, :, :, None].expand_as(x).clone()
        self.size = x.shape[2:]
        return coordinates(*self.size).expand_as(x).clone()


def passing(*names):
    """Replaces these children by identities."""

    def change(module):
        for name in names:
            setattr(module, name, nn.Identity())

    return change


def skip(modules):
    for module in modules:
        module.forward = lambda x, *rest: x


def block_of(model, site, parents=1):
    return model.get_submodule(site.rsplit(".", parents)[0])


def fill_block(*identities, channels_last):
    """The tokens are still an image at the norm in front of the attention."""

    def prepare(model, site):
        block = block_of(model, site)
        passing(*identities)(block)
        first = identities[0]
        setattr(block, first, Fill(nn.Identity(), channels_last))
        return getattr(block, first)

    return prepare


def fill_maxxvit(model, site):
    attention = model.get_submodule(site)
    block = block_of(model, site)
    block.norm1 = Fill(block.norm1, isinstance(attention.qkv, nn.Linear))
    return block.norm1


def fill_nest(model, site):
    level = model.get_submodule(site.split(".transformer_encoder")[0])
    level.pool = Fill(level.pool, False)
    level.pos_embed.data.zero_()
    index = int(site.split(".")[-2])
    skip(level.transformer_encoder[:index])
    block_of(model, site).norm1 = nn.Identity()
    return level.pool


def fill_twins(model, site):
    stage, index = (int(number) for number in site.split(".")[1:3])
    embedding = model.patch_embeds[stage]
    embedding.proj = Fill(embedding.proj, False)
    embedding.norm = nn.Identity()
    skip([*model.blocks[stage][:index], model.pos_block[stage]])
    block_of(model, site).norm1 = nn.Identity()
    return embedding.proj


def fill_pit(model, site):
    stage, index = int(site.split(".")[1]), int(site.split(".")[3])
    transformer = model.transformers[stage]
    owner = transformer.pool if stage else model.patch_embed
    owner.conv = Fill(owner.conv, False)
    model.pos_embed.data.zero_()
    transformer.norm = nn.Identity()
    skip(transformer.blocks[:index])
    block_of(model, site).norm1 = nn.Identity()
    return owner.conv


def fill_crossvit(model, site):
    outer, branch, index = (int(site.split(".")[place]) for place in (1, 3, 4))
    embedding = model.patch_embed[branch]
    embedding.proj = Fill(embedding.proj, False)
    getattr(model, f"pos_embed_{branch}").data.zero_()
    skip([*model.blocks[:outer], *model.blocks[outer].blocks[branch][:index]])
    block_of(model, site).norm1 = nn.Identity()
    return embedding.proj


def fill_hiera(model, site):
    model.patch_embed.proj = Fill(model.patch_embed.proj, False)
    model.pos_embed.data.zero_()
    for block in model.blocks[: int(site.split(".")[1])]:
        stride, width = block.attn.q_stride, block.dim_out

        def pool(x, stride=stride, width=width):
            x = x.unflatten(1, (stride, -1)).amax(1)
            return x[..., :1].repeat(1, 1, width)

        block.forward = pool
    block_of(model, site).norm1 = nn.Identity()
    return model.patch_embed.proj


def fill_tiny_vit(model, site):
    # The block reads its input directly: the fill goes in front of it.
    head, last = site.rsplit(".", 2)[:2]
    blocks = model.get_submodule(head)
    block = blocks[int(last)]
    block.attn.norm = nn.Identity()
    fill = Fill(nn.Identity(), True)
    block.register_forward_pre_hook(lambda module, args: (fill(args[0]),))
    return fill


def fill_davit(model, site):
    block = block_of(model, site)
    passing("norm1")(block)
    block.cpe1 = Fill(nn.Identity(), False)
    return block.cpe1


FILLS = {
    "SwinTransformer": fill_block("norm1", channels_last=True),
    "DaVit": fill_davit,
    "MaxxVit": fill_maxxvit,
    "Nest": fill_nest,
    "Twins": fill_twins,
    "PoolingVisionTransformer": fill_pit,
    "TinyVit": fill_tiny_vit,
    "Visformer": fill_block("norm1", channels_last=False),
    "VOLO": fill_block("norm1", channels_last=True),
    "CrossVit": fill_crossvit,
    "Hiera": fill_hiera,
    "HieraDet": fill_block("norm1", channels_last=True),
}


def reads_first_channel(projection):
    projection.weight.data.zero_()
    projection.weight.data[:, 0] = 1.0
    if projection.bias is not None:
        projection.bias.data.zero_()


@torch.no_grad()
@pytest.mark.parametrize(("name", "site"), SITES)
def test_tokens_are_row_major(name, site):
    model = tiny_windowed.build(name)
    attention = model.get_submodule(site)
    fill = FILLS[type(model).__name__](model, site)
    for projection in ("qkv", "q", "kv"):
        if hasattr(attention, projection):
            reads_first_channel(getattr(attention, projection))
    with biased_attention(model) as calls:
        model(tiny_windowed.images(name))
    (call,) = [call for call in calls if call.name == site]
    height, width, prefix = CASES[name].sites[site].layout
    rows, columns = fill.size

    for tokens in (call.q, call.k):
        values = tokens[:, 0, prefix:, 0].round().long()
        assert torch.equal(tokens[:, :, prefix:].amin((1, 3)), tokens[:, :, prefix:].amax((1, 3)))
        seen = values[values > 0].unique()
        if type(model).__name__ == "Hiera":  # each token is the last patch of its cell
            step = (rows // height, columns // width)
            assert len(seen) == height * width
        else:
            grid = "attn_grid" in site
            step = (rows // height, columns // width) if grid else (1, 1)
            assert torch.equal(seen, coordinates(rows, columns).flatten().long())
        for window in values:
            (places,) = torch.nonzero(window, as_tuple=True)
            if not len(places):
                continue
            row, column = window[places] // 1000, window[places] % 1000
            down = (places // width - places[0] // width) * step[0]
            right = (places % width - places[0] % width) * step[1]
            # A shifted window wraps around the image.
            assert torch.equal((row - row[0] - down) % rows, torch.zeros_like(row))
            assert torch.equal((column - column[0] - right) % columns, torch.zeros_like(row))
