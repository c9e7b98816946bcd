"""torch's nn.MultiheadAttention and its encoder layers."""

import copy

import pytest
import torch
from beyond_timm import build, expected_of, inputs, masks, patch, same_at_each_call, written_out
from random_encodings import randomize_encodings
from torch import nn

import posenc
from posenc import TokenLayout, patch_model


def multihead(**options):
    return same_at_each_call(lambda: nn.MultiheadAttention(8, 2, **options))


@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize(
    ("batch_first", "bias", "encoding"), [(False, True, "irpe"), (True, False, "swin")]
)
def test_masks_of_multihead_attention(kind, batch_first, bias, encoding):
    module, options = multihead(batch_first=batch_first, bias=bias), masks()[kind]
    x = torch.randn(*((2, 16) if batch_first else (16, 2)), 8, dtype=torch.float64)
    plain = copy.deepcopy(module)
    patch_model(module, encoding, layout=TokenLayout(3, 5, 1))
    expected, _ = plain(x, x, x, need_weights=False, **options)
    actual, weights = module(x, x, x, need_weights=False, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert weights is None
    randomize_encodings(module)
    written_out(plain, {"": module.posenc[encoding]}, encoding, (3, 5, 1))
    expected, _ = plain(x, x, x, **options)
    actual, _ = module(x, x, x, need_weights=False, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input(batch_first):
    module = multihead(batch_first=batch_first)
    x, mask = torch.randn(16, 8, dtype=torch.float64), masks()["per_head"]["attn_mask"][:2]
    padding = masks()["padding"]["key_padding_mask"][0]
    options = {"attn_mask": mask, "key_padding_mask": padding, "need_weights": False}
    expected, _ = module(x, x, x, **options)
    patch_model(module, "swin", layout=TokenLayout(3, 5, 1))
    torch.testing.assert_close(module(x, x, x, **options)[0], expected, rtol=1e-10, atol=1e-10)
    randomize_encodings(module)
    plain = written_out(multihead(), {"": module.posenc["swin"]}, "swin", (3, 5, 1))
    actual = module(x, x, x, **options)[0]
    torch.testing.assert_close(actual, plain(x, x, x, **options)[0], rtol=1e-10, atol=1e-10)


def test_calls_that_multihead_attention_refuses():
    module = patch_model(multihead(), "swin", layout=TokenLayout(3, 5, 1))
    x = torch.randn(16, 2, 8, dtype=torch.float64)
    four = x[None]
    with pytest.raises(ValueError, match=r"does not return attention weights.*need_weights=False"):
        module(x, x, x)
    with pytest.raises(ValueError, match="query, key and value are the same tensor"):
        module(x, x.clone(), x, need_weights=False)
    with pytest.raises(ValueError, match="without attn_mask: pass the mask"):
        module(x, x, x, need_weights=False, is_causal=True)
    with pytest.raises(ValueError, match=r"takes \[N, C\] or a batch of it"):
        module(four, four, four, need_weights=False)
    for options in (
        {"attn_mask": torch.zeros(1, 16)},  # would broadcast
        {"attn_mask": torch.zeros(16, 16, dtype=torch.long)},
        {"attn_mask": torch.zeros(2, 16, 16)},
        {"key_padding_mask": torch.zeros(16, 2)},
        {"key_padding_mask": torch.zeros(16)},
    ):
        with pytest.raises(ValueError, match=r"takes (attn|key_padding)_mask boolean \(True = mas"):
            module(x, x, x, need_weights=False, **options)


class OwnForward(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.MultiheadAttention(8, 2, kdim=4), "cross attention"),
        (nn.MultiheadAttention(8, 2, vdim=4), "cross attention"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "a key that has no position"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), "a key that has no position"),
        (OwnForward(8, 2), "OwnForward has a forward of its own"),
    ],
)
def test_modules_that_are_refused(module, reason):
    model = nn.Sequential(module)
    assert reason in str(posenc.supports(model, layout=TokenLayout(3, 5, 1)))
    with pytest.raises(ValueError, match=rf"0 cannot be patched: .*{reason}"):
        patch_model(model, layout=TokenLayout(3, 5, 1))
    assert type(model[0]) is type(module)


def test_dropout_is_that_of_the_module():
    module = patch_model(multihead(dropout=1.0), "swin", layout=TokenLayout(3, 5, 1))
    x = torch.randn(16, 2, 8, dtype=torch.float64)
    nothing = module.out_proj.bias.expand(16, 2, 8)
    assert torch.equal(module(x, x, x, need_weights=False)[0], nothing)
    assert not torch.equal(module.eval()(x, x, x, need_weights=False)[0], nothing)


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_fast_path_of_an_encoder_layer_has_the_bias(norm_first):
    """It reads the parameters of the attention and never calls it."""
    layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, norm_first=norm_first).eval()
    x = torch.randn(2, 16, 8)
    with torch.no_grad():
        before = layer(x)
        patch_model(layer, "swin", layout=TokenLayout(3, 5, 1))
        torch.testing.assert_close(layer(x), before)
        randomize_encodings(layer)
        with_bias = layer(x)
        assert (with_bias - before).abs().max() > 1e-3
    torch.testing.assert_close(layer(x), with_bias)  # with gradients there is no fast path
    posenc.unpatch_model(layer)
    with torch.no_grad():
        assert torch.equal(layer(x), before)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_in_an_encoder():
    padding = masks()["padding"]["key_padding_mask"]
    model = randomize_encodings(patch(build("torch"), "torch", "swin"))
    x = inputs("torch")
    with torch.no_grad(), pytest.raises(ValueError, match="set use_nested_tensor = False"):
        model(x, src_key_padding_mask=padding)
    model.use_nested_tensor = False

    def call(model, x):
        return model(x, src_key_padding_mask=padding)

    plain = build("torch")
    plain.use_nested_tensor = False
    with torch.no_grad():
        expected = expected_of("torch", model, "swin", call, plain)
        torch.testing.assert_close(call(model, x), expected, rtol=1e-8, atol=1e-8)
