"""The public `sasa_*` records are of a softmax per channel, which is not the published formula."""

import math

import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import SASA, TokenLayout, attend


def build(layout, **options):
    return oracles.randomize(SASA(TokenLayout(*layout), 2, 4, dtype=torch.float64, **options))


def in_loops(sasa, layout, extents):
    """Attention over the window with the concatenated embeddings added to keys, as published."""

    def embedded(head, offset):
        parts = [
            table[head, :, max(-extent, min(extent, d)) + extent]
            for table, extent, d in zip(
                (sasa.table_rows, sasa.table_columns), extents, offset, strict=True
            )
        ]
        return torch.cat(parts)

    def entry(i, j, q):
        offset = oracle_checks.key_minus_query(i, j, *layout[1:])
        if offset is None:
            return torch.zeros(2, 2, dtype=q.dtype)
        r = torch.stack([embedded(head, offset) for head in range(2)])
        bias = (q[:, :, i] * r).sum(-1) / 2  # 4 ** 0.5
        inside = sasa.window is None or max(map(abs, offset)) <= sasa.window // 2
        return bias + (0.0 if inside else -math.inf)

    def expected(q, k, v):
        bias = oracles.build_bias(*layout, lambda i, j: entry(i, j, q))
        mask = torch.zeros_like(bias.detach()).masked_fill(bias.detach() == -math.inf, -math.inf)
        return oracles.attention(q, k, v, bias.masked_fill(mask == -math.inf, 0.0), mask)[0]

    return expected


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_equals_the_oracle(layout):
    sasa = build(layout)
    extents = (layout[0] - 1, layout[1] - 1)
    oracle_checks.equals(sasa, layout, in_loops(sasa, layout, extents))


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("window", [1, 3, 5])
def test_with_a_window_equals_the_oracle(layout, window):
    sasa = build(layout, window=window)
    extents = (window // 2, window // 2)
    oracle_checks.equals(sasa, layout, in_loops(sasa, layout, extents))


def test_another_grid_reads_the_offsets_that_it_has():
    sasa, layout = build((2, 5, 1)), (4, 3, 1)
    q, k, v, _ = oracles.random_qkv(13)
    expected = in_loops(sasa, layout, (1, 4))(q, k, v)
    out = attend(q, k, v, sasa(q, k, TokenLayout(*layout)))
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


def test_a_window_of_one_patch_leaves_itself_and_the_prefix_tokens():
    layout = TokenLayout(2, 3, prefix=2)
    sasa = SASA(layout, 1, 4, window=1)
    q = torch.zeros(1, 1, 8, 4)
    weights = attend(q, q, torch.eye(8)[None, None], sasa(q, q, layout))[0, 0, 2:]
    assert (weights[:, :2] == 1 / 3).all()
    torch.testing.assert_close(weights[:, 2:], torch.eye(6) / 3)


@pytest.mark.parametrize(
    ("head_dim", "window", "message"),
    [
        (5, None, "SASA: head_dim must be even, one half .* columns, got 5"),
        (4, 4, "SASA: window must be odd, a patch is in the middle of it, got 4"),
        (4, 0, "SASA: window must be a positive int, got 0"),
    ],
)
def test_refuses_sizes_without_a_middle(head_dim, window, message):
    with pytest.raises(ValueError, match=message):
        SASA(TokenLayout(2, 3), 2, head_dim, window=window)
