"""Maps of learned positions against loops over patches."""

import math

import oracles
import pytest
import tiny_vit
import tiny_windowed
import torch
from expected_bias import BIAS
from new_process import run_python
from random_encodings import randomize_encodings
from torch import nn

import posenc
from posenc import LearnedAbsolute, Sinusoidal, TokenLayout, patch_model, patched_encodings
from posenc.analysis import bias_map, capture_attention, position_biases, position_similarity

LAYOUTS = [(3, 5, 0), (5, 3, 1), (1, 4, 2), (2, 3, 5)]
STATIC = {
    "swin": {},
    "quadratic": {"strength": 0.0},
    "human_part": {},
    "irpe": {"mode": "bias"},
}


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Similarity


def similarity(rows, height, width):
    maps = torch.zeros(height, width, height, width, dtype=torch.float64)
    for i, one in enumerate(rows.tolist()):
        for j, other in enumerate(rows.tolist()):
            product = sum(a * b for a, b in zip(one, other, strict=True))
            norms = math.sqrt(sum(a * a for a in one)) * math.sqrt(sum(b * b for b in other))
            maps[i // width, i % width, j // width, j % width] = product / norms
    return maps


@pytest.mark.parametrize("layout", LAYOUTS)
def test_similarity_of_tables(layout):
    height, width, prefix = layout
    table = torch.randn(prefix + height * width, 6, dtype=torch.float64)
    expected = similarity(table[prefix:], height, width)
    for given in (table, table[None], table[prefix:], nn.Parameter(table[None])):
        actual = position_similarity(given, TokenLayout(*layout))
        assert actual.shape == (height, width, height, width)
        assert not actual.requires_grad
        assert_close(actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("convention", ["mae", "timm", "vaswani"])
def test_similarity_of_sinusoidal(layout, convention):
    encoding = Sinusoidal(TokenLayout(*layout), 8, convention=convention, strength=-0.3).double()
    table = oracles.sincos(*layout, 8, convention)[layout[2] :]
    actual = position_similarity(encoding, TokenLayout(*layout))
    assert_close(actual, similarity(table, *layout[:2]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_similarity_of_learned(layout):
    encoding = oracles.randomize(LearnedAbsolute(TokenLayout(*layout), 6).double())
    actual = position_similarity(encoding, TokenLayout(*layout))
    assert_close(actual, similarity(encoding.table[layout[2] :], *layout[:2]))
    other = TokenLayout(4, 2, layout[2])
    expected = similarity(encoding.resampled(other)[layout[2] :], 4, 2)
    assert_close(position_similarity(encoding, other), expected)


def test_similarity_of_a_model():
    model = tiny_vit.vit(5)
    layout = TokenLayout(3, 5, prefix=5)
    expected = similarity(model.pos_embed[0, 5:], 3, 5)
    assert_close(position_similarity(model.pos_embed, layout), expected)


def test_similarity_in_half_precision():
    table = torch.randn(7, 6).half()
    actual = position_similarity(table, TokenLayout(2, 3, 1))
    assert actual.dtype == torch.float32
    expected = similarity(table[1:].double(), 2, 3).float()
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    learned = oracles.randomize(LearnedAbsolute(TokenLayout(2, 3), 4).bfloat16())
    assert position_similarity(learned, TokenLayout(2, 3)).dtype == torch.float32


def test_tiny_rows_have_a_direction():
    table = torch.full((6, 4), 1e-15)
    table[2:] *= -1
    actual = position_similarity(table, TokenLayout(2, 3))
    torch.testing.assert_close(actual[0, 0, 0, 1], torch.tensor(1.0))
    torch.testing.assert_close(actual[0, 0, 0, 2], torch.tensor(-1.0))


def test_similarity_errors():
    layout = TokenLayout(2, 3, prefix=1)
    table = torch.randn(7, 4)
    for wrong, message in [
        (
            table[:5],
            r"7 rows for the tokens of 2x3 \+ 1 prefix, or 6 for its patches, got \[5, 4\]",
        ),
        (table[None].repeat(2, 1, 1), r"\[1, N, C\].*got \[2, 7, 4\]"),
        (torch.cat([table[:4], torch.zeros(3, 4)]), r"patch at \(1, 0\) is zero"),
        (LearnedAbsolute(layout, 4), r"patch at \(0, 0\) is zero.*not been trained"),
        (Sinusoidal(layout, 4, strength=0), "is zero, so it has no direction"),
    ]:
        with pytest.raises(ValueError, match=message):
            position_similarity(wrong, layout)
    for wrong, message in [
        (posenc.PEG(layout, 4), "got PEG"),
        (table.long(), r"got torch\.int64"),
        (table.tolist(), "got list"),
    ]:
        with pytest.raises(TypeError, match=f"floating point tensor, a posenc.*{message}"):
            position_similarity(wrong, layout)
    with pytest.raises(TypeError, match="layout must be"):
        position_similarity(table, (2, 3))


# Maps of a bias


@pytest.mark.parametrize("leading", [(), (2,), (1, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_map_of_every_query(layout, leading):
    height, width, prefix = layout
    tokens = prefix + height * width
    bias = torch.randn(*leading, tokens, tokens, dtype=torch.float64)
    for token in range(tokens):
        query = oracles.position(token, width, prefix) or token
        raw = bias_map(bias, TokenLayout(*layout), query, center=False)
        assert raw.shape == (*leading, height, width)
        for key in range(prefix, tokens):
            row, column = oracles.position(key, width, prefix)
            assert torch.equal(raw[..., row, column], bias[..., token, key])
        mean = sum(bias[..., token, key] for key in range(tokens)) / tokens
        centered = bias_map(bias, TokenLayout(*layout), query)
        assert_close(centered, raw - mean[..., None, None])


def test_a_constant_per_query_does_not_change_a_centerd_map():
    layout = TokenLayout(3, 5, prefix=2)
    bias = torch.randn(2, 17, 17, dtype=torch.float64)
    shifted = bias + torch.randn(2, 17, 1, dtype=torch.float64)
    for query in [(2, 4), 1]:
        assert_close(bias_map(shifted, layout, query), bias_map(bias, layout, query))


def test_a_quadratic_head_looks_at_its_center():
    """The map of a query has its maximum at the learned offset."""
    layout = TokenLayout(5, 7, prefix=1)
    encoding = posenc.Quadratic(layout, 9)
    q = torch.zeros(1, 9, 36, 4)
    (term,) = encoding(q, q, layout)
    maps = bias_map(term.dense(), layout, (2, 3))
    for head, (down, right) in enumerate(encoding.centers.round().int().tolist()):
        assert divmod(int(maps[0, head].argmax()), 7) == (2 + down, 3 + right)


def test_map_errors():
    layout, bias = TokenLayout(2, 3, prefix=1), torch.zeros(2, 7, 7)
    for query in [(2, 0), (0, 3), (-1, 0), 1, -1]:
        with pytest.raises(ValueError, match=r"is not in the layout 2x3 \+ 1 prefix.*\(1, 2\)"):
            bias_map(bias, layout, query)
    for query in [(0, 0, 0), (), 0.5, "0", (0, 1.0)]:
        with pytest.raises(TypeError, match=r"query must be \(row, column\)"):
            bias_map(bias, layout, query)
    with pytest.raises(ValueError, match=r"\[\.\.\., 7, 7\].*got \[2, 6, 7\]"):
        bias_map(bias[:, 1:], layout, 0)
    with pytest.raises(TypeError, match="bias must be a floating point tensor"):
        bias_map(bias.int(), layout, 0)


# Biases of a model


@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
@pytest.mark.parametrize("encoding", STATIC)
def test_biases_are_those_that_are_captured(encoding, prefix):
    model = patch_model(tiny_vit.vit(prefix), encoding, **STATIC[encoding])
    biases = position_biases(randomize_encodings(model))
    with torch.no_grad(), capture_attention(model) as captured:
        model(tiny_vit.images(model))
    assert list(biases) == list(captured.bias)
    for name, bias in biases.items():
        assert bias.shape == (2, 15 + prefix, 15 + prefix)
        assert not bias.requires_grad
        assert_close(bias, captured.bias[name].expand(1, 2, -1, -1)[0])
        if encoding != "irpe":
            module = patched_encodings(model)[f"{name}.{encoding}"]
            written = BIAS[encoding](module, None, (3, 5, prefix), None)[0].detach()
            difference = bias - written
            assert_close(difference, difference[..., :1].expand_as(difference), 1e-10)


def test_biases_add_up_and_are_copies():
    model = randomize_encodings(patch_model(tiny_vit.vit(), "swin+human_part"))
    parts = patched_encodings(model)
    q = torch.zeros(1, 2, 16, 8, dtype=torch.float64)
    layout = TokenLayout(3, 5, prefix=1)
    expected = sum(
        parts[f"blocks.1.attn.{name}"](q, q, layout)[0].dense().detach()
        for name in ("swin", "human_part")
    )
    assert_close(position_biases(model)["blocks.1.attn"], expected[0])
    posenc.fold_biases(model.eval())
    before = model(tiny_vit.images(model))
    for bias in position_biases(model).values():
        bias.fill_(torch.nan)
    assert torch.equal(model(tiny_vit.images(model)), before)
    assert_close(position_biases(model)["blocks.1.attn"], expected[0])


def test_biases_of_windows_and_at_another_size():
    case = tiny_windowed.CASES["swin"]
    model = randomize_encodings(patch_model(tiny_windowed.build("swin"), "swin"))
    for name, bias in position_biases(model).items():
        table = patched_encodings(model)[f"{name}.swin"].table
        assert_close(bias, oracles.swin_bias(table, *case.sites[name].layout)[0].detach())
    model = randomize_encodings(patch_model(tiny_vit.vit(), "swin", share=True))
    posenc.set_layout(model, (20, 12))
    table = patched_encodings(model)["swin"].table
    resampled = oracles.resample_offsets(table, (3, 5), (5, 3))
    expected = oracles.swin_bias(resampled, 5, 3, 1)[0].detach()
    assert_close(position_biases(model)["blocks.0.attn"], expected, 1e-10)


def test_names_are_those_of_the_model_that_was_passed():
    whole = nn.ModuleDict({"vision": patch_model(tiny_vit.vit(), "swin", blocks=[1])})
    assert list(position_biases(whole)) == ["vision.blocks.1.attn"]


def test_half_precision_and_mode_are_left_alone():
    model = randomize_encodings(patch_model(tiny_vit.vit(), "swin").bfloat16().train())
    state = torch.get_rng_state()
    assert position_biases(model)["blocks.0.attn"].dtype == torch.float32
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_biases_errors():
    with pytest.raises(ValueError, match="is not patched"):
        position_biases(tiny_vit.vit())
    with pytest.raises(ValueError, match=r"irpe of blocks\.0\.attn depends.*capture_attention"):
        position_biases(patch_model(tiny_vit.vit(), "swin+irpe"))
    with pytest.raises(ValueError, match="no encoding of the model gives a bias"):
        position_biases(patch_model(tiny_vit.vit(), "peg"))


@pytest.mark.slow
def test_the_package_is_not_imported_eagerly():
    code = "import posenc, sys; assert 'posenc.analysis' not in sys.modules; import posenc.analysis"
    code += "; assert not {'timm', 'matplotlib', 'triton'} & set(sys.modules)"
    run_python(code)
    import posenc.analysis as analysis

    assert all(getattr(analysis, name).__doc__ for name in analysis.__all__)
