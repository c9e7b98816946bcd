"""Images of other sizes: the encodings follow."""

from __future__ import annotations

import copy
import pickle
import threading

import oracles
import pytest
import tiny_global
import torch
from dynamic_vit import COMMON, DYNAMIC, GRIDS, PREFIX, build, images
from eager_attention import biased_attention
from expected_bias import BIAS, OPTIONS
from random_encodings import randomize_encodings
from timm.models.vision_transformer import VisionTransformer

import posenc
from posenc import patch_model, patched_encodings
from posenc.layout import TokenLayout


def expected_output(name, model, encoding, grid, x):
    """An unpatched model with the bias of the formulas for this grid."""
    found = patched_encodings(model)

    def bias(site, q, k):
        if f"{site}.{encoding}" not in found:  # attention pooling
            return 0.0
        windowed = name == "sam" and site == "blocks.0.attn"
        layout = (2, 2, 0) if windowed else (*grid, PREFIX.get(name, 0))
        scale = 1.0 if name == "gemma" else q.shape[-1] ** -0.5
        return BIAS[encoding](found[f"{site}.{encoding}"], q, layout, scale)

    plain = build(name)
    with torch.no_grad(), biased_attention(plain, bias):
        return plain(x)


@pytest.mark.parametrize("encoding", OPTIONS)
@pytest.mark.parametrize("name", DYNAMIC)
def test_rectangles_batch_by_batch(name, encoding):
    model = randomize_encodings(patch_model(build(name), encoding, **OPTIONS[encoding]))
    # Qwen merges patches two by two; SAM's windows are padded.
    for grid in [(4, 6), (6, 4), (2, 8)] if name == "qwen" else GRIDS:
        x = images(grid)
        expected = expected_output(name, model, encoding, grid, x)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-8)


def test_a_padded_image_has_the_padded_grid():
    model = randomize_encodings(patch_model(build("vit_padded"), "swin"))
    x = images((3, 5))[:, :, :10, :17]
    expected = expected_output("vit_padded", model, "swin", (3, 5), x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("names", ["learned", "peg", "sinusoidal"])
def test_token_encodings_follow(names):
    options = {"strength": 0.0} if names == "sinusoidal" else {}
    model = randomize_encodings(patch_model(build(), names, **options))
    with torch.no_grad():
        outputs = [model(images(grid)) for grid in GRIDS]
        again = [model(images(grid)) for grid in GRIDS]
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))


# Threads and copies


def test_threads_have_layouts_of_their_own():
    model = randomize_encodings(patch_model(build(), "swin"))
    grids = [(3, 4), (4, 3)]
    with torch.no_grad():
        expected = [model(images(grid)) for grid in grids]
    results = {grid: [] for grid in grids}

    def work(grid):
        with torch.no_grad():
            results[grid] += [model(images(grid)) for _ in range(30)]

    threads = [threading.Thread(target=work, args=(grid,)) for grid in grids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for grid, value in zip(grids, expected, strict=True):
        assert len(results[grid]) == 30
        assert all(torch.equal(result, value) for result in results[grid])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_follow_images(copied):
    model = randomize_encodings(patch_model(build(), "swin"))
    with torch.no_grad():
        expected = [model(images(grid)) for grid in GRIDS]
        twin = copied(model)
        for grid, value in zip(GRIDS, expected, strict=True):
            assert torch.equal(twin(images(grid)), value)
    assert twin.blocks[0].attn._posenc.layout is not model.blocks[0].attn._posenc.layout
    assert twin.blocks[0].attn._posenc.layout is twin.patch_embed._posenc.layout


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["irpe", "swin"])
def test_compiled(encoding):
    torch._dynamo.reset()
    model = randomize_encodings(patch_model(build(), encoding))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for grid in GRIDS[:3]:
            expected = model(images(grid))
            torch.testing.assert_close(compiled(images(grid)), expected, rtol=1e-9, atol=1e-9)


# What the user is told


def test_unpatch_restores_everything():
    model = build()
    x = images((4, 3))
    with torch.no_grad():
        expected = model(x)
        classes = [type(module) for module in model.modules()]
        posenc.unpatch_model(randomize_encodings(patch_model(model, "swin+peg+learned")))
        assert [type(module) for module in model.modules()] == classes
        assert torch.equal(model(x), expected)


def test_blocks_without_an_image():
    model = patch_model(build(), "swin")
    tokens = torch.zeros(1, 17, 16, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="no image has been seen in this thread"):
        model.blocks(tokens)
    posenc.set_layout(model, TokenLayout(4, 3, prefix=5))
    assert model.blocks(tokens).isfinite().all()


def test_patch_dictionaries_are_refused():
    model = patch_model(build("naflex"), "irpe")
    patches = {
        "patches": torch.zeros(1, 15, 48, dtype=torch.float64),
        "patch_coord": torch.zeros(1, 15, 2, dtype=torch.long),
        "patch_valid": torch.ones(1, 15, dtype=torch.bool),
    }
    with pytest.raises(ValueError, match="have a grid per sample"):
        model(patches)


def test_models_that_name_no_size_need_a_layout():
    model = build("naflex")
    del model.pretrained_cfg
    with pytest.raises(ValueError, match=r"NaFlexVit takes images of any size and names none"):
        patch_model(model)
    assert "names none" in posenc.supports(model).reason
    patch_model(model, "swin", layout=TokenLayout(4, 4, prefix=4))
    assert model(images((3, 5))).isfinite().all()
    assert "follows the image" in str(posenc.summary(model))
    with pytest.raises(ValueError, match="contradicts the model, which has 4 prefix tokens"):
        patch_model(build("naflex"), layout=TokenLayout(4, 4))


