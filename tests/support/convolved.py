"""Models with depthwise convolutions at three places, computed by hooks on an unpatched twin."""

from __future__ import annotations

import oracles
import tiny_global

import posenc

NAMES = ("lpu", "local_ffn", "conv_projection")
# Of tiny_global: blocks that are one module with their attention have no input of attention alone,
# and windows are no grid.
WITHOUT_ATTENTION_INPUT = ("vit_parallel", "vit_diff_parallel", "sam", "sam_rope")
# What receives the hidden tokens of an MLP in its last step, where that is not `mlp.fc2`.
LAST_STEP = {
    "vit_parallel": "mlp_out_proj",
    "vit_diff_parallel": "mlp_drop",
    "gemma": "mlp.down_proj",
}
SITES = {"vit_parallel": "mlp_drop", "vit_diff_parallel": "mlp_drop", "gemma": "mlp.down_proj"}


def cases(*encodings):
    """Every family whose blocks see one grid, with every encoding that it takes."""
    return [
        (name, encoding)
        for name in tiny_global.CASES
        for encoding in encodings or NAMES
        if encoding != "conv_projection" or name not in WITHOUT_ATTENTION_INPUT
    ]


def layout_of(name):
    """Of the whole grid: windows are cut out of it."""
    prefix = next(iter(tiny_global.CASES[name].sites.values())).layout[2]
    return (3, 5, prefix)


def blocks_of(name):
    first = next(iter(tiny_global.CASES[name].sites))
    return "encoder.blocks" if first.startswith("encoder.") else "blocks"


def sites(name, encoding):
    """Where the encoding must stand."""
    inner = {"lpu": "", "conv_projection": ".attn"}
    inner["local_ffn"] = f".{SITES.get(name, 'mlp.drop1')}"
    return [f"{blocks_of(name)}.{index}{inner[encoding]}" for index in (0, 1)]


def hook_places(name, encoding):
    """What receives the tokens that the encoding acts on: not by the sites of posenc."""
    inner = {"lpu": "", "conv_projection": ".attn"}
    inner["local_ffn"] = f".{LAST_STEP.get(name, 'mlp.fc2')}"
    return [f"{blocks_of(name)}.{index}{inner[encoding]}" for index in (0, 1)]


def hook(plain, places, encodings, layout):
    """Gives an unpatched model the loops of these encodings, each before its module."""
    for place, encoding in zip(places, encodings, strict=True):
        plain.get_submodule(place).register_forward_pre_hook(_loop(encoding, layout))


def _loop(encoding, layout):
    def before(module, args):
        x = args[0]
        tokens = x.flatten(1, -2)
        tokens = oracles.peg(tokens, encoding.weight, encoding.bias, *layout)
        return (tokens.reshape(x.shape), *args[1:])

    return before


def found(model, name):
    """The encodings of a name, by site."""
    every = posenc.patched_encodings(model)
    return {site.removesuffix(f".{name}"): e for site, e in every.items() if site.endswith(name)}
