from pathlib import Path

import pytest
from new_process import run_python

import posenc
from posenc.registry import encoding_class

FUNCTIONS = {
    "attend",
    "clear_cache",
    "create_encoding",
    "encoding_config",
    "encoding_parameters",
    "encoding_state_dict",
    "explain",
    "fit_buckets",
    "fold_biases",
    "is_patched",
    "list_encodings",
    "load_encodings",
    "load_reference_checkpoint",
    "parameter_groups",
    "pair_index",
    "patch_from_config",
    "patch_model",
    "patched_encodings",
    "register_attention",
    "register_encoding",
    "save_encodings",
    "set_layout",
    "summary",
    "supports",
    "train_only_encodings",
    "unpatch_model",
}
CLASSES = {
    "AttentionEncoding",
    "ContentScale",
    "MatrixRotation",
    "Mixture",
    "ModelExplanation",
    "Rotation",
    "DenseBias",
    "Explanation",
    "LoadedCheckpoint",
    "LookupBias",
    "LowRankBias",
    "PairIndex",
    "Summary",
    "Support",
    "TokenEncoding",
    "TokenLayout",
    "ValueLookup",
}


# A new encoding is exported by its line in posenc/encodings/__init__.py, and needs none here.
ENCODINGS = {encoding_class(name).__name__ for name in posenc.list_encodings()}


def test_exports():
    assert set(posenc.__all__) == FUNCTIONS | CLASSES | ENCODINGS | {"__version__"}
    assert {"IRPE", "PEG", "LearnedAbsolute"} <= ENCODINGS
    assert len(posenc.__all__) == len(set(posenc.__all__))
    assert all(callable(getattr(posenc, name)) for name in FUNCTIONS)
    assert all(isinstance(getattr(posenc, name), type) for name in CLASSES)


def test_every_public_name_has_a_docstring():
    assert [name for name in posenc.__all__ if not getattr(posenc, name).__doc__] == []


def test_an_encoding_is_registered_under_the_name_of_its_file():
    files = {path.stem for path in Path(posenc.encodings.__file__).parent.glob("[!_]*.py")}
    assert set(posenc.list_encodings()) == files - {"base"}
    assert {"sinusoidal", "human_part"} <= set(posenc.list_encodings())


def imported(statement):
    """What a new process imports by it, beside torch."""
    code = f"import sys, torch\nbefore = set(sys.modules)\n{statement}\n"
    code += "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    return set(run_python(code).split())


@pytest.mark.slow
def test_import_stays_light():
    new = imported("import posenc")
    assert "posenc" in new
    heavy = {"timm", "triton", "matplotlib", "torchvision", "safetensors", "mlxtend"}
    assert not new & {*heavy, "transformers", "open_clip"}


@pytest.mark.slow
def test_names_without_a_model_need_no_timm():
    code = (
        "import posenc; posenc.list_encodings(); "
        "posenc.create_encoding('irpe', layout=posenc.TokenLayout(2, 3), num_heads=1, head_dim=4)"
    )
    assert "timm" not in imported(code)
