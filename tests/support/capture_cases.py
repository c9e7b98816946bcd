"""Patched models whose attention is captured, and what it should be."""

import oracles
import pytest
import torch
from expected_bias import BIAS
from random_encodings import SILENT, WITH_PREFIX, randomize_encodings
from tiny_vit import eager, vit

from posenc import patch_model, patched_encodings

NAMES = ["blocks.0.attn", "blocks.1.attn"]
OPTIONS = {**SILENT, "swin": WITH_PREFIX}
PREFIXES = [0, 1, 2, 5]
some_models = pytest.mark.parametrize("encoding", [None, "swin", "peg", "irpe"])


def patched(encoding, model=None, scale=0.3, **options):
    """With random encodings; as it is with encoding None."""
    model = model or vit()
    if encoding is None:
        return model
    patch_model(model, encoding, **{**SILENT.get(encoding, {}), **options})
    return randomize_encodings(model, scale, seed=1)


def assert_close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def written_out(model, x, encoding):
    """(attention, bias) of each module in `tiny_vit.eager`, and the logits."""
    layout = (3, 5, model.num_prefix_tokens)
    encodings = patched_encodings(model) if encoding else {}
    scale, attention, biases = 8**-0.5, {}, {}

    def bias(name, q, k):
        own = 0.0
        if encoding in BIAS:
            own = BIAS[encoding](encodings[f"{name}.{encoding}"], q, layout, scale)
            biases[name] = own
        attention[name] = (scale * q @ k.transpose(-2, -1) + own).softmax(-1)
        return own

    def position(tokens):
        if encoding == "learned":
            return tokens + encodings["learned"].table
        if encoding == "sinusoidal":
            table = oracles.sincos(*layout, tokens.shape[-1], "mae")
            return tokens + encodings["sinusoidal"].strength * table
        return tokens

    def after(index, tokens):
        module = encodings.get(f"blocks.{index}.peg")
        return (
            tokens if module is None else oracles.peg(tokens, module.weight, module.bias, *layout)
        )

    with torch.no_grad():
        logits = eager(model, x, bias, position, after)
    return attention, biases, logits