def test_dropped_tokens_are_an_error():
    with torch.random.fork_rng(devices=[]):
        model = VisionTransformer(**COMMON, dynamic_img_size=True, patch_drop_rate=0.5).double()
    patch_model(model, "swin").train()
    with pytest.raises(RuntimeError, match=r"blocks.0.attn got 8 tokens, but its layout 3x5"):
        model(images((3, 5)))


def test_save_and_load_keep_the_layout_at_rest(tmp_path):
    path = tmp_path / "encodings.safetensors"
    model = randomize_encodings(patch_model(build(), "swin", layout=TokenLayout(4, 6, prefix=5)))
    posenc.save_encodings(model, path)
    fresh = posenc.load_encodings(build(), path)
    with torch.no_grad():
        assert torch.equal(fresh(images((5, 3))), model(images((5, 3))))


# set_layout


@pytest.mark.parametrize("size", [(20, 12), TokenLayout(5, 3, prefix=1)])
def test_set_layout_of_a_model_with_one_size(size):
    """16x8 to 8x16 keeps the count and changes every position."""
    model = tiny_global.build("vit")
    randomize_encodings(patch_model(model, "swin"))
    stored = {key: value.clone() for key, value in posenc.encoding_state_dict(model).items()}
    assert posenc.set_layout(model, size) is model
    assert posenc.summary(model).layout == TokenLayout(5, 3, prefix=1)
    plain = tiny_global.build("vit")
    plain.set_input_size((20, 12))
    found = patched_encodings(model)
    x = images((5, 3))
    with (
        torch.no_grad(),
        biased_attention(
            plain, lambda site, q, k: BIAS["swin"](found[f"{site}.swin"], q, (5, 3, 1), None)
        ),
    ):
        expected = plain(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-8)
    posenc.set_layout(model, (12, 20))
    for key, value in posenc.encoding_state_dict(model).items():
        assert torch.equal(value, stored[key])


class OneSize(VisionTransformer):
    set_input_size = property()  # as in families without one


def test_set_layout_errors():
    model = patch_model(tiny_global.build("vit"), "swin")
    with pytest.raises(ValueError, match=r"has 1 prefix tokens, 5x3 has 0; pass TokenLayout\(5, 3"):
        posenc.set_layout(model, TokenLayout(5, 3))
    with pytest.raises(ValueError, match="means pixels, and with patches of"):
        posenc.set_layout(model, 3)
    with pytest.raises(ValueError, match="is not patched"):
        posenc.set_layout(tiny_global.build("vit"), 8)
    fixed = patch_model(OneSize(**COMMON), "swin")
    with pytest.raises(ValueError, match="timm's OneSize cannot change its input size"):
        posenc.set_layout(fixed, (20, 12))


@pytest.mark.filterwarnings("ignore::UserWarning")  # in timm
def test_set_layout_of_windows():
    import tiny_windowed

    model = randomize_encodings(patch_model(tiny_windowed.build("swin"), "swin"))
    with pytest.raises(ValueError, match="pass an image size"):
        posenc.set_layout(model, TokenLayout(4, 4))
    posenc.set_layout(model, (20, 12))
    assert model(torch.zeros(1, 3, 20, 12, dtype=torch.float64)).isfinite().all()


# The grid of the model, and of its table


@pytest.mark.parametrize("encoding", ["learned", "sinusoidal"])
def test_encodings_of_tokens_see_the_grid_and_not_the_window_of_the_first_block(encoding):
    options = {"strength": 0.0} if encoding == "sinusoidal" else {}
    model = patch_model(tiny_global.build("sam"), encoding, **options)
    (module,) = patched_encodings(model).values()
    assert module.layout == TokenLayout(3, 5)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_sam_takes_its_table_over(pre_norm):
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    with torch.random.fork_rng(devices=[]):
        sam = VisionTransformerSAM(**COMMON, window_size=2, neck_chans=8, pre_norm=pre_norm)
    sam = oracles.randomize(sam.double(), 0, 0.2).eval()
    x = images((3, 5))
    with torch.no_grad():
        expected = sam(x)
        patch_model(sam, "learned", absolute="hide")
        torch.testing.assert_close(sam(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "layout"), [("vit", (5, 3, 5)), ("qwen", (2, 8, 0))])
def test_rows_of_another_grid_are_not_taken_over(name, layout):
    with pytest.raises(ValueError, match="cannot be taken over"):
        patch_model(build(name), "learned", absolute="hide", layout=TokenLayout(*layout))


def test_set_layout_resizes_a_hybrid_model_too():
    model, plain = tiny_global.build("hybrid"), tiny_global.build("hybrid")
    patch_model(model, "swin")
    posenc.set_layout(model, (20, 12))
    plain.set_input_size(img_size=(20, 12))
    with torch.no_grad():
        x = images((5, 3))
        torch.testing.assert_close(model(x), plain(x), rtol=1e-12, atol=1e-12)


def test_a_replaced_embedding_is_an_error():
    model = patch_model(build(), "swin")
    model(images((3, 4)))
    model.patch_embed = build().patch_embed
    with pytest.raises(RuntimeError, match="patch_embed has been replaced since the patch"):
        model(images((4, 3)))


def test_a_block_with_a_token_encoding_returns_no_view():
    """FSDP warns of modules that do: an in-place operation on it would lose the gradient hook."""
    model = randomize_encodings(patch_model(build(), "peg"))
    model(images((3, 4)))
    out = model.blocks[0](torch.zeros(1, 17, 16, dtype=torch.float64))
    assert not out._is_view()
