"""When `auto` takes the fused kernels."""

import pytest
import torch

import posenc
from posenc import TokenLayout, explain
from posenc.attention import trust
from posenc.attention.backends import triton
from posenc.terms import DenseBias


@pytest.fixture
def _on_a_device(monkeypatch):
    """Tensors without contents stand for those of a GPU."""
    monkeypatch.setattr(triton, "_rejects_device", lambda call: None)
    monkeypatch.setattr(trust, "verdict", lambda call: trust.Verdict(True, "proven"))


def choice(encoding, tokens_wide=14, train=True, dtype=torch.bfloat16, **options):
    layout = TokenLayout(14, tokens_wide, 1)
    module = posenc.create_encoding(encoding, layout=layout, num_heads=6, head_dim=64, **options)
    module.to("meta").train(train).requires_grad_(train)
    q = torch.empty(8, 6, layout.num_tokens, 64, dtype=dtype, device="meta")
    return explain(q, q, q, module(q.float(), q.float(), layout))


@pytest.mark.usefixtures("_on_a_device")
@pytest.mark.parametrize(
    ("expected", "encoding", "options"),
    [
        ("triton", "swin", {}),
        ("sdpa", "swin", {"train": False}),
        ("triton", "swin", {"train": False, "tokens_wide": 100}),  # a mask of 47 MB
        ("triton", "irpe", {}),
        ("triton", "irpe", {"train": False}),
        ("triton", "irpe", {"train": False, "on": "qkv"}),
        ("triton", "quadratic", {}),
        ("lowrank", "human_part", {}),
        ("sdpa", "swin", {"dtype": torch.float64}),
    ],
)
def test_what_auto_chooses_by_estimate(expected, encoding, options):
    explanation = choice(encoding, **options)
    assert explanation.choice == expected
    if expected == "triton":
        assert "(an estimate; kernels proven)" in explanation.why


@pytest.mark.usefixtures("_on_a_device")
@pytest.mark.parametrize("batch", [1, 8])
def test_a_dense_bias_is_a_mask_already(batch):
    q = torch.empty(8, 6, 2048, 64, device="meta")
    assert (
        explain(q, q, q, DenseBias(torch.empty(batch, 6, 2048, 2048, device="meta"))).choice
        == "sdpa"
    )
