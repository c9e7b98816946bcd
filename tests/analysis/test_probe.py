"""The coordinate probe: against least squares written out, and on built tokens."""

import math

import pytest
import tiny_vit
import torch
import torch.nn.functional as F

from posenc import TokenLayout
from posenc.analysis import block_tokens, coordinate_probe


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def by_gradient_free_least_squares(tokens, height, width, count, strength):
    """Ridge regression as plain least squares with further rows, an intercept unpenalized."""
    fitted, kept = tokens[:-count], tokens[-count:]
    places = torch.tensor([divmod(i, width) for i in range(height * width)]).double()
    x = fitted.reshape(-1, fitted.shape[-1])
    y = places.repeat(len(fitted), 1)
    size = (x - x.mean(0)).square().mean()
    channels = x.shape[1]
    ridge = math.sqrt(strength * size * len(x)) * torch.eye(channels, dtype=x.dtype)
    design = torch.cat([torch.cat([x, torch.ones(len(x), 1)], 1),
                        torch.cat([ridge, torch.zeros(channels, 1)], 1)])  # fmt: skip
    solution = torch.linalg.lstsq(design, torch.cat([y, torch.zeros(channels, 2)])).solution
    z = kept.reshape(-1, channels)
    prediction = torch.cat([z, torch.ones(len(z), 1)], 1) @ solution
    truth = places.repeat(len(kept), 1)
    rest = (truth - prediction).square().sum(0)
    return (1 - rest / (truth - truth.mean(0)).square().sum(0)).tolist()


@pytest.mark.parametrize("layout", [(3, 5, 0), (2, 3, 1), (4, 2, 2), (3, 2, 5)])
def test_as_least_squares(layout):
    height, width, prefix = layout
    tokens = random(9, prefix + height * width, 4) + 2
    tokens[:, prefix:, 0] += torch.arange(height * width) // width  # some position
    for held_out, count in ((0.5, 4), (0.01, 1), (0.99, 8)):
        for strength in (1e-3, 2.0):
            actual = coordinate_probe(
                tokens, TokenLayout(*layout), held_out=held_out, strength=strength
            )
            expected = by_gradient_free_least_squares(
                tokens[:, prefix:], height, width, count, strength
            )
            assert list(actual) == pytest.approx(expected, abs=1e-8)


def test_position_is_read_and_content_is_not():
    layout = TokenLayout(4, 6, prefix=1)
    content = random(60, 25, 8)
    scores = coordinate_probe(content, layout)
    assert max(map(abs, scores)) < 0.1
    rows = torch.cat([torch.zeros(1), torch.arange(24) // 6]).double()
    scores = coordinate_probe(content + rows[:, None] * random(8, seed=1), layout)
    assert scores.row > 0.5
    assert abs(scores.column) < 0.1
    table = random(25, 32, seed=2)
    both = coordinate_probe(table.expand(6, -1, -1) + 0.01 * random(6, 25, 32), layout)
    assert min(both) > 0.95


def test_zero_padding_tells_positions():
    """As Islam et al. found in deep networks; a ring has no place that differs."""
    images, weight = random(40, 3, 6, 8), random(8, 3, 3, 3, seed=1) + 0.5
    images = images + 1
    zero = F.conv2d(images, weight, padding=1).relu()
    ring = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="circular"), weight).relu()
    edges = (coordinate_probe(x.flatten(2).mT, TokenLayout(6, 8)) for x in (zero, ring))
    with_zeros, with_ring = edges
    assert min(with_zeros) > 0.1
    assert max(map(abs, with_ring)) < 0.05


def test_of_a_model_with_a_table():
    model = tiny_vit.vit(1)
    kept = block_tokens(model, 0.2 * tiny_vit.images(model, batch=40))
    model.pos_embed.data.zero_()
    without = block_tokens(model, 0.2 * tiny_vit.images(model, batch=40))
    for name in kept.tokens:
        assert min(coordinate_probe(kept.tokens[name], kept.layout)) > 0.15
        assert max(coordinate_probe(without.tokens[name], kept.layout)) < 0.05


def test_tokens_without_variance_and_a_single_row():
    layout = TokenLayout(1, 4)
    scores = coordinate_probe(torch.ones(3, 4, 2), layout)
    assert math.isnan(scores.row)
    assert scores.column == pytest.approx(0.0)


def test_errors():
    layout, tokens = TokenLayout(2, 3, prefix=1), random(4, 7, 3)
    for wrong, options, error, message in [
        (tokens[:, 1:], {}, ValueError, r"coordinate_probe: tokens must be \[B, 7, C\]"),
        (tokens[:1], {}, ValueError, "1 images are too few: pass at least 2"),
        (tokens / 0, {}, ValueError, "not finite"),
        (tokens, {"held_out": 1.0}, ValueError, "held_out must be more than 0 and less than 1"),
        (tokens, {"strength": 0.0}, ValueError, "strength must be positive, got 0.0"),
        (tokens.int(), {}, TypeError, "floating point tensor, got torch.int32"),
    ]:
        with pytest.raises(error, match=message):
            coordinate_probe(wrong, layout, **options)
