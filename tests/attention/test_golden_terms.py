"""Golden cases of ConViT, as terms: its encoding comes later."""

import golden_cases
import pytest
import torch
from rewriting_encodings import Gated

from posenc import TokenLayout, attend
from posenc.attention import attention_matrix


@pytest.mark.parametrize("name", golden_cases.names("convit_"))
def test_gated_attention(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    heads, layout = options["heads"], TokenLayout(*options["grid"])
    weights = {key[2:]: golden.leaf(key) for key in golden.arrays if key.startswith("p.")}
    x = golden.leaf("x")
    encoding = Gated(layout, heads, dtype=torch.float64)
    encoding.gate = torch.nn.Parameter(golden["p.gating_param"].clone())
    encoding.weight = torch.nn.Parameter(golden["p.pos_proj.weight"].clone())

    def linear(x, layer):
        return torch.nn.functional.linear(
            x, weights[f"{layer}.weight"], weights.get(f"{layer}.bias")
        )

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k = map(split, linear(x, "qk").chunk(2, -1))
    v = split(linear(x, "v"))
    terms = encoding(q, k, layout)
    torch.testing.assert_close(attention_matrix(q, k, v, terms), golden["attn"], **golden.close)
    out = linear(attend(q, k, v, terms).transpose(1, 2).flatten(2), "proj")
    torch.testing.assert_close(out, golden["out"], **golden.close)
    out.backward(golden["grad_out"])
    torch.testing.assert_close(x.grad, golden["grad_x"], **golden.close)
    own = {"gating_param": encoding.gate.grad, "pos_proj.weight": encoding.weight.grad}
    # The bias of the projection of positions is the same for all keys: softmax does not see it.
    for key in weights.keys() - own.keys() - {"pos_proj.bias"}:
        own[key] = weights[key].grad
    for key, grad in own.items():
        torch.testing.assert_close(grad, golden[f"grad.{key}"], **golden.close)
