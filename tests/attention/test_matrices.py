"""Biases that are matrices: nothing is looked up, so that tiles would save nothing."""

import pytest
import torch

from posenc import TokenLayout, explain
from posenc.functional.buckets import swin_index
from posenc.terms import DenseBias, LookupBias

LAYOUT = TokenLayout(14, 14, prefix=1)


@pytest.mark.parametrize("also", [False, True])
def test_inference_hands_matrices_to_fused_attention(also):
    index = swin_index(LAYOUT, "none")
    tokens = LAYOUT.num_tokens
    q = torch.zeros(2, 1, tokens, 8)
    lookup = (LookupBias(torch.zeros(2, 1, tokens, index.num_buckets), index),)
    terms = (DenseBias(torch.zeros(2, 1, tokens, tokens)), *(lookup if also else ()))
    assert explain(q, q, q, terms).choice == ("tiled" if also else "sdpa")
