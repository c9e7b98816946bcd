"""Rollout of attention that is no attention."""

import math

import pytest
import torch

from posenc import TokenLayout
from posenc.analysis import attention_rollout


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_values_that_are_not_finite(value, layer, pool):
    layers = [torch.full((2, 2, 7, 7), 1 / 7) for _ in range(2)]
    layers[layer][1, 0, 3, 2] = value
    with pytest.raises(ValueError, match=rf"attentions\[{layer}\] has values that are not finite"):
        attention_rollout(layers, TokenLayout(2, 3, prefix=1), pool=pool)
