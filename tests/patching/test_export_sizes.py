"""What an exported file does not support is refused when it is exported."""

import dynamic_vit
import pytest
import tiny_vit
import tiny_windowed
import torch
from random_encodings import randomize_encodings
from torch._dynamo.testing import CompileCounterWithBackend

import posenc

# torch's own code warns while it traces.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

ENCODINGS = {
    "irpe": {"on": "qkv"},
    "swin": {},
    "quadratic": {},
    "human_part": {},
    "learned": {},
    "sinusoidal": {},
    "peg": {},
}
each_encoding = pytest.mark.parametrize("encoding", ENCODINGS)
REFUSAL = "has a size that is dynamic in this export.*export one image size at a time"
# Before PyTorch 2.9 Dynamo says that there was an error, and not which.
BY_DYNAMO = f"{REFUSAL}|Observed exception"


def patched(encoding, model=None):
    model = dynamic_vit.build() if model is None else model
    posenc.patch_model(model, encoding, **ENCODINGS.get(encoding, {}))
    return randomize_encodings(model)


def sides(patch=4, auto=False):
    if auto:
        return ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    height, width = (torch.export.Dim(name, min=2, max=20) for name in ("height", "width"))
    return ({2: patch * height, 3: patch * width},)


@each_encoding
def test_dynamic_sides_are_refused(encoding):
    model = patched(encoding)
    with pytest.raises(ValueError, match=REFUSAL):
        torch.export.export(model, (dynamic_vit.images((3, 5)),), dynamic_shapes=sides())


@pytest.mark.parametrize("name", dynamic_vit.DYNAMIC)
def test_dynamic_sides_are_refused_of_every_model(name):
    model = patched("swin", dynamic_vit.build(name))
    images = dynamic_vit.images((3, 5))
    for shapes in (sides(), sides(auto=True)):
        with pytest.raises(ValueError, match=REFUSAL):
            torch.export.export(model, (images,), dynamic_shapes=shapes)


def test_one_dynamic_side_is_refused():
    model, images = patched("swin"), dynamic_vit.images((3, 5))
    for axis in (2, 3):
        shapes = ({axis: 4 * torch.export.Dim("side", max=20)},)
        with pytest.raises(ValueError, match=REFUSAL):
            torch.export.export(model, (images,), dynamic_shapes=shapes)


def test_dynamic_sides_are_refused_by_dynamo():
    """Not as an exception of ours, but in its words."""
    model, images = patched("peg"), dynamic_vit.images((3, 5))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=BY_DYNAMO):
        torch.export.export(model, (images,), dynamic_shapes=sides(), strict=True)


@each_encoding
def test_dynamic_sides_are_refused_by_the_onnx_exporter(encoding, tmp_path):
    """It tries again in other ways when one has failed; none may pass."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, path = patched(encoding, dynamic_vit.build().float()), tmp_path / "model.onnx"
    images = dynamic_vit.images((3, 5)).float()
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match="one image size at a time"):
        torch.onnx.export(
            model, (images,), path, dynamo=True, dynamic_shapes=sides(), verbose=False
        )
    assert not path.exists()


@pytest.mark.parametrize("name", ["coatnet", "visformer"])
def test_dynamic_maps_are_refused(name):
    """Models whose attention modules receive maps, at the first of these."""
    model = patched("swin", tiny_windowed.build(name))
    images = tiny_windowed.images(name)
    with pytest.raises(ValueError, match=REFUSAL):
        torch.export.export(model, (images,), dynamic_shapes=sides(8))


def test_a_layout_built_in_an_exported_forward_is_refused():
    """In a module of the user's own."""

    class Own(torch.nn.Module):
        def forward(self, x):
            layout = posenc.TokenLayout(x.shape[1], x.shape[2])
            return x.flatten(1, 2) * layout.height

    shapes = ({1: torch.export.Dim("height")},)
    for strict, error in ((False, ValueError), (True, torch._dynamo.exc.Unsupported)):
        with pytest.raises(error, match=f"TokenLayout {BY_DYNAMO}"):
            torch.export.export(
                Own(), (torch.zeros(2, 3, 5, 4),), dynamic_shapes=shapes, strict=strict
            )


@pytest.mark.parametrize("encoding", ["swin", "learned", "peg"])
def test_each_size_has_an_export_of_its_own(encoding):
    """With a batch that stays dynamic: what the refusal advises."""
    model = patched(encoding)
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    with torch.no_grad():
        for grid in ((3, 5), (5, 3)):
            images = dynamic_vit.images(grid)
            program = torch.export.export(model, (images,), dynamic_shapes=shapes).module()
            for batch in (1, 3):
                images = dynamic_vit.images(grid, batch, seed=batch)
                torch.testing.assert_close(program(images), model(images), rtol=0, atol=1e-7)
            # In the words of PyTorch 2.14 and 2.8.
            with pytest.raises(
                (AssertionError, RuntimeError), match=r"Guard failed|Expected input"
            ):
                program(dynamic_vit.images(grid[::-1]))


@pytest.mark.parametrize(
    ("encoding", "options"),
    [
        ("swin", {}),
        ("quadratic", {}),
        ("irpe", {"on": "qk", "mode": "bias", "method": "cross"}),
        ("irpe", {"on": "qkv"}),
    ],
)
def test_the_onnx_exporter_has_nothing_to_complain_about(encoding, options, tmp_path, caplog):
    """It evaluates what is constant: lookups of tables with more than 64 entries, too."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = tiny_vit.vit(depth=1, img_size=(28, 36), dtype=torch.float32)  # 7x9 patches
    posenc.patch_model(model, encoding, **options)
    randomize_encodings(model)
    images, path = tiny_vit.images(model), tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim("batch", max=64)},)
    with torch.no_grad():
        torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        assert not [r.getMessage() for r in caplog.records if r.name.startswith("onnxscript")]
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        images = tiny_vit.images(model, 3, seed=3)
        (out,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), model(images), rtol=1e-5, atol=1e-5)


def test_a_model_of_one_size_is_refused_by_its_own_check():
    model = patched("swin", tiny_vit.vit())
    with pytest.raises(torch._dynamo.exc.UserError, match="Constraints violated"):
        torch.export.export(model, (tiny_vit.images(model),), dynamic_shapes=sides())


def test_compile_makes_a_graph_for_each_size():
    torch.compiler.reset()
    model = patched("peg")
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        for grid in ((3, 5), (5, 3), (4, 4), (3, 5)):
            images = dynamic_vit.images(grid)
            torch.testing.assert_close(compiled(images), model(images), rtol=0, atol=1e-8)
    assert counter.frame_count == 3
    torch.compiler.reset()
