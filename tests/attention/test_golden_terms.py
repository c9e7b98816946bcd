"""Golden cases of timm's rotary embedding, as terms: its encoding comes later."""

import math

import golden_cases
import pytest
import torch
from rewriting_encodings import grid_positions, with_prefix

from posenc import TokenLayout, attend
from posenc.terms import Rotation


def bands(options, count):
    if not options["in_pixels"]:
        steps = torch.arange(count, dtype=torch.float64) / count
        return options["temperature"] ** -steps
    if options["linear_bands"]:
        return math.pi * torch.linspace(1, options["max_res"] / 2, count, dtype=torch.float64)
    top = math.log2(options["max_res"]) - 1
    return math.pi * 2 ** torch.linspace(0, top, count, dtype=torch.float64)


def positions(options, layout):
    """Of rows and columns, as the case counts them."""
    result = []
    for axis, (index, side) in enumerate(zip(grid_positions(layout), layout.grid, strict=True)):
        if options["in_pixels"]:
            place = torch.linspace(-1, 1, side, dtype=torch.float64)[index.long()]
        else:
            place = index + options.get("grid_offset", 0.0)
            if "ref_feat_shape" in options:
                place = place * options["ref_feat_shape"][axis] / side
        result.append(place)
    return result[::-1] if options.get("grid_indexing") == "xy" else result


@pytest.mark.parametrize("name", golden_cases.names("rope_timm_cat_"))
def test_axial_rotary(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    layout = TokenLayout(*options["grid_h_w"], prefix=options["prefix_tokens"])
    frequencies = bands(options, options["head_dim"] // 4)
    angles = [place[:, None] * frequencies for place in positions(options, layout)]
    angles = with_prefix(torch.cat(angles, -1), layout)[None, None]
    rotation = Rotation(angles.cos(), angles.sin(), interleaved=True)
    for array in ("q", "k"):
        torch.testing.assert_close(
            rotation.apply(golden[array]), golden[f"{array}_out"], **golden.close
        )
    # Turned by attend as by hand.
    q, k = golden["q"], golden["k"]
    out = attend(q, k, k, (rotation,))
    expected = attend(golden["q_out"], golden["k_out"], k)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", golden_cases.names("rope_timm_mixed_"))
def test_mixed_rotary(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    rows, columns = (x[:, None] for x in grid_positions(TokenLayout(*options["grid_h_w"])))
    first, second = (columns, rows) if options["grid_indexing"] == "xy" else (rows, columns)
    q, freqs = golden.leaf("q"), golden.leaf("freqs")
    for block in range(options["depth"]):  # each has its own frequencies for the same queries
        angles = first * freqs[0, block, :, None] + second * freqs[1, block, :, None]
        out = Rotation(angles.cos()[None], angles.sin()[None], interleaved=True).apply(q)
        torch.testing.assert_close(out, golden["q_out"][block], **golden.close)
        out.backward(golden["grad_out"][block])
    torch.testing.assert_close(q.grad, golden["grad_q"], **golden.close)
    torch.testing.assert_close(freqs.grad, golden["grad_freqs"], rtol=1e-3, atol=1e-4)
