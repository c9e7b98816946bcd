import subprocess
import sys

import posenc

# DESIGN section 3, without set_layout (another issue), and the two bases of own encodings.
FUNCTIONS = {
    "attend",
    "create_encoding",
    "encoding_config",
    "encoding_parameters",
    "encoding_state_dict",
    "explain",
    "fold_biases",
    "is_patched",
    "list_encodings",
    "load_encodings",
    "patch_model",
    "patched_encodings",
    "register_attention",
    "save_encodings",
    "set_layout",
    "summary",
    "supports",
    "unpatch_model",
}
CLASSES = {
    "IRPE",
    "PEG",
    "AttentionEncoding",
    "HumanPart",
    "LearnedAbsolute",
    "Quadratic",
    "Sinusoidal",
    "SwinBias",
    "TokenEncoding",
    "TokenLayout",
}


def test_exports():
    assert set(posenc.__all__) == FUNCTIONS | CLASSES
    assert len(posenc.__all__) == len(set(posenc.__all__))
    assert all(callable(getattr(posenc, name)) for name in FUNCTIONS)
    assert all(isinstance(getattr(posenc, name), type) for name in CLASSES)


def test_every_public_name_has_a_docstring():
    assert [name for name in posenc.__all__ if not getattr(posenc, name).__doc__] == []


def test_registry_names():
    assert posenc.list_encodings() == sorted(
        ["sinusoidal", "learned", "peg", "irpe", "swin", "quadratic", "human_part"]
    )


def imported(statement):
    code = f"{statement}\nimport sys\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_import_stays_light():
    new = imported("import torch, posenc") - imported("import torch")
    assert "posenc" in new
    heavy = {"timm", "triton", "matplotlib", "torchvision", "safetensors", "mlxtend"}
    assert not new & {*heavy, "transformers", "open_clip"}


def test_names_without_a_model_need_no_timm():
    code = (
        "import posenc; posenc.list_encodings(); "
        "posenc.create_encoding('irpe', layout=posenc.TokenLayout(2, 3), num_heads=1, head_dim=4)"
    )
    assert "timm" not in imported(code)
