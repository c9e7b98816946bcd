"""A patched model under activation checkpointing."""

import pytest
import torch
from execution_cases import all_cases, assert_same, patched, step


@all_cases
@pytest.mark.parametrize("share", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(case, share):
    model = patched(case, share=share).train()
    expected = step(model)
    model.set_grad_checkpointing()
    assert_same(step(model), expected)


@pytest.mark.parametrize("case", ["irpe qkv", "swin"])
def test_activation_checkpointing_with_dropout(case):
    model = patched(case, attn_drop_rate=0.4).train()
    results = []
    for checkpointing in (False, True):
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(3)
        results.append(step(model))
    assert_same(results[1], results[0])
    assert (step(model)["output"] - results[0]["output"]).abs().max() > 1e-3  # it drops
