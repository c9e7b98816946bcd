"""Options that could be read in two ways are refused; the model is as it was."""

import pytest
import torch
from tiny_vit import eager, images, snapshot, vit

from posenc import (
    AttentionEncoding,
    DenseBias,
    TokenLayout,
    patch_model,
    summary,
    unpatch_model,
)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"irpe": {"mode": "bias"}, "mode": "contextual"}, ValueError, "irpe got 'mode' twice"),
        ({"mode": "contextual", "irpe": {"mode": "bias"}}, ValueError, "'contextual' and 'bias'"),
        ({"blocks": True}, ValueError, "blocks must be None, indices, .* got True"),
        ({"blocks": [True, False]}, ValueError, r"blocks must be .* got \[True, False\]"),
        ({"blocks": torch.tensor([True, False])}, ValueError, "blocks must be .* got tensor"),
        ({"blocks": {0: 1}}, ValueError, r"blocks must be .* got \{0: 1\}"),
        ({"blocks": "01"}, ValueError, "blocks must be .* got '01'"),
        ({"blocks": [0.0]}, ValueError, r"blocks must be .* got \[0.0\]"),
        ({"share": "no"}, TypeError, "share must be True or False, got 'no'"),
        ({"share": 1}, TypeError, "share must be True or False, got 1"),
        ({"share": None}, TypeError, "share must be True or False, got None"),
        ({"absolute": True}, ValueError, "absolute must be .* got True"),
        ({"absolute": ["hide"]}, ValueError, r"absolute must be .* got \['hide'\]"),
        ({"backend": None}, ValueError, "unknown attention backend None"),
        ({"backend": ["sdpa"]}, ValueError, r"unknown attention backend \['sdpa'\]"),
        ({"share_heads": "no"}, TypeError, "IRPE: share_heads must be True or False, got 'no'"),
    ],
)
def test_misread_options(arguments, error, message):
    model = vit()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        patch_model(model, "irpe", **arguments)
    assert snapshot(model) == before


@pytest.mark.parametrize("blocks", [1, -1, [1], (1,), {1}, range(1, 2), torch.tensor([1])])
def test_indices_are_still_read(blocks):
    model = patch_model(vit(), "irpe", blocks=blocks)
    assert list(summary(model).sites) == ["blocks.1.attn"]
    unpatch_model(model)


class Lone(AttentionEncoding):
    """Returns one term, not a tuple."""

    def __init__(self, layout, num_heads, head_dim=None):
        super().__init__(layout, num_heads, head_dim)

    def changes_at_start(self):
        return True

    def terms(self, q, k, layout, scale):
        return DenseBias(torch.eye(layout.num_tokens, dtype=q.dtype)[None, None])


class LoneStatic(Lone):
    is_static = True


@pytest.mark.parametrize("cls", [Lone, LoneStatic])
def test_one_term_alone_is_as_good_as_a_tuple(cls):
    model = vit()
    x = images(model)
    before = model(x)
    with pytest.warns(UserWarning, match=f"{cls.__name__} has an effect from the start"):
        patch_model(model, cls)
    diagonal = eager(model, x, bias=lambda name, q, k: torch.eye(16, dtype=q.dtype))
    with torch.no_grad():  # twice: the second time a static term is remembered
        for _ in range(2):
            torch.testing.assert_close(model(x), diagonal)
    assert (diagonal - before).abs().max() > 1e-3


def test_what_is_no_term_is_still_refused():
    class Nothing(Lone):
        def terms(self, q, k, layout, scale):
            return None

    q = torch.zeros(1, 2, 6, 4)
    with pytest.raises(TypeError, match=r"Nothing: terms\(\) must return .* got None"):
        Nothing(TokenLayout(2, 3), 2)(q, q, TokenLayout(2, 3))
