"""Which sites are patched: `blocks` and `after`."""

import oracles
import pytest
import torch
from patch_cases import expected_logits, sites
from random_encodings import randomize_encodings
from timm.layers import Attention
from tiny_vit import MODELS, eager, images, snapshot, vit

from posenc import patch_model, patched_encodings

SELECTIONS = [
    (None, [0, 1, 2]),
    (slice(1, None), [1, 2]),
    (slice(None, None, 2), [0, 2]),
    ([0, 2], [0, 2]),
    ((1,), [1]),
    ([-1], [2]),
    (1, [1]),
    (lambda name: name.endswith("1.attn"), [1]),
]


@pytest.mark.parametrize(("blocks", "chosen"), SELECTIONS)
@pytest.mark.parametrize("share", [False, True])
def test_blocks(blocks, chosen, share):
    model = patch_model(vit(depth=3), "swin", blocks=blocks, share=share)
    assert sites(model) == [f"blocks.{index}.attn" for index in chosen]
    assert [type(block.attn) is not Attention for block in model.blocks] == [
        index in chosen for index in range(3)
    ]
    randomize_encodings(model)
    found = patched_encodings(model)

    def bias(name, q, k):
        key = "swin" if share else f"{name}.swin"
        if name not in sites(model):
            return 0.0
        return oracles.swin_bias(found[key].table, 3, 5, 1)

    x = images(model)
    torch.testing.assert_close(model(x), eager(model, x, bias), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([3], r"blocks=\[3\]: 3 is not an index of the model's 3 attention modules"),
        ([-4], "-4 is not an index of the model's 3"),
        ([0, "1"], "blocks must be None, indices, a slice or a predicate"),
        ([], r"blocks=\[\] selects none of the 3 attention modules: blocks.0.attn ... blocks.2"),
        (slice(3, 5), r"blocks=slice\(3, 5, None\) selects none"),
        (lambda name: False, "selects none of the 3 attention modules"),
    ],
)
def test_blocks_that_select_nothing(blocks, message):
    model = vit(depth=3)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        patch_model(model, blocks=blocks)
    assert snapshot(model) == before


def test_sites_of_parallel_blocks():
    model = patch_model(vit(**MODELS["parallel_things"][0]))
    assert sites(model) == [f"blocks.{b}.attns.{p}.attn" for b in (0, 1) for p in (0, 1)]
    model = patch_model(vit(**MODELS["parallel_scaling"][0]), "peg+irpe", blocks=[0])
    assert sites(model) == ["blocks.0"]
    assert set(patched_encodings(model)) == {"blocks.0.peg", "blocks.0.irpe"}


def test_after():
    model = patch_model(vit(depth=3), "peg", after=(0, -1))
    assert set(patched_encodings(model)) == {"blocks.0.peg", "blocks.2.peg"}
    randomize_encodings(model)
    x = images(model)
    expected = expected_logits(model, "peg", (3, 5, 1), x)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ((2,), r"after=\(2,\) names block 2, but the model has 2 blocks \(0 to 1\)"),
        ((1, -1), r"names block -1 twice"),
        ((0, 0), "must not repeat a block"),
        ((), "must be block indices such as"),
        ("ab", "must be block indices such as"),
    ],
)
def test_after_that_does_not_fit(after, message):
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        patch_model(model, "peg", after=after)
    assert snapshot(model) == before
