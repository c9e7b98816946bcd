"""`is_sized_by_grid` and `is_sized_by_prefix` are true where parameters need it, not elsewhere."""

import pytest

import posenc
from posenc import TokenLayout
from posenc.testing.subject import Subject

OPTIONS = {
    "cordonnier_learned": [{"max_offset": 3}],
    "cpb": [{"pretrained": 4}],
    "fire_2d": [{"threshold": 2.0}],
    "irpe": [{"method": "cross"}, {"mode": "bias"}],
    "liere": [{"resize": "scale", "strength": 1.0}, {"strength": 1.0}],
    "relative_logits": [{"prefix_pairs": "separate"}],
    "rope": [{"resize": "scale"}, {"resize": "extrapolate"}, {"convention": "dinov3"}],
    "rope_mixed": [{"resize": "scale"}],
    "sasa": [{"window": 3}],
    "sinusoidal": [{"convention": "detr", "normalize": True}],
    "tupe": [{"relative": True}, {"reset": False}],
}
CASES = [
    (name, options) for name in posenc.list_encodings() for options in [{}, *OPTIONS.get(name, [])]
]
GRID, OTHERS = (4, 3), [(3, 4), (2, 5), (5, 6)]


def means_the_same(subject, other):
    """A state without the grid that it was made for, on two grids."""
    layout, other = (TokenLayout(*grid, prefix=1) for grid in (GRID, other))
    source, target = subject.random(layout), subject.build(other)
    try:
        target.load_state_dict({**source.state_dict()})
    except RuntimeError:  # of other shapes
        return False
    outputs = [[subject.run(each, at) for each in (source, target)] for at in (layout, other)]
    return all((one - two).abs().max() < 1e-9 for one, two in outputs)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_it_is_true_where_another_grid_means_something_else(name, options):
    subject = Subject(name, 2, 8, options)
    same = all(means_the_same(subject, other) for other in OTHERS)
    assert subject.build(TokenLayout(*GRID, prefix=1)).is_sized_by_grid is not same


@pytest.mark.parametrize(("name", "options"), CASES)
def test_it_is_true_where_prefix_tokens_have_parameters(name, options):
    subject = Subject(name, 2, 8, options)
    without, encoding = (subject.build(TokenLayout(*GRID, prefix)) for prefix in (0, 2))
    shapes = [[p.shape for p in each.parameters()] for each in (without, encoding)]
    assert without.is_sized_by_prefix is encoding.is_sized_by_prefix is (shapes[0] != shapes[1])
