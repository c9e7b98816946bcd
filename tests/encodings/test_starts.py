"""Where parameters start: random ones by their distribution, the others at a constant."""

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


def cut_normal(std):
    """Normal, cut off at 2, as `trunc_normal_` does."""
    return "truncnorm", (-2 / std, 2 / std, 0, std)


STARTS = {  # encoding, options, parameter -> distribution
    ("convit", "weight"): ({"init": "random"}, uniform(-(3**-0.5), 3**-0.5)),
    ("cordonnier_learned", "row_embedding"): ({}, normal(1)),
    ("cordonnier_learned", "column_embedding"): ({}, normal(1)),
    ("cpb", "hidden_weight"): ({}, cut_normal(0.02)),
    ("cpb", "head_weight"): (PAPER, cut_normal(0.02)),
    ("fire_2d", "hidden_weight"): ({"width": 999}, uniform(-1, 1)),
    ("fire_2d", "hidden_bias"): ({"width": 999}, uniform(-1, 1)),
    ("fourier", "frequencies"): (WIDE | {"gamma": 0.5}, normal(2)),
    ("fourier", "hidden_weight"): (WIDE, uniform(-1 / 16, 1 / 16)),
    ("fourier", "hidden_bias"): (WIDE, uniform(-1 / 16, 1 / 16)),
    ("learned", "table"): (PAPER, cut_normal(0.02)),
    ("liere", "generators"): ({"strength": 0.5}, uniform(0, math.pi)),
    ("pape", "curvature"): ({}, normal(32**-0.5)),
    ("pape", "slope"): ({}, normal(32**-0.5)),
    ("pape", "directions"): ({"start": 0.3, "parabolas": 16}, normal(0.3)),
    ("peg", "weight"): (PAPER | {"kernel_size": 5}, uniform(-0.2, 0.2)),
    ("peg", "bias"): (PAPER | {"kernel_size": 5}, uniform(-0.2, 0.2)),
    ("quadratic", "centers"): ({"init": "normal"}, normal(2**0.5)),
    ("relative_logits", "projection"): ({}, normal(32**-0.5)),
    ("swin", "table"): (PAPER, cut_normal(0.02)),
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


CONSTANTS = {  # encoding, parameter -> start, in float32; others start at zero
    ("body", "log_part_width"): math.log(1 / 16),
    ("convit", "gate"): 1,
    ("convit", "strength"): 1,
    ("cosine", "log_scale"): math.log(10),
    ("fire_2d", "log_c"): math.log(0.1),
    ("fire_2d", "log_threshold"): math.log(math.hypot(13, 17)),
    ("human_part", "log_part_width"): math.log(0.1),
    ("human_part", "log_vertical_extent"): math.log(0.3),
    ("human_part", "log_horizontal_extent"): math.log(0.6),
    ("quadratic", "alpha"): 1,
    ("quadratic", "strength"): 1,
    ("sinusoidal", "strength"): 1,
    ("tupe", "norm_weight"): 1,
    ("tupe", "strength"): 1,
}
NEITHER = {  # starts that tests of their own compare
    ("body", "part_spacing"),
    ("convit", "weight"),
    ("human_part", "part_spacing"),
    ("human_part", "affinity"),
    ("quadratic", "centers"),
    ("rope_mixed", "freqs"),
}


@pytest.mark.parametrize("name", posenc.list_encodings())
def test_others_start_at_a_constant(name):
    """With the usual options."""
    cls = encoding_class(name)
    encoding = cls(LAYOUT, **needed_sizes(cls, SIZES, ""))
    random = {
        (each, key)
        for (each, key), (options, _) in STARTS.items()
        if options.get("init") != "paper"
    }
    for key, value in encoding.named_parameters():
        if (name, key) not in random | NEITHER:
            expected = torch.full_like(value, CONSTANTS.get((name, key), 0))
            torch.testing.assert_close(value.detach(), expected, rtol=1e-6, atol=0, msg=key)
