"""Options with which encodings start without effect, and random parameters for them."""

import oracles

from posenc import patched_encodings

SILENT = {
    "irpe": {},
    "swin": {},
    "human_part": {},
    "learned": {},
    "peg": {},
    "quadratic": {"strength": 0.0},
    "sinusoidal": {"strength": 0.0},
}
# A CLS token has pairs with prefix tokens only: without these its last block has no gradient.
WITH_PREFIX = {"prefix_pairs": "separate"}


def randomize_encodings(model, scale=0.3, seed=0):
    """Every encoding of a patched model away from its start, each in its own way."""
    for index, encoding in enumerate(patched_encodings(model).values()):
        oracles.randomize(encoding, seed + index, scale)
    return model
