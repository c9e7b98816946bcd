import golden_cases
import layouts
import oracle_checks
import oracles
import pytest
import torch

from posenc import LieRE, RoPEMixed, TokenLayout, attend

BACKENDS = ("reference", "sdpa")  # the others have no term left to read


def build(layout, heads=2, head_dim=7, seed=0, **options):
    encoding = LieRE(
        TokenLayout(*layout), heads, head_dim, dtype=torch.float64, **{"block_size": 3, **options}
    )
    return oracles.randomize(encoding, seed)


def exponential(matrix):
    """The power series."""
    total = power = torch.eye(len(matrix), dtype=matrix.dtype)
    for n in range(1, 40):
        power = power @ matrix / n
        total = total + power
    return total


def skew_symmetric(entries, side):
    rows, at = [[torch.zeros((), dtype=entries.dtype)] * side for _ in range(side)], 0
    for row in range(side):
        for column in range(row + 1, side):
            rows[row][column], rows[column][row] = entries[at], -entries[at]
            at += 1
    return torch.stack([torch.stack(row) for row in rows])


def place(index, side, whole):
    return 0.0 if side == 1 else index / (side - 1) * side / whole


def turned(x, encoding, used):
    """One token, one head and one block after another."""
    height, width, prefix = used
    whole = used[:2] if encoding.resize == "scale" else encoding.layout.grid
    side, tokens = encoding.block_size, []
    for token in range(x.shape[2]):
        row, column = oracles.position(token, width, prefix) or (0, 0)
        y, x_place = place(row, height, whole[0]), place(column, width, whole[1])
        heads = []
        for head in range(x.shape[1]):
            at = 0 if encoding.share_heads else head
            channels, blocks = x[:, head, token], x.shape[3] // side
            parts = []
            for block in range(blocks):
                down, right = encoding.generators[:, at, block]
                matrix = skew_symmetric(y * down + x_place * right, side)
                part = channels[:, block * side : (block + 1) * side]
                parts.append(part @ exponential(matrix).T)
            parts.append(channels[:, blocks * side :])
            heads.append(torch.cat(parts, -1))
        tokens.append(torch.stack(heads, 1))
    return torch.stack(tokens, 2)


def formula(encoding, used):
    def expected(q, k, v):
        q, k = (turned(x, encoding, used) for x in (q, k))
        return oracles.attention(q, k, v)[0]

    return expected


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"block_size": 7, "share_heads": True}], ids=str)
def test_equals_the_oracle(layout, options):
    encoding = build(layout, **options)
    oracle_checks.equals(encoding, layout, formula(encoding, layout), head_dim=7, backends=BACKENDS)


@pytest.mark.parametrize("resize", ["extrapolate", "scale"])
@pytest.mark.parametrize("used", [(5, 2, 1), (1, 3, 0)])
def test_places_on_another_grid(resize, used):
    encoding = build((2, 3, 1), resize=resize)
    oracle_checks.equals(encoding, used, formula(encoding, used), head_dim=7, backends=BACKENDS)


