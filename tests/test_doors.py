"""The front door: version, help, exported classes and types."""

import importlib.metadata
import inspect
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from torch import nn

import posenc
from posenc import AttentionEncoding, TokenLayout

FOLDER = Path(posenc.__file__).parent


def test_the_version_of_the_installed_package():
    """Where it differs, the package was not installed again after the version changed."""
    try:
        installed = importlib.metadata.version("posenc")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("posenc is on the path only")
    assert installed == posenc.__version__


def test_the_version_without_an_installation(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(FOLDER, tmp_path / "posenc", ignore=ignored)
    code = "import posenc; print(posenc.__file__, posenc.__version__)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(tmp_path / "posenc" / "__init__.py"), posenc.__version__]


class Silent(AttentionEncoding):
    def __init__(self, layout, num_heads, head_dim=None):
        super().__init__(layout, num_heads, head_dim)

    def terms(self, q, k, layout, scale):
        return ()


class Spoken(Silent):
    def __init__(self, layout, num_heads):
        """Speaks for itself."""
        super().__init__(layout, num_heads)


class Inherits(Silent):
    pass


@pytest.mark.parametrize(
    "cls",
    [
        *map(posenc.registry.encoding_class, posenc.list_encodings()),
        posenc.AttentionEncoding,
        posenc.TokenEncoding,
        Silent,
        Inherits,
    ],
)
def test_help_of_a_constructor_points_to_the_class(cls):
    assert inspect.getdoc(cls.__init__) == "The class describes the arguments."


def test_a_docstring_of_its_own_stays():
    assert inspect.getdoc(Spoken.__init__) == "Speaks for itself."


def test_what_reports_return_is_exported():
    q = torch.zeros(1, 2, 6, 4)
    assert type(posenc.explain(q, q, q)) is posenc.Explanation
    assert type(posenc.supports(nn.Linear(2, 2))) is posenc.Support
    assert posenc.patching.summary is posenc.summary
    hints = typing.get_type_hints(posenc.summary)
    assert hints["return"] is posenc.Summary


@pytest.mark.parametrize("function", [posenc.patch_model, posenc.unpatch_model])
def test_the_type_of_a_model_stays(function):
    hints = typing.get_type_hints(function)
    assert hints["return"] is hints["model"]
    assert hints["model"].__bound__ is nn.Module


@pytest.mark.parametrize(
    ("function", "option", "words"),
    [
        (posenc.patch_model, "absolute", {"keep", "hide"}),
        (posenc.IRPE.__init__, "mode", {"contextual", "bias"}),
        (posenc.IRPE.__init__, "prefix_pairs", {"none", "shared", "separate"}),
        (posenc.SwinBias.__init__, "init", {"zero", "paper"}),
        (
            posenc.Sinusoidal.__init__,
            "convention",
            {"mae", "timm", "vaswani", "moco_v3", "detr", "positional_encodings", "mae_1d"},
        ),
        (posenc.Quadratic.__init__, "init", {"stencil", "normal"}),
        (posenc.LearnedAbsolute.__init__, "policy", {"timm", "hf"}),
    ],
)
def test_words_are_literals(function, option, words):
    hint = typing.get_type_hints(function)[option]
    assert typing.get_origin(hint) is typing.Literal
    assert set(typing.get_args(hint)) == words


# pair_index


def expected_bucket(layout, query, key, buckets, count, prefix_pairs):
    if query < layout.prefix or key < layout.prefix:
        both = query < layout.prefix and key < layout.prefix
        kind = 2 if both else int(key < layout.prefix)
        return count + kind if prefix_pairs == "separate" else count
    query, key = query - layout.prefix, key - layout.prefix
    row = query // layout.width - key // layout.width + layout.height - 1
    column = query % layout.width - key % layout.width + layout.width - 1
    return int(buckets[row, column])


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize(("prefix_pairs", "extra"), [("none", 1), ("shared", 1), ("separate", 3)])
def test_pair_index_element_by_element(prefix, prefix_pairs, extra):
    layout = TokenLayout(2, 3, prefix)
    buckets = torch.randint(0, 4, (3, 5), generator=torch.Generator().manual_seed(prefix))
    index = posenc.pair_index(layout, buckets, 4, prefix_pairs)
    assert index.num_buckets == 4 + (extra if prefix else 0)
    tokens = range(layout.num_tokens)
    expected = [
        [expected_bucket(layout, i, j, buckets, 4, prefix_pairs) for j in tokens] for i in tokens
    ]
    assert index.dense().tolist() == expected


def test_an_own_table_with_a_spare_bucket():
    layout = TokenLayout(2, 3, prefix=1)
    rows = torch.tensor([[0] * 5, [1] * 5, [2] * 5])
    index = posenc.pair_index(layout, rows, 3, axis="rows")
    table = torch.tensor([[1.0, 2.0, 3.0]])  # one head, query above, beside, below the key
    bias = posenc.LookupBias(posenc.fit_buckets(table, index)[None, :, None], index).dense()
    assert bias[0, 0, 0].tolist() == [0.0] * 7
    assert bias[0, 0, 1].tolist() == [0.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0]
    assert bias[0, 0, 4].tolist() == [0.0, 3.0, 3.0, 3.0, 2.0, 2.0, 2.0]


GOOD = {"layout": TokenLayout(2, 3), "buckets": torch.zeros(3, 5).long(), "num_buckets": 1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layout": (2, 3)}, TypeError, r"layout must be a posenc.TokenLayout, got \(2, 3\)"),
        ({"buckets": torch.zeros(3, 5)}, TypeError, "int64 tensor, got torch.float32; use .long"),
        ({"buckets": [[0]]}, TypeError, "int64 tensor, got list"),
        ({"buckets": torch.zeros(5, 3).long()}, ValueError, r"must have shape \(3, 5\) .*\(5, 3\)"),
        ({"buckets": torch.ones(3, 5).long()}, ValueError, "0 to num_buckets - 1 = 0, got 1 to 1"),
        ({"buckets": -torch.ones(3, 5).long()}, ValueError, "0 to .* = 0, got -1 to -1"),
        ({"prefix_pairs": "all"}, ValueError, "one of 'none', 'shared', 'separate', got 'all'"),
        ({"axis": "up"}, ValueError, 'axis must be None, "rows" or "cols", got \'up\''),
    ],
)
def test_bad_pair_index(change, error, message):
    with pytest.raises(error, match=message):
        posenc.pair_index(**{**GOOD, **change})
