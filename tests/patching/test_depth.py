"""Encodings that ask where they stand: `block` and `num_blocks`."""

import pytest
import torch
from timm.models.vision_transformer import ParallelThingsBlock
from tiny_vit import images, snapshot, vit
from tiny_windowed import CASES

from posenc import (
    AttentionEncoding,
    DenseBias,
    TokenEncoding,
    TokenLayout,
    create_encoding,
    encoding_config,
    load_encodings,
    patch_model,
    patched_encodings,
    register_encoding,
    registry,
    save_encodings,
)


class Slope(AttentionEncoding):
    """A bias whose size is the share of the depth below it."""

    def __init__(self, layout, num_heads, head_dim, block, num_blocks, *, power=1.0, dtype=None):
        super().__init__(layout, num_heads, head_dim)
        self.block, self.num_blocks, self.power = block, num_blocks, power
        self.weight = torch.nn.Parameter(torch.zeros(num_heads, dtype=dtype))

    def changes_at_start(self):
        return False

    def terms(self, q, k, layout, scale):
        share = ((self.block + 1) / self.num_blocks) ** self.power
        eye = torch.eye(layout.num_tokens, dtype=q.dtype)
        return DenseBias(share * self.weight[None, :, None, None] * eye)


class Optional(Slope):
    def __init__(self, layout, num_heads, head_dim, block=None, num_blocks=None, *, dtype=None):
        super().__init__(layout, num_heads, head_dim, block, num_blocks, dtype=dtype)


class Default(Slope):
    """Has a default of its own, and the arguments by keyword only."""

    def __init__(self, layout, num_heads, head_dim, *, block=7, num_blocks=9, dtype=None):
        super().__init__(layout, num_heads, head_dim, block, num_blocks, dtype=dtype)


class AfterBlocks(TokenEncoding):
    placement = "block"

    def __init__(self, layout, embed_dim, block, num_blocks, *, after=(0,)):
        super().__init__(layout, embed_dim)
        self.block, self.num_blocks, self.after = block, num_blocks, after

    def changes_at_start(self):
        return False

    def encode(self, x, layout):
        return x


class AtStep(AfterBlocks):
    placement = "position"


def places(model):
    found = patched_encodings(model)
    return {name.rpartition(".")[0]: (e.block, e.num_blocks) for name, e in found.items()}


def test_each_block_of_a_plain_model():
    model = patch_model(vit(depth=3), Slope)
    assert places(model) == {f"blocks.{i}.attn": (i, 3) for i in range(3)}


@pytest.mark.parametrize("blocks", [slice(1, 3), [2, 1], lambda name: "0" not in name])
def test_selected_blocks_keep_their_place(blocks):
    model = patch_model(vit(depth=3), Slope, blocks=blocks)
    assert places(model) == {"blocks.1.attn": (1, 3), "blocks.2.attn": (2, 3)}


def test_a_block_with_two_attention_modules_counts_twice():
    """As `blocks=` does."""
    model = patch_model(vit(block_fn=ParallelThingsBlock), Slope)
    assert list(places(model).values()) == [(i, 4) for i in range(4)]


@pytest.mark.parametrize("name", ["swin", "maxvit"])
def test_stages_are_counted_through(name):
    case = CASES[name]
    model = patch_model(case.make(), Slope)
    assert places(model) == {site: (i, len(case.sites)) for i, site in enumerate(case.sites)}
    some = patch_model(case.make(), Slope, blocks=slice(2, None))
    expected = list(places(model).items())[2:]
    assert list(places(some).items()) == expected


def test_after_blocks_of_tokens():
    model = patch_model(vit(depth=3), AfterBlocks, after=(-1, 0))
    assert places(model) == {"blocks.0": (0, 3), "blocks.2": (2, 3)}


@pytest.mark.parametrize(
    ("encoding", "options", "message"),
    [
        (Slope, {"share": True}, "share=True builds one slope for all blocks, but slope needs"),
        (AfterBlocks, {"share": True}, "share=True builds one after_blocks for all blocks"),
        (AtStep, {}, "at_step needs block=..., which was not given"),
        (Slope, {"block": 3}, "slope has no option 'block'"),
    ],
)
def test_where_there_is_no_block(encoding, options, message):
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        patch_model(model, encoding, **options)
    assert snapshot(model) == before


def test_a_shared_encoding_that_can_do_without_gets_none():
    (encoding,) = patched_encodings(patch_model(vit(depth=3), Optional, share=True)).values()
    assert (encoding.block, encoding.num_blocks) == (None, 3)


def test_a_default_holds_where_nothing_is_known():
    (encoding,) = patched_encodings(patch_model(vit(depth=3), Default, share=True)).values()
    assert (encoding.block, encoding.num_blocks) == (7, 3)
    model = patch_model(vit(depth=3), Default)
    assert list(places(model).values()) == [(0, 3), (1, 3), (2, 3)]
    assert encoding_config_options(model) == {}


def encoding_config_options(model):
    record = model._posenc_record.config
    return record["encodings"][0]["options"]


def test_created_by_hand(monkeypatch):
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    register_encoding("slope", Slope)
    sizes = {"layout": TokenLayout(2, 3), "num_heads": 2, "head_dim": 4}
    built = create_encoding("slope", **sizes, block=1, num_blocks=5, power=2.0)
    assert (built.block, built.num_blocks, built.power) == (1, 5, 2.0)
    with pytest.raises(ValueError, match=r"slope needs block=\.\.\., which was not given"):
        create_encoding("slope", **sizes, num_blocks=5)
    with pytest.raises(ValueError, match=r"slope needs num_blocks=\.\.\., which was not given"):
        create_encoding("slope", **sizes, block=1)


def test_a_file_keeps_the_places(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    register_encoding("slope", Slope)
    model = patch_model(vit(depth=4), "slope", blocks=slice(1, 3), power=2.0)
    for index, encoding in enumerate(patched_encodings(model).values()):
        torch.nn.init.constant_(encoding.weight, 3.0 + index)
    x = images(model)
    save_encodings(model, tmp_path / "slope.safetensors")
    other = load_encodings(vit(depth=4), tmp_path / "slope.safetensors")
    assert places(other) == {"blocks.1.attn": (1, 4), "blocks.2.attn": (2, 4)}
    assert encoding_config(other) == encoding_config(model)
    assert torch.equal(other(x), model(x))
    assert not torch.allclose(model(x), vit(depth=4)(x))
