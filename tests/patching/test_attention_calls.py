"""Which attention calls of a patched model have the bias."""

import pytest
import tiny_vit
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import posenc


def test_fused_attention_off_at_run_time_names_the_site():
    model = posenc.patch_model(tiny_vit.vit())
    model.blocks[1].attn.fused_attn = False
    with pytest.raises(RuntimeError, match=r"blocks.1.attn ran without .*\(fused_attn=False\)"):
        model(tiny_vit.images(model))


class AddBias(TorchFunctionMode):
    """Adds each encoding's bias to the SDPA calls of an unpatched model, in their order."""

    def __init__(self, encodings, layout):
        super().__init__()
        self.encodings = iter(encodings)
        self.layout = layout

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        if function is F.scaled_dot_product_attention:
            q, k, _ = arguments
            terms = next(self.encodings)(q, k, self.layout)
            keywords["attn_mask"] = sum(term.dense() for term in terms)
        return function(*arguments, **keywords)


@pytest.mark.parametrize("encoding", ["irpe", "swin", "human_part"])
@pytest.mark.parametrize("case", ["cls", "reg4", "parallel_scaling", "parallel_things"])
def test_equals_a_torch_function_mode_around_the_unpatched_model(encoding, case):
    options, layout = tiny_vit.MODELS[case]
    plain = tiny_vit.vit(**options)
    model = posenc.patch_model(tiny_vit.vit(**options), encoding)
    for _, parameter in posenc.encoding_parameters(model):
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(2))
    x = tiny_vit.images(model)
    encodings = posenc.patched_encodings(model).values()
    with AddBias(encodings, posenc.TokenLayout(*layout)):
        expected = plain(x)
    assert not torch.allclose(expected, plain(x))
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_children_outside_the_site_keep_plain_attention():
    """A replaced call does not reach attention elsewhere, such as the pooling head."""
    model = tiny_vit.vit(prefix=0, global_pool="map")
    x = tiny_vit.images(model)
    expected = model(x)
    posenc.patch_model(model)
    assert type(model.attn_pool).__name__ == "AttentionPoolLatent"
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
