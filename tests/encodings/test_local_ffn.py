import neighbors
import pytest
import torch
from layouts import LAYOUTS

from posenc import LocalFFN, TokenLayout


@pytest.mark.parametrize("layout", [*LAYOUTS, (1, 1, 1)])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_equals_the_loop(layout, kernel_size):
    encoding = neighbors.build(LocalFFN, layout, kernel_size=kernel_size)
    neighbors.check_equals_the_loop(encoding, layout)


def test_the_grid_of_the_call_counts():
    neighbors.check_the_grid_of_the_call_counts(neighbors.build(LocalFFN, (2, 5, 1)))


def test_prefix_tokens_pass_by():
    neighbors.check_prefix_tokens_pass_by(neighbors.build(LocalFFN, (2, 5, 3)))


def test_shapes_and_start():
    encoding = LocalFFN(TokenLayout(2, 5, 1), 4, dtype=torch.float64)
    shapes = {name: tuple(p.shape) for name, p in encoding.named_parameters()}
    assert shapes == {"weight": (4, 1, 3, 3), "bias": (4,)}
    neighbors.check_start(encoding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 2}, r"LocalFFN: kernel_size must be odd.*2"),
        ({"kernel_size": 0}, r"LocalFFN: kernel_size.*positive.*0"),
        ({"at": ()}, r"LocalFFN: at must be block indices.*\(\)"),
        ({"at": "ab"}, r"LocalFFN: at must be block indices.*'ab'"),
        ({"at": (1, 1)}, r"LocalFFN: at must not repeat a block.*\(1, 1\)"),
    ],
)
def test_refuses_what_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        LocalFFN(TokenLayout(2, 3), 4, **options)


def test_refuses_tokens_that_the_layout_does_not_have():
    encoding = neighbors.build(LocalFFN, (2, 5, 1))
    with pytest.raises(ValueError, match=r"11 tokens.*10"):
        encoding(neighbors.tokens((2, 5, 0)), TokenLayout(2, 5, prefix=1))
