"""TransReID with a relative bias, in a plain vision transformer of timm."""

import golden_cases
import pytest
import tiny_vit
import torch

import posenc
from posenc import load_reference_checkpoint


def patched(img_size=(16, 8), prefix_pairs="none", **options):
    vit = tiny_vit.vit(img_size=img_size, num_classes=0, **options)
    return posenc.patch_model(vit, "swin", prefix_pairs=prefix_pairs)


def state_of(model):
    """Under the names of the published model, with what it has beside the backbone."""
    state = {"base.fc.weight": torch.ones(7, 16), "classifier.weight": torch.ones(3, 16)}
    for key, value in model.state_dict().items():
        if ".posenc.swin.table" in key:
            site = key.removesuffix(".posenc.swin.table")
            state[f"base.{site}.relative_position_index"] = torch.zeros(8, 8, dtype=torch.int64)
            key, value = f"{site}.relative_position_bias_table", value.T
        state[f"base.{key}"] = value.clone()
    state["bottleneck.num_batches_tracked"] = torch.tensor(3)
    return state


def random_tables(model):
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.normal_()
    return model


def test_every_tensor_and_the_outputs():
    theirs, ours = random_tables(patched(seed=1)), patched(seed=2)
    loaded = load_reference_checkpoint(ours, state_of(theirs), source="transreid_relative")
    assert set(loaded.loaded) == set(ours.state_dict())
    assert set(loaded.left_out) == {
        "fc.weight",
        "classifier.weight",
        "bottleneck.num_batches_tracked",
        *(f"blocks.{block}.attn.relative_position_index" for block in range(2)),
    }
    x = tiny_vit.images(ours)
    assert torch.equal(ours(x), theirs(x))


def test_the_published_layer():
    golden = golden_cases.case("transreid_relative_4x2")
    model = patched(depth=1)
    state = {key: v for key, v in state_of(model).items() if ".attn." not in key}
    layer = {k.removeprefix("p."): v for k, v in golden.arrays.items() if k.startswith("p.")}
    state |= {f"base.blocks.0.attn.{key}": value for key, value in layer.items()}
    load_reference_checkpoint(model, state, source="transreid_relative")
    seen = {}
    model.blocks[0].norm1.register_forward_hook(lambda *_: golden["x"])
    model.blocks[0].attn.register_forward_hook(lambda m, i, out: seen.update(out=out))
    model(tiny_vit.images(model))
    torch.testing.assert_close(seen["out"], golden["out"], **golden.close)


def test_no_rule_for_tables_of_another_grid():
    state = state_of(patched())
    model = patched(img_size=(16, 12))
    with pytest.raises(ValueError, match=r"of a grid of 4x2 .*is 4x3: this code has no rule"):
        load_reference_checkpoint(model, state, source="transreid_relative", grid=(4, 2))
    # As many entries: the other way round.
    model = patched(img_size=(8, 16))
    with pytest.raises(ValueError, match=r"of a grid of 4x2 .*is 2x4: this code has no rule"):
        load_reference_checkpoint(model, state, source="transreid_relative", grid=(4, 2))


def test_embeddings_of_cameras_are_another_model():
    state = state_of(patched()) | {"base.sie_embed": torch.ones(6, 1, 16)}
    with pytest.raises(ValueError, match=r"Only in the checkpoint: sie_embed$"):
        load_reference_checkpoint(patched(), state, source="transreid_relative")


def test_pairs_with_cls_have_no_bias_there():
    model = patched(prefix_pairs="shared")
    with pytest.raises(ValueError, match=r"prefix_pairs='shared'.*needs 'none'"):
        load_reference_checkpoint(model, state_of(patched()), source="transreid_relative")
