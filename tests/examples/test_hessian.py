"""The example's eigenvalues are those of a Hessian that was written down."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from torch.func import functional_call

import posenc

pytest.importorskip("hessian_eigenthings", reason="hessian-eigenthings is not installed")
FILE = Path(__file__).parents[2] / "examples" / "hessian.py"


@pytest.fixture
def hessian():
    spec = importlib.util.spec_from_file_location("hessian", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def vit(backend="reference"):
    """With 2 x 3 patches and 357 parameters, all random."""
    options = {"img_size": (8, 12), "patch_size": 4, "embed_dim": 4, "num_heads": 1, "depth": 1}
    model = timm.create_model(
        "vit_tiny_patch16_224", **options, mlp_ratio=1.0, num_classes=3, global_pool="avg",
        class_token=False,
    ).double()  # fmt: skip
    posenc.patch_model(model, "swin", backend=backend)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model.eval()


def written_down(model, images, labels, names):
    chosen = {name: p.detach() for name, p in model.named_parameters() if name in names}
    sizes = [p.numel() for p in chosen.values()]

    def loss(vector):
        parts = [p.view_as(q) for p, q in zip(vector.split(sizes), chosen.values(), strict=True)]
        logits = functional_call(model, dict(zip(chosen, parts, strict=True)), (images,))
        return torch.nn.functional.cross_entropy(logits, labels)

    vector = torch.cat([p.flatten() for p in chosen.values()])
    return torch.autograd.functional.hessian(loss, vector)


@pytest.mark.parametrize("of", ["all", "encoding"])
def test_eigenvalues_and_trace_are_those_of_the_hessian(hessian, of):
    model = vit()
    images, labels = torch.randn(6, 3, 8, 12).double(), torch.arange(6) % 3
    names = dict(model.named_parameters() if of == "all" else posenc.encoding_parameters(model))
    matrix = written_down(model, images, labels, names)
    values = torch.linalg.eigvalsh(matrix)
    found = hessian.curvature(model, images, labels, names)
    assert found["largest"] == pytest.approx(values[-1].item(), rel=1e-4)
    assert found["smallest"] == pytest.approx(values[0].item(), rel=1e-4)
    if of == "encoding":  # fewer numbers than products, so that the trace is exact
        assert found["trace"] == pytest.approx(matrix.trace().item(), rel=1e-6)
    else:
        assert found["trace"] == pytest.approx(matrix.trace().item(), rel=0.2)


def test_tiles_have_no_second_derivative(hessian):
    model = vit("tiled")
    for parameters in (model.named_parameters(), posenc.encoding_parameters(model)):
        with pytest.raises(RuntimeError, match=r'has no second derivative: .* backend="reference"'):
            hessian.curvature(
                model, torch.randn(2, 3, 8, 12).double(), torch.tensor([0, 1]), dict(parameters)
            )
