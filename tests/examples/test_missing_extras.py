"""A script without its extra names it."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = (ROOT / "pyproject.toml").read_text()
# script, extra, a module that it needs of that extra
MISSING = [
    ("examples/attention_is_convolution.py", "demo", "mlxtend"),
    ("examples/attention_is_convolution.py", "demo", "matplotlib"),
    ("examples/quickstart.py", "demo", "mlxtend"),
    ("examples/compare_encodings.py", "demo", "mlxtend"),
    ("examples/compare_encodings.py", "demo", "tqdm"),
    ("examples/compare_encodings.py", "demo", "matplotlib"),
    ("examples/hessian.py", "interpret", "hessian_eigenthings"),
    ("examples/interpret/with_captum.py", "interpret", "captum"),
    ("examples/interpret/with_grad_cam.py", "interpret", "pytorch_grad_cam"),
    ("examples/interpret/with_torchcam.py", "interpret", "torchcam"),
    ("examples/what_positions_learn.py", "demo", "mlxtend"),
    ("examples/what_positions_learn.py", "demo", "tqdm"),
    ("examples/what_positions_learn.py", "demo", "matplotlib"),
    ("examples/which_encoding.py", "which", "matplotlib"),
    ("examples/which_encoding.py", "which", "scipy"),
    ("examples/which_encoding.py", "which", "torchvision"),
    ("examples/which_encoding.py", "which", "tqdm"),
    ("examples/reid/demo.py", "reid", "torchvision"),
    ("examples/reid/evaluate.py", "reid", "scipy"),
    ("examples/reid/experiment.py", "reid", "scipy"),
    ("examples/reid/floors.py", "reid", "torchvision"),
    ("examples/reid/generate.py", "reid", "tqdm"),
    ("examples/reid/pictures.py", "reid", "matplotlib"),
    ("examples/reid/train.py", "reid", "accelerate"),
    ("examples/reid/train.py", "reid", "pytorch_metric_learning"),
    ("benchmarks/inspect_kernels.py", "triton", "triton"),
    ("docs/sweep.py", "bench", "tqdm"),
]


def entry_points():
    files = [*(ROOT / "examples").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    return {str(p.relative_to(ROOT)) for p in files if '__name__ == "__main__"' in p.read_text()}


def test_every_script_is_tried():
    """Some need no extra."""
    without = {
        "examples/three_cells.py",
        *("benchmarks/bench_attention.py", "benchmarks/bench_compiled.py"),
        *("benchmarks/bench_model.py", "benchmarks/on_gpu.py"),
    }
    assert entry_points() <= {script for script, _, _ in MISSING} | without


@pytest.mark.parametrize(("script", "extra", "module"), MISSING)
def test_the_extra_is_named(script, extra, module, monkeypatch):
    assert f"\n{extra} = [" in PROJECT
    folder = (ROOT / script).parent
    local = {path.relative_to(folder).parts[0].removesuffix(".py") for path in folder.rglob("*.py")}
    for name in list(sys.modules):
        if name.partition(".")[0] in {*local, module}:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", [script, "--help"])  # nothing runs if nothing is missed
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(SystemExit, match=rf'{module}.*: pip install "\.\[{extra}\]"'):
        runpy.run_path(str(ROOT / script), run_name="__main__")
