"""Parameters that start at random have the distribution of their docstring, or of the paper."""

import math

import pytest
import torch

import posenc
from posenc.registry import encoding_class, needed_sizes

LAYOUT = posenc.TokenLayout(13, 17, prefix=1)
SIZES = {"num_heads": 24, "head_dim": 32, "embed_dim": 768, "block": 1, "num_blocks": 3}
PAPER = {"init": "paper"}
WIDE = {"features": 256, "hidden": 300}


def uniform(low, high):
    return "uniform", (low, high - low)


def normal(std):
    return "norm", (0, std)


def cut(std):
    """Normal, cut off at 2, as `trunc_normal_` does."""
    return "truncnorm", (-2 / std, 2 / std, 0, std)


STARTS = {  # encoding, options, parameter -> distribution
    ("convit", "weight"): ({"init": "random"}, uniform(-(3**-0.5), 3**-0.5)),
    ("cordonnier_learned", "row_embedding"): ({}, normal(1)),
    ("cordonnier_learned", "column_embedding"): ({}, normal(1)),
    ("cpb", "hidden_weight"): ({}, cut(0.02)),
    ("cpb", "head_weight"): (PAPER, cut(0.02)),
    ("fire_2d", "hidden_weight"): ({"width": 999}, uniform(-1, 1)),
    ("fire_2d", "hidden_bias"): ({"width": 999}, uniform(-1, 1)),
    ("fourier", "frequencies"): (WIDE | {"gamma": 0.5}, normal(2)),
    ("fourier", "hidden_weight"): (WIDE, uniform(-1 / 16, 1 / 16)),
    ("fourier", "hidden_bias"): (WIDE, uniform(-1 / 16, 1 / 16)),
    ("learned", "table"): (PAPER, cut(0.02)),
    ("liere", "generators"): ({"strength": 0.5}, uniform(0, math.pi)),
    ("pape", "curvature"): ({}, normal(32**-0.5)),
    ("pape", "slope"): ({}, normal(32**-0.5)),
    ("pape", "directions"): ({"start": 0.3, "parabolas": 16}, normal(0.3)),
    ("peg", "weight"): (PAPER | {"kernel_size": 5}, uniform(-0.2, 0.2)),
    ("peg", "bias"): (PAPER | {"kernel_size": 5}, uniform(-0.2, 0.2)),
    ("quadratic", "centers"): ({"init": "normal"}, normal(2**0.5)),
    ("relative_logits", "projection"): ({}, normal(32**-0.5)),
    ("swin", "table"): (PAPER, cut(0.02)),
    ("tupe", "position"): ({}, normal(768**-0.5)),
    ("tupe", "query_weight"): ({}, normal(768**-0.5)),
    ("tupe", "key_weight"): ({}, normal(768**-0.5)),
}


@pytest.mark.parametrize(("name", "parameter"), STARTS)
def test_the_distribution(name, parameter):
    stats = pytest.importorskip("scipy.stats")
    options, (distribution, sizes) = STARTS[name, parameter]
    cls = encoding_class(name)
    torch.manual_seed(1)
    encoding = cls(LAYOUT, **needed_sizes(cls, SIZES, ""), **options)
    numbers = getattr(encoding, parameter).detach().flatten()
    chance = stats.kstest(numbers.numpy(), distribution, args=sizes).pvalue
    assert chance > 0.01, f"{chance:.2g} for {len(numbers)} numbers"


@pytest.mark.parametrize("name", posenc.list_encodings())
def test_no_other_parameter_is_random(name):
    """With the usual options: two seeds give the same start."""
    cls = encoding_class(name)
    random = set()
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(cls(LAYOUT, **needed_sizes(cls, SIZES, "")).state_dict())
    random = {key for key, value in states[0].items() if not torch.equal(value, states[1][key])}
    known = {parameter for other, parameter in STARTS if other == name}
    assert random <= known | ({"freqs"} if name == "rope_mixed" else set())
