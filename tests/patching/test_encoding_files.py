"""What a file of encodings says of the model that it was made for."""

import pytest
from encoding_files import assert_refused, config_in, patched, write
from safetensors.torch import load_file
from tiny_vit import vit
from torch import nn

import posenc

# Models of another kind, although every tensor has the right shape

SHARED = {"names": "irpe", "share": True}  # one [1, 8, 50] table, whatever the depth and the heads
OTHER_MODELS = {
    "wider, more heads": (
        {"embed_dim": 32, "num_heads": 4},
        "width: 16; of the model: 32",
    ),
    "deeper": ({"depth": 3}, "depth: 2; of the model: 3"),
    "shallower": ({"depth": 1}, "depth: 2; of the model: 1"),
    "patch size": (
        {"img_size": (24, 40), "patch_size": 8},
        r"patch_size: \[4, 4\]; of the model: \[8, 8\]",
    ),
}


@pytest.mark.parametrize("is_patched", [False, True])
@pytest.mark.parametrize("case", OTHER_MODELS)
@pytest.mark.parametrize("names", ["irpe", "peg", "quadratic"])
def test_encodings_of_another_kind_of_model(names, case, is_patched, path):
    options, message = OTHER_MODELS[case]
    extra = {"strength": 0.0} if names == "quadratic" else {}
    posenc.save_encodings(patched(names, share=True, **extra), path)
    model = vit(**options)
    if is_patched:
        posenc.patch_model(model, names, share=True, **extra)
    assert_refused(model, path, message)


def test_other_heads_of_equal_width(path):
    posenc.save_encodings(patched(**SHARED), path)
    model = vit(num_heads=1)
    message = r"heads of blocks.0.attn: \[2, 8\]; of the model: \[1, 16\]"
    assert_refused(model, path, message)
    assert_refused(posenc.patch_model(model, "irpe", share=True), path, message)


def test_other_names_of_blocks(path):
    posenc.save_encodings(patched(**SHARED), path)
    config = config_in(path)
    config["blocks"] = ["layers.0", "layers.1"]
    write(path, config, load_file(path))
    assert_refused(
        vit(), path, r"blocks: \['layers.0', 'layers.1'\]; of .* \['blocks.0', 'blocks.1'\]"
    )


def test_selected_sites_of_a_deeper_model(path):
    """The first block alone was selected, so its keys are in both models."""
    posenc.save_encodings(patched("swin", blocks=[0]), path)
    assert_refused(vit(depth=3), path, "depth: 2; of the model: 3")


def test_the_depth_is_that_of_now(path):
    """Blocks that were pruned after the patch are not asked for."""
    model = patched("swin", build=lambda: vit(depth=3))
    model.prune_intermediate_layers([1], prune_norm=False)
    posenc.save_encodings(model, path)
    assert config_in(path)["depth"] == 2
    assert posenc.is_patched(posenc.load_encodings(vit(), path))


def test_an_unknown_patch_size_is_not_compared(path):
    class Embedding(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.grid_size = inner, inner.grid_size

        def forward(self, x):
            return self.inner(x)

    posenc.save_encodings(patched(), path)
    model = vit()
    model.patch_embed = Embedding(model.patch_embed)
    assert posenc.encoding_config(posenc.load_encodings(model, path))["patch_size"] is None