@pytest.mark.parametrize("name", golden_cases.names("liere_"))
def test_equals_the_official_code(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    side, heads = options["generator_dim"], options["heads"]
    encoding = LieRE(
        TokenLayout(*options["built_h_w"], prefix=1),
        heads,
        options["head_dim"],
        block_size=side,
        share_heads=not options["per_head"],
        dtype=torch.float64,
    )
    above = torch.triu_indices(side, side, offset=1).unbind()

    def ours(raw):  # [2, layers, heads * blocks, side, side], of one layer
        return raw[:, 0][..., above[0], above[1]].reshape(encoding.generators.shape)

    with torch.no_grad():
        encoding.generators.copy_(ours(golden["generator_raw_params"]))
    q, k = golden.leaf("q"), golden.leaf("k")
    (term,) = encoding(q, k, TokenLayout(*options["grid_h_w"], prefix=1))
    out = [term.apply(q), term.apply(k)]
    torch.autograd.backward(out, [golden["grad_q_out"], golden["grad_k_out"]])
    grad_raw = golden["grad.generator_raw_params"]
    assert not grad_raw.tril().any()
    for mine, theirs in [
        (out[0], golden["q_out"]),
        (out[1], golden["k_out"]),
        (q.grad, golden["grad_q"]),
        (k.grad, golden["grad_k"]),
        (encoding.generators.grad, ours(grad_raw)),
    ]:
        torch.testing.assert_close(mine, theirs, **golden.close)


def test_blocks_of_two_are_rope_mixed():
    """Which turns the other way, by angles in patches: here 3 and 4 of them are 1."""
    layout = TokenLayout(4, 5, prefix=2)
    encoding = build(layout=(4, 5, 2), head_dim=8, block_size=2)
    mixed = RoPEMixed(layout, 2, 8, order="rows", dtype=torch.float64)
    with torch.no_grad():
        steps = torch.tensor([3.0, 4.0], dtype=torch.float64)[:, None, None]
        mixed.freqs.copy_(-encoding.generators[..., 0] / steps)
    q, k, v, _ = oracles.random_qkv(22, head_dim=8)
    out, expected = (attend(q, k, v, each(q, k, layout)) for each in (encoding, mixed))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_matrices_are_rotations_and_prefix_tokens_do_not_turn(prefix):
    layout = TokenLayout(3, 2, prefix)
    encoding = build((3, 2, prefix), head_dim=8, block_size=4, strength=1.0)
    q = torch.zeros(1, 2, layout.num_tokens, 8, dtype=torch.float64)
    (term,) = encoding(q, q, layout)
    identity = torch.eye(4, dtype=torch.float64)
    assert term.matrices.shape == (1, 2, layout.num_tokens, 2, 4, 4)
    products = term.matrices @ term.matrices.mT
    torch.testing.assert_close(products, identity.expand(products.shape))
    signs = torch.linalg.det(term.matrices)
    torch.testing.assert_close(signs, torch.ones_like(signs))
    still = term.matrices[:, :, : prefix + 1]  # the first patch is at (0, 0)
    torch.testing.assert_close(still, identity.expand(still.shape), rtol=0, atol=1e-15)
    assert (term.matrices[:, :, prefix + 1 :] - identity).abs().amax((-1, -2)).min() > 0.1


def test_starts():
    layout = TokenLayout(2, 3)
    q, k, v, cotangent = oracles.random_qkv(6, head_dim=8)
    encoding = LieRE(layout, 2, 8, block_size=4, dtype=torch.float64)
    assert not encoding.generators.any()
    assert not encoding.changes_at_start()
    attend(q, k, v, encoding(q, k, layout)).backward(cotangent)
    assert encoding.generators.grad.abs().min() > 0
    official = LieRE(layout, 8, 64, strength=1.0)
    assert official.changes_at_start()
    assert official.generators.shape == (2, 8, 8, 28)
    low, high = official.generators.min(), official.generators.max()
    assert 0 <= low < 0.02
    assert 6.26 < high < 6.2832
    torch.testing.assert_close(official.generators.mean(), torch.tensor(3.14), atol=0.15, rtol=0)


@pytest.mark.parametrize(("head_dim", "entries"), [(2, 1), (6, 15), (8, 28), (20, 28)])
def test_size_of_the_blocks_if_none_is_given(head_dim, entries):
    blocks = 2 if head_dim == 20 else 1
    assert LieRE(TokenLayout(2, 3), 3, head_dim).generators.shape == (2, 3, blocks, entries)


def test_a_head_without_two_channels():
    with pytest.raises(ValueError, match="at least 2 and at most head_dim, which is 1, got 1"):
        LieRE(TokenLayout(2, 3), 3, 1)


def test_the_grid_it_was_built_for_matters_unless_places_are_scaled():
    state = build((2, 3, 0)).state_dict()
    with pytest.raises(RuntimeError, match="was made for a 2x3 grid, this model's LieRE for 3x2"):
        build((3, 2, 0)).load_state_dict(state)
    build((3, 2, 0), resize="scale").load_state_dict(build((2, 3, 0), resize="scale").state_dict())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"block_size": 9}, ValueError, "at least 2 and at most head_dim, which is 8, got 9"),
        ({"block_size": 1}, ValueError, "at least 2 and at most head_dim, which is 8, got 1"),
        ({"block_size": 2.0}, ValueError, "LieRE: block_size must be a positive int, got 2.0"),
        ({"share_heads": "no"}, TypeError, "LieRE: share_heads must be True or False, got 'no'"),
        ({"strength": "big"}, ValueError, "LieRE: strength must be a finite number, got 'big'"),
        ({"resize": "crop"}, ValueError, "resize must be one of 'extrapolate', 'scale', got 'cro"),
    ],
)
def test_refuses_options_that_do_not_exist(options, error, message):
    with pytest.raises(error, match=message):
        LieRE(TokenLayout(2, 3), 2, 8, **options)
