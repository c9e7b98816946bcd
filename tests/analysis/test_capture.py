"""Captured attention against attention written out."""

import oracles
import pytest
import torch
from capture_cases import NAMES, OPTIONS, PREFIXES, assert_close, patched, written_out
from eager_attention import biased_attention
from patched_vit import assert_same
from tiny_vit import images, vit
from torch import nn

import posenc
from posenc import TokenLayout, patched_encodings, unpatch_model
from posenc.analysis import capture_attention


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("encoding", [None, *OPTIONS])
def test_attention_and_bias_are_those_written_out(encoding, prefix):
    model = patched(encoding, vit(prefix))
    x = images(model, batch=3)
    with torch.no_grad(), capture_attention(model) as captured:
        logits = model(x)
    attention, biases, expected = written_out(model, x, encoding)
    assert_close(logits, expected)
    assert list(captured.attention) == NAMES
    tokens = prefix + 15
    for name in NAMES:
        assert captured.attention[name].shape == (3, 2, tokens, tokens)
        assert_close(captured.attention[name], attention[name])
    assert captured.layouts == dict.fromkeys(NAMES, TokenLayout(3, 5, prefix))
    assert captured.left_out == {}
    assert list(captured.bias) == list(biases)
    for name, bias in captured.bias.items():
        # Up to a constant per query.
        difference = bias - biases[name]
        assert_close(difference, difference[..., :1].expand_as(difference))
        assert bias.shape[0] == (3 if encoding == "irpe" else 1)


@pytest.mark.parametrize("encoding", [None, "irpe", "swin"])
def test_nothing_has_a_graph_and_half_precision_becomes_float32(encoding):
    model = patched(encoding).to(torch.bfloat16)
    with capture_attention(model) as captured:
        model(images(model))
    for tensor in [*captured.attention.values(), *captured.bias.values()]:
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


@pytest.mark.parametrize("encoding", ["irpe", "human_part", None])
def test_autocast_is_recorded_in_float32_from_the_queries_as_they_are(encoding):
    model = patched(encoding, vit(dtype=torch.float32))
    x = images(model)
    with torch.no_grad():
        with capture_attention(model) as exact:
            model(x)
        with torch.autocast("cpu", torch.bfloat16), capture_attention(model) as captured:
            model(x)
    for name in NAMES:
        assert captured.attention[name].dtype == torch.float32
        sums = captured.attention[name].sum(-1)
        assert_close(sums, torch.ones_like(sums), 1e-5)  # 16-bit rows sum to 1 within 4e-3
        assert_close(captured.attention[name], exact.attention[name], 0.1)
    if encoding == "human_part":
        assert_same(captured.bias, exact.bias)


def test_several_encodings_add_up_and_value_tables_are_no_bias():
    model = patched("swin+irpe", irpe={"mode": "bias"})
    x = images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    for name in NAMES:
        q = k = torch.zeros(1, 2, 16, 8, dtype=torch.float64)
        parts = [
            patched_encodings(model)[f"{name}.{part}"](q, k, TokenLayout(3, 5, 1))[0].dense()
            for part in ("swin", "irpe")
        ]
        assert_close(captured.bias[name], parts[0] + parts[1])
    model = patched("irpe", on="v")
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    assert list(captured.attention) == NAMES
    assert captured.bias == {}


def test_a_captured_bias_is_a_copy():
    model = posenc.fold_biases(patched("swin").eval())
    x = images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        before = model(x)
        for bias in captured.bias.values():
            bias.fill_(torch.nan)
        assert torch.equal(model(x), before)


def test_attention_is_that_before_dropout():
    model = patched("swin", vit(attn_drop_rate=0.5))
    x = images(model)
    with torch.no_grad():
        with capture_attention(model) as expected:
            model(x)
        model.blocks[0].train()
        with capture_attention(model) as captured:
            model(x)
    assert torch.equal(captured.attention[NAMES[0]], expected.attention[NAMES[0]])
    assert not torch.equal(captured.attention[NAMES[1]], expected.attention[NAMES[1]])


def test_the_latest_forward_is_kept():
    model = patched("irpe")
    with torch.no_grad():
        with capture_attention(model) as captured:
            model(images(model, batch=4, seed=1))
            model(images(model, batch=2, seed=2))
        with capture_attention(model) as expected:
            model(images(model, batch=2, seed=2))
        model(images(model, seed=3))
    assert_same(captured.attention, expected.attention)
    assert_same(captured.bias, expected.bias)


def test_some_blocks_are_patched():
    model = patched("swin", blocks=[1])
    x = images(model)
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    encoding = patched_encodings(model)["blocks.1.attn.swin"]
    bias = oracles.swin_bias(encoding.table, 3, 5, 1)
    with (
        torch.no_grad(),
        biased_attention(model, lambda name, q, k: bias if name == NAMES[1] else 0.0) as calls,
    ):
        unpatch_model(model)(x)
    assert list(captured.attention) == NAMES
    assert list(captured.bias) == [NAMES[1]]
    for call, own in zip(calls, [0.0, bias], strict=True):
        expected = (8**-0.5 * call.q @ call.k.transpose(-2, -1) + own).softmax(-1)
        assert_close(captured.attention[call.name], expected)


def test_names_are_those_of_the_model_that_was_passed():
    for encoding in (None, "swin", "peg"):
        whole = nn.ModuleDict({"vision": patched(encoding)})
        with torch.no_grad(), capture_attention(whole) as captured:
            whole["vision"](images(whole["vision"]))
        assert list(captured.attention) == [f"vision.{name}" for name in NAMES]
        assert list(captured.layouts) == list(captured.attention)


@pytest.mark.parametrize("block", ["ParallelScalingBlock", "ParallelThingsBlock"])
@pytest.mark.parametrize("encoding", [None, "peg", "swin"])
def test_parallel_blocks(block, encoding):
    from timm.models import vision_transformer

    model = patched(encoding, vit(block_fn=getattr(vision_transformer, block)))
    x = images(model)
    attention, _, expected = written_out(model, x, encoding)
    with torch.no_grad(), capture_attention(model) as captured:
        assert_close(model(x), expected)
    assert list(captured.attention) == list(attention)
    for name in attention:
        assert_close(captured.attention[name], attention[name])
