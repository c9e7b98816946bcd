"""Hugging Face's models: configuration, implementations, masks."""

import json

import pytest
import torch
from beyond_timm import CASES, build, expected_of, inputs, masks, outputs, patch
from random_encodings import randomize_encodings

import posenc
from posenc import TokenLayout

HUGGING_FACE = ["hf_vit", "hf_dinov2"]


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_the_config_stays(name, tmp_path):
    model = build(name)
    before = model.config.to_dict(), model.config._attn_implementation
    patch(model, name, "swin")
    assert (model.config.to_dict(), model.config._attn_implementation) == before
    module = model.get_submodule(CASES[name].sites[0])
    assert module.config.hidden_size == 8
    another = type(model)(model.config).double().eval()  # of the same config, not patched
    assert outputs(another, inputs(name)).isfinite().all()
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [type(build(name)).__name__]
    assert "posenc" not in json.dumps(saved)
    posenc.unpatch_model(model)
    assert module.config is model.config


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_another_attention_implementation(name):
    model, x = randomize_encodings(patch(build(name), name, "swin")), inputs(name)
    with torch.no_grad():
        expected = outputs(model, x)
        model.set_attn_implementation("eager")
        assert torch.equal(outputs(model, x), expected)
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match=r'set_attn_implementation\("sdpa"\)'):
            model.get_submodule(CASES[name].sites[0])(torch.rand(2, 16, 8, dtype=torch.float64))
    posenc.unpatch_model(model)
    reason = posenc.supports(model, layout=TokenLayout(3, 5, 1)).refused[CASES[name].sites[0]]
    assert "makes masks that posenc does not know" in reason


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_attention_weights_are_not_returned(name):
    model = patch(build(name), name, "swin")
    with pytest.raises(ValueError, match="does not return attention weights"):
        model(inputs(name), output_attentions=True)
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="does not return attention weights"):
        model(inputs(name))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_mask_of_a_model(implementation):
    model = randomize_encodings(patch(build("hf_vit"), "hf_vit", "irpe"))
    model.set_attn_implementation(implementation)
    keep = ~masks()["padding"]["key_padding_mask"]

    def call(model, x):
        return outputs(model, x, attention_mask=keep)

    with torch.no_grad():
        actual = call(model, inputs("hf_vit"))
        assert (actual - outputs(model, inputs("hf_vit"))).abs().max() > 1e-6
        expected = expected_of("hf_vit", model, "irpe", call)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_the_registered_function_is_for_patched_modules():
    model = patch(build("hf_vit"), "hf_vit", "swin", blocks=[0])
    model.set_attn_implementation("posenc")
    posenc.unpatch_model(model)
    with pytest.raises(ValueError, match='attn_implementation="posenc" is for modules that'):
        model(inputs("hf_vit"))


@pytest.mark.slow
def test_onnx_with_a_dynamic_batch(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = randomize_encodings(patch(build("hf_vit"), "hf_vit", "irpe")).float()
    images = inputs("hf_vit").float()
    path = tmp_path / "model.onnx"
    with torch.no_grad():
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
        expected = model(images.repeat(3, 1, 1, 1)).to_tuple()[0]
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: images.repeat(3, 1, 1, 1).numpy()}
    out = torch.from_numpy(session.run(None, feed)[0])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
