"""Invariance, symmetry and monotonicity of matrices of pairs, against loops and built cases."""

import itertools

import pytest
import torch

import posenc
from posenc import TokenLayout
from posenc.analysis import invariance, monotonicity, position_similarity, symmetry

LAYOUTS = [(2, 3, 0), (3, 2, 1), (1, 5, 2), (3, 4, 5)]
MEASURES = {"invariance": invariance, "symmetry": symmetry, "monotonicity": monotonicity}


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def places(height, width):
    return list(itertools.product(range(height), range(width)))


def explained(matrix, height, width):
    """By least squares with a column for each offset and each row."""
    where = places(height, width)
    offsets = sorted({(b[0] - a[0], b[1] - a[1]) for a in where for b in where})
    n = len(where)
    design = torch.zeros(n * n, len(offsets) + n, dtype=torch.float64)
    for (i, a), (j, b) in itertools.product(enumerate(where), enumerate(where)):
        design[i * n + j, offsets.index((b[0] - a[0], b[1] - a[1]))] = 1
        design[i * n + j, len(offsets) + i] = 1
    target = matrix.flatten()
    rest = target - design @ torch.linalg.pinv(design) @ target
    centered = matrix - matrix.mean(-1, keepdim=True)
    return 1 - rest.square().sum() / centered.square().sum()


def falls(matrix, height, width):
    where, right, total = places(height, width), 0.0, 0
    for i, j, k in itertools.product(range(len(where)), repeat=3):
        near, far = ((where[x][0] - where[i][0]) ** 2 + (where[x][1] - where[i][1]) ** 2
                     for x in (j, k))  # fmt: skip
        if near < far:
            total += 1
            difference = (matrix[i, j] - matrix[i, k]).item()
            right += 0.5 if difference == 0 else difference > 0
    return right / total


def in_both_directions(matrix):
    n = len(matrix)
    rows, columns, mean = matrix.mean(1), matrix.mean(0), matrix.mean()
    left = [[matrix[i, j] - rows[i] - columns[j] + mean for j in range(n)] for i in range(n)]
    even = sum(((left[i][j] + left[j][i]) / 2) ** 2 for i in range(n) for j in range(n))
    return even / sum(value**2 for row in left for value in row)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_as_in_loops(layout):
    height, width, prefix = layout
    tokens = prefix + height * width
    matrices = random(2, 3, tokens, tokens)
    matrices[0, 0] = matrices[0, 0].round()  # with equal values
    actual = {name: f(matrices, TokenLayout(*layout)) for name, f in MEASURES.items()}
    for a, b in itertools.product(range(2), range(3)):
        matrix = matrices[a, b, prefix:, prefix:]
        expected = {
            "invariance": explained(matrix, height, width),
            "symmetry": in_both_directions(matrix),
            "monotonicity": falls(matrix, height, width),
        }
        for name, value in expected.items():
            assert actual[name][a, b].item() == pytest.approx(float(value), abs=1e-9), name
    patches = matrices[..., prefix:, prefix:]
    for name, f in MEASURES.items():
        assert torch.equal(f(patches, TokenLayout(*layout)), actual[name])


def test_what_softmax_does_not_see_does_not_matter():
    layout = TokenLayout(3, 5)
    matrix, per_query = random(15, 15), random(15, 1, seed=1)
    for measure in MEASURES.values():
        torch.testing.assert_close(
            measure(matrix + 10 * per_query, layout), measure(matrix, layout)
        )


def test_built_matrices():
    layout = TokenLayout(3, 4, prefix=1)
    where = torch.tensor(places(3, 4), dtype=torch.float64)
    distance = torch.cdist(where, where)
    for matrix, expected in [
        (-distance, {"invariance": 1.0, "symmetry": 1.0, "monotonicity": 1.0}),
        (distance, {"invariance": 1.0, "symmetry": 1.0, "monotonicity": 0.0}),
        (where[:, :1] * where[:, 1] - where[:, 1:] * where[:, 0], {"symmetry": 0.0}),
    ]:
        for name, value in expected.items():
            assert MEASURES[name](matrix, layout).item() == pytest.approx(value, abs=1e-9), name
    no_pattern = torch.stack([random(12, 12, seed=seed) for seed in range(20)])
    assert monotonicity(no_pattern, layout).mean().item() == pytest.approx(0.5, abs=0.05)
    # The diagonal is its own mirror image.
    assert symmetry(no_pattern, layout).mean().item() == pytest.approx(0.5 + 1 / 22, abs=0.03)
    assert monotonicity(torch.zeros(12, 12), layout).item() == 0.5
    assert invariance(torch.zeros(12, 12), layout).isnan()
    assert monotonicity(torch.zeros(1, 1), TokenLayout(1, 1)).isnan()


def test_of_encodings():
    layout = TokenLayout(4, 3, prefix=1)
    table = posenc.Sinusoidal(layout, embed_dim=16)
    maps = position_similarity(table, layout).reshape(12, 12)
    assert invariance(maps, layout) > 0.99
    assert symmetry(maps, layout) > 0.99
    swin = posenc.SwinBias(layout, 2, 8)
    swin.table.data.normal_()
    full = torch.zeros(1, 2, 13, 8)
    bias = swin(full, full, layout)[0].dense()[0].detach()
    torch.testing.assert_close(invariance(bias, layout), torch.ones(2), atol=1e-4, rtol=0)
    assert (symmetry(bias, layout) < 0.9).all()


@pytest.mark.parametrize("name", MEASURES)
def test_errors(name):
    layout, measure = TokenLayout(2, 3, prefix=1), MEASURES[name]
    for wrong, error, message in [
        (torch.rand(5, 5), ValueError, rf"{name}: matrix must be \[\.\.\., 7, 7\].*got \[5, 5\]"),
        (torch.rand(7, 6), ValueError, r"got \[7, 6\]"),
        (torch.rand(7), ValueError, r"got \[7\]"),
        (torch.full((7, 7), float("-inf")), ValueError, "not finite"),
        (torch.ones(7, 7).int(), TypeError, "got torch.int32"),
        (None, TypeError, "got NoneType"),
    ]:
        with pytest.raises(error, match=message):
            measure(wrong, layout)
