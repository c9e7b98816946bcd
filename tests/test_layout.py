import copy
import pickle
import sys

import pytest
from new_process import run_python

from posenc import TokenLayout


def test_counts():
    layout = TokenLayout(3, 5, prefix=2)
    assert (layout.grid, layout.num_grid, layout.num_tokens) == ((3, 5), 15, 17)
    assert TokenLayout(3, 5).prefix == 0


def test_equal_counts_are_not_equal_layouts():
    assert TokenLayout(2, 3) == TokenLayout(2, 3)
    assert len({TokenLayout(2, 3), TokenLayout(2, 3), TokenLayout(3, 2), TokenLayout(2, 3, 1)}) == 3


def test_is_frozen():
    with pytest.raises(AttributeError, match="cannot assign"):
        TokenLayout(2, 3).height = 4


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal(clone):
    assert clone(TokenLayout(2, 3, 1)) == TokenLayout(2, 3, 1)


def test_reads_well():
    assert str(TokenLayout(2, 3)) == "2x3"
    assert str(TokenLayout(2, 3, 5)) == "2x3 + 5 prefix"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 3), r"height must be at least 1, got 0: TokenLayout\(height=0, width=3, prefix=0\)"),
        ((2, 0), "width must be at least 1, got 0"),
        ((2, -3), "width must be at least 1, got -3"),
        ((2, 3, -1), "prefix must be at least 0, got -1"),
    ],
)
def test_refuses_sizes(values, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(*values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((2.0, 3), r"height must be an int, got 2.0 \(float\)"),
        ((2, "3"), r"width must be an int, got '3' \(str\)"),
        ((2, 3, True), r"prefix must be an int, got True \(bool\)"),
        ((None, 3), r"height must be an int, got None \(NoneType\)"),
    ],
)
def test_refuses_types(values, message):
    with pytest.raises(TypeError, match=message):
        TokenLayout(*values)


@pytest.mark.slow
def test_the_module_needs_no_torch():
    code = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('layout', sys.argv[1])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['layout'] = module\n"
        "spec.loader.exec_module(module)\n"
        "assert module.TokenLayout(2, 3).num_tokens == 6\n"
        "print('torch' in sys.modules)\n"
    )
    path = sys.modules[TokenLayout.__module__].__file__
    assert run_python(code, path).strip() == "False"
