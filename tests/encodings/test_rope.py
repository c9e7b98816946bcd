"""Rotary embedding with fixed frequencies: published code, and the formulas token by token."""

import math

import golden_cases
import oracles
import pytest
import torch

import posenc
from posenc import RoPE, TokenLayout, attend
from posenc.terms import Rotation
from posenc.testing import checks_of

LAYOUTS = [(2, 5, 0), (7, 4, 1), (1, 6, 2), (3, 2, 5), (1, 1, 1)]
BUILT = (4, 3)


def golden_options(name, case):
    """Options of the encoding in the words of the case, and its width."""
    h = case.hyperparameters
    if name.startswith("rope_timm_cat"):
        options = {"order": "columns" if h.get("grid_indexing") == "xy" else "rows"}
        if h["in_pixels"]:
            options |= {
                "freqs": "pixel",
                "max_freq": h["max_res"],
                "linear_bands": h["linear_bands"],
            }
        else:
            options |= {
                "temperature": h["temperature"],
                "offset": h.get("grid_offset"),
                "reference": h.get("ref_feat_shape"),
            }
        return {"convention": "timm", **options}
    if name.startswith("rope_dinov3"):
        periods = (h["min_period"], h["max_period"]) if "min_period" in h else None
        return {
            "convention": "dinov3",
            "normalize": h["normalize_coords"],
            "temperature": h["temperature"],
            "periods": periods,
        }
    if name.startswith("rope_lucid"):
        bands = (
            {"temperature": h["theta"]} if h["freqs_for"] == "lang" else {"max_freq": h["max_freq"]}
        )
        rotated = h["rotated_channels"]
        return {"convention": "lucidrains", "freqs": h["freqs_for"], "rotated": rotated, **bands}
    return {"convention": "rope_vit", "temperature": h["theta"]}


GOLDEN = [
    *golden_cases.names("rope_timm_cat_"),
    *golden_cases.names("rope_dinov3_"),
    *golden_cases.names("rope_vit_axial_"),
    *golden_cases.names("rope_lucid_axial_"),
]


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_published_code(name):
    golden = golden_cases.case(name)
    layout = TokenLayout(
        *golden.hyperparameters["grid_h_w"], prefix=golden.hyperparameters["prefix_tokens"]
    )
    tensors = {key: golden[key] for key in ("q", "k", "q_out", "k_out")}
    if tensors["q"].dim() == 5:  # [B, heads, height, width, channels]
        tensors = {key: tensor.flatten(2, 3) for key, tensor in tensors.items()}
    q, k = tensors["q"], tensors["k"]
    rope = RoPE(layout, q.shape[1], q.shape[-1], **golden_options(name, golden))
    (rotation,) = rope(q, k, layout)
    torch.testing.assert_close(rotation.apply(q), tensors["q_out"], **golden.close)
    torch.testing.assert_close(rotation.apply(k), tensors["k_out"], **golden.close)
    out = attend(q, k, k, (rotation,))  # turned by attend as by hand
    expected = attend(tensors["q_out"], tensors["k_out"], k)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", golden_cases.names("rope_vit_attention_axial"))
def test_equals_a_published_layer(name):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    layout = TokenLayout(*options["grid_h_w"], prefix=options["prefix_tokens"])
    heads = options["heads"]

    def linear(x, layer):
        weights = golden[f"p.{layer}.weight"], golden[f"p.{layer}.bias"]
        return torch.nn.functional.linear(x, *weights)

    q, k, v = linear(golden["x"], "qkv").unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    rope = RoPE(layout, heads, q.shape[-1], convention="rope_vit", temperature=options["theta"])
    out = attend(q, k, v, rope(q, k, layout), scale=options["scale"])
    out = linear(out.transpose(1, 2).flatten(2), "proj")
    torch.testing.assert_close(out, golden["out"], **golden.close)


# The formulas, token by token


def pair_channels(convention, rotated):
    """The two channels of each pair; the first half of the pairs belongs to the first axis."""
    half, quarter = rotated // 2, rotated // 4
    if convention == "dinov3":
        return [(p, p + half) for p in range(half)]
    if convention == "croco":
        return [
            *((p, p + quarter) for p in range(quarter)),
            *((p + half, p + half + quarter) for p in range(quarter)),
        ]
    return [(2 * p, 2 * p + 1) for p in range(half)]


def place(index, axis, grid, built, convention, options):
    """Of a patch on one axis, by the text of each convention."""
    resize = options.get("resize")
    if convention == "dinov3":
        sides = built if resize == "extrapolate" else grid
        normalize = options.get("normalize", "separate")
        side = {"separate": sides[axis], "max": max(sides), "min": min(sides)}[normalize]
        return 2 * (index + 0.5) / side - 1
    if options.get("freqs") == "pixel":
        side = built[axis] if resize == "extrapolate" else grid[axis]
        return -1.0 if index == 0 else -1 + 2 * index / max(side - 1, 1)
    whole = options.get("reference") or (built if resize == "scale" else grid)
    return (index + options.get("offset", 0.0)) * whole[axis] / grid[axis]


def band(i, count, convention, options):
    if "periods" in options:
        shortest, longest = options["periods"]
        power = i / (count - 1) if count > 1 else 0.0
        return 2 * math.pi / (shortest ** (1 - power) * longest**power)
    if options.get("freqs") == "pixel":
        top = options.get("max_freq", 224 if convention == "timm" else 10)
        part = i / (count - 1) if count > 1 else 0.0
        if options.get("linear_bands", convention == "lucidrains"):
            return math.pi * (1 + part * (top / 2 - 1))
        return math.pi * (top / 2) ** part
    base = {"timm": 1e4, "lucidrains": 1e4}.get(convention, 100.0)
    plain = options.get("temperature", base) ** (-i / count)
    return 2 * math.pi * plain if convention == "dinov3" else plain


def turned(x, layout, built, convention, **options):
    """Queries or keys, one pair of channels of one token after another."""
    rotated = options.get("rotated", x.shape[-1])
    count = rotated // 4
    columns_first = options.get("order", "columns" if convention == "rope_vit" else "rows")
    axes = (1, 0) if columns_first == "columns" else (0, 1)
    tokens = []
    for token in range(layout.num_tokens):
        where = oracles.position(token, layout.width, layout.prefix)
        channels = list(x[:, :, token].unbind(-1))
        for p, (a, b) in enumerate(pair_channels(convention, rotated) if where else []):
            axis = axes[p // count]
            angle = place(where[axis], axis, layout.grid, built, convention, options)
            angle *= options.get("strength", 1.0) * band(p % count, count, convention, options)
            cos, sin = math.cos(angle), math.sin(angle)
            first, second = x[:, :, token, a], x[:, :, token, b]
            channels[a], channels[b] = first * cos - second * sin, second * cos + first * sin
        tokens.append(torch.stack(channels, -1))
    return torch.stack(tokens, -2)


OPTIONS = [
    {"convention": "timm"},
    {"convention": "timm", "offset": 0.5, "reference": (5, 3), "strength": 0.7},
    {"convention": "timm", "resize": "scale", "offset": 1.5, "order": "columns"},
    {"convention": "timm", "resize": "extrapolate", "temperature": 50.0, "rotated": 8},
    {"convention": "timm", "freqs": "pixel"},
    {"convention": "timm", "freqs": "pixel", "linear_bands": True, "max_freq": 14.0},
    {"convention": "timm", "freqs": "pixel", "resize": "extrapolate", "rotated": 4},
    {"convention": "dinov3"},
    {"convention": "dinov3", "normalize": "max", "order": "columns"},
    {"convention": "dinov3", "normalize": "min", "periods": (0.7, 90.0), "rotated": 4},
    {"convention": "dinov3", "normalize": "max", "resize": "extrapolate", "temperature": 7.0},
    {"convention": "rope_vit"},
    {"convention": "rope_vit", "resize": "scale", "order": "rows"},
    {"convention": "lucidrains"},
    {"convention": "lucidrains", "freqs": "pixel", "rotated": 8},
    {"convention": "lucidrains", "freqs": "pixel", "linear_bands": False, "resize": "scale"},
    {"convention": "croco"},
    {"convention": "croco", "reference": (3, 7), "rotated": 8, "strength": -2.0},
]


def label(options):
    return " ".join(f"{key}={value}" for key, value in options.items())


@pytest.mark.parametrize("grid", ["its own", "another"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_equals_the_formula(options, layout, grid):
    layout = TokenLayout(*layout)
    built = layout.grid if grid == "its own" else BUILT
    q, k, v, cotangent = oracles.random_qkv(layout.num_tokens, head_dim=12)
    rope = RoPE(TokenLayout(*built, prefix=layout.prefix), 2, 12, **options)
    out = attend(q, k, v, rope(q, k, layout))
    gradients = torch.autograd.grad(out, (q, k, v), cotangent)
    expected, _ = oracles.attention(*(turned(x, layout, built, **options) for x in (q, k)), v)
    wanted = torch.autograd.grad(expected, (q, k, v), cotangent)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS, ids=label)
def test_scores_depend_on_the_offset_alone(options):
    """The same content everywhere: a step to the right or down changes no score of patches."""
    layout = TokenLayout(4, 5, prefix=1)
    q, k, _, _ = oracles.random_qkv(1, head_dim=12)
    q, k = (x.detach().expand(-1, -1, layout.num_tokens, -1) for x in (q, k))
    (rotation,) = RoPE(layout, 2, 12, **options)(q, k, layout)
    scores = rotation.apply(q) @ rotation.apply(k).transpose(-2, -1)
    pairs = scores[..., 1:, 1:].unflatten(-1, layout.grid).unflatten(-3, layout.grid)
    torch.testing.assert_close(pairs[..., 1:, :, 1:, :], pairs[..., :-1, :, :-1, :])
    torch.testing.assert_close(pairs[..., :, 1:, :, 1:], pairs[..., :, :-1, :, :-1])
    assert (pairs[..., 0, 0, 0, 1] - pairs[..., 0, 1, 0, 0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"convention": "dinov3", "normalize": "max", "resize": "extrapolate"},
        {"convention": "croco", "reference": (3, 5)},
        {"convention": "lucidrains", "freqs": "pixel", "rotated": 4},
        {"convention": "rope_vit", "resize": "scale"},
        {"strength": 0.0},
    ],
    ids=label,
)
def test_promises(options):
    for name, check in checks_of("rope", **options):
        if name not in ("Compiles as one graph", "Exports with torch.export"):
            check()


# What is remembered


def test_terms_are_built_once_for_all_blocks():
    layout = TokenLayout(3, 4, prefix=1)
    q = torch.randn(1, 2, 13, 8)
    first, second = (RoPE(layout, 2, 8, convention="croco")(q, q, layout)[0] for _ in range(2))
    assert first.cos is second.cos
    (other,) = RoPE(layout, 2, 8, convention="croco", strength=2.0)(q, q, layout)
    assert not torch.equal(other.cos, first.cos)


def test_angles_are_rounded_once():
    """In pixels angles reach hundreds of radians: float32 would lose four digits of a cosine."""
    layout = TokenLayout(5, 7)
    q = torch.randn(1, 1, 35, 16)
    rope = RoPE(layout, 1, 16, freqs="pixel", max_freq=2000.0)
    single, exact = rope(q, q, layout)[0], rope(q.double(), q.double(), layout)[0]
    assert torch.equal(single.cos, exact.cos.float())
    assert torch.equal(single.sin, exact.sin.float())


# Training


def drawn_places(rope, layout, count=1):
    """Row and column of every patch `[n, 2]` in each of some calls, read from small angles."""
    q = torch.zeros(1, 2, layout.num_tokens, 4, dtype=torch.float64)
    for _ in range(count):
        (rotation,) = rope(q, q, layout)
        angles = torch.atan2(rotation.sin, rotation.cos)[0, 0]
        assert (angles[: layout.prefix] == 0).all()
        yield angles[layout.prefix :] * 1000 / math.tau  # the only period


def line(places, axis, layout):
    """Stretch and shift of the places of one axis over those of eval."""
    plain = 2 * (torch.arange(layout.grid[axis], dtype=torch.float64) + 0.5) / layout.grid[axis] - 1
    grid = places[:, axis].unflatten(0, layout.grid)
    along = grid[:, 0] if axis == 0 else grid[0]
    torch.testing.assert_close(grid, (along[:, None] if axis == 0 else along).expand_as(grid))
    stretch = (along[-1] - along[0]) / (plain[-1] - plain[0])
    shift = along[0] / stretch - plain[0]
    torch.testing.assert_close(along, stretch * (plain + shift))
    return float(stretch), float(shift)


@pytest.mark.parametrize(
    ("options", "stretch", "shift", "shared"),
    [
        ({"shift": 0.3}, 1.0, 0.3, True),
        ({"jitter": 1.5}, 1.5, 0.0, False),
        ({"rescale": 2.0}, 2.0, 0.0, True),
        ({"shift": 0.3, "jitter": 1.5, "rescale": 2.0}, 3.0, 0.3, False),
    ],
)
def test_places_move_in_training(options, stretch, shift, shared):
    layout = TokenLayout(3, 5, prefix=2)
    rope = RoPE(layout, 2, 4, convention="dinov3", periods=(1000, 1000), **options)
    torch.manual_seed(0)
    lines = [
        [line(places, axis, layout) for axis in (0, 1)]
        for places in drawn_places(rope.train(), layout, count=40)
    ]
    stretches = torch.tensor([[one[0] for one in both] for both in lines])
    shifts = torch.tensor([[one[1] for one in both] for both in lines])
    logarithms, limit = stretches.log().abs(), math.log(stretch)
    assert logarithms.max() <= limit + 1e-6
    assert shifts.abs().max() <= shift + 1e-6
    assert limit == 0 or logarithms.max() > limit / 2
    assert shift == 0 or shifts.abs().max() > shift / 2
    assert torch.allclose(stretches[:, 0], stretches[:, 1]) is shared
    assert shift == 0 or not torch.allclose(shifts[:, 0], shifts[:, 1])
    (still,) = drawn_places(rope.eval(), layout)
    for axis in (0, 1):
        assert line(still, axis, layout) == pytest.approx((1.0, 0.0))


def test_it_is_static_unless_it_draws():
    layout = TokenLayout(2, 3)
    drawing = RoPE(layout, 2, 8, convention="dinov3", jitter=2.0)
    assert not drawing.train().is_static
    assert drawing.eval().is_static
    assert RoPE(layout, 2, 8, convention="dinov3", jitter=1.0, shift=0).train().is_static
    q = torch.zeros(1, 2, 6, 8)
    first, second = (drawing.train()(q, q, layout)[0].cos for _ in range(2))
    assert not torch.equal(first, second)
    drawing.eval()
    with torch.no_grad():
        first, second = (drawing(q, q, layout)[0].cos for _ in range(2))
    assert first is second


# Checkpoints


def test_the_built_grid_is_kept_where_it_decides():
    def saved(grid, **options):
        module = torch.nn.ModuleDict({"rope": RoPE(TokenLayout(*grid), 2, 8, **options)})
        return module, module.state_dict()

    _, state = saved((2, 8))
    saved((4, 4))[0].load_state_dict(state, strict=True)
    for options in ({"resize": "scale"}, {"convention": "dinov3", "resize": "extrapolate"}):
        _, state = saved((2, 8), **options)
        other, _ = saved((4, 4), **options)
        with pytest.raises(RuntimeError, match=r"was made for a 2x8 grid, .*RoPE for 4x4"):
            other.load_state_dict(state)


@pytest.mark.parametrize("options", [{}, {"reference": [4, 4]}, {"resize": "scale"}])
def test_round_trip_of_a_file_without_tensors(tmp_path, options):
    from tiny_vit import images, vit

    with pytest.warns(UserWarning, match="RoPE has an effect from the start"):
        model = posenc.patch_model(vit(), "rope", temperature=30.0, **options)
    posenc.save_encodings(model, tmp_path / "rope.safetensors")
    again = posenc.load_encodings(vit(), tmp_path / "rope.safetensors")
    assert torch.equal(again(images(again)), model(images(model)))
    assert not torch.equal(model(images(model)), vit()(images(model)))


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "eva"}, "convention must be one of 'timm', 'dinov3', .* got 'eva'"),
        ({"freqs": "image"}, "freqs must be one of 'lang', 'pixel', got 'image'"),
        ({"convention": "croco", "freqs": "pixel"}, "freqs= is a choice of .*'croco' has none"),
        ({"order": "xy"}, "order must be one of 'rows', 'columns', got 'xy'"),
        ({"resize": "clip"}, "resize must be one of 'scale', 'extrapolate', got 'clip'"),
        ({"rotated": 6}, r"multiple of 4 .* got 6 of head_dim=8; rotated=4 turns the first 4"),
        ({"rotated": 12}, r"got 12 of head_dim=8; rotated=8 turns the first 8"),
        ({"rotated": 2}, r"got 2 of head_dim=8; widen the heads"),
        ({"rotated": True}, "rotated must be a positive int, got True"),
        ({"strength": math.nan}, "strength must be a finite number, got nan"),
        ({"temperature": 0}, "temperature must be positive, got 0"),
        ({"temperature": "high"}, "temperature must be a finite number, got 'high'"),
        ({"max_freq": 7}, "convention='timm', freqs='lang' has no max_freq=; .* it has offset"),
        (
            {"freqs": "pixel", "temperature": 7.0},
            "freqs='pixel' has no temperature=; .* it has linear_bands, max_freq",
        ),
        ({"freqs": "pixel", "max_freq": -1}, "max_freq must be positive, got -1"),
        ({"freqs": "pixel", "reference": (2, 2)}, "has no reference="),
        ({"convention": "rope_vit", "jitter": 2.0}, "convention='rope_vit' has no jitter="),
        ({"convention": "dinov3", "offset": 1.0}, "convention='dinov3' has no offset="),
        ({"convention": "dinov3", "jitter": 0.5}, "jitter must be at least 1, got 0.5"),
        ({"convention": "dinov3", "rescale": 0}, "rescale must be at least 1, got 0"),
        ({"convention": "dinov3", "shift": -1}, "shift must be at least 0, got -1"),
        ({"convention": "dinov3", "normalize": "mean"}, "normalize must be one of 'separate'"),
        ({"convention": "dinov3", "periods": 3.0}, "periods must be a pair of numbers, got 3.0"),
        ({"convention": "dinov3", "periods": (0, 3)}, "periods must be positive, got 0"),
        (
            {"convention": "dinov3", "periods": (1, 3), "temperature": 10},
            "temperature= and periods= both fix the bands; give one",
        ),
        ({"reference": (3,)}, r"reference must be a pair of numbers, got \(3,\)"),
        ({"reference": (3, 0)}, "reference must be a positive int, got 0"),
        ({"reference": (3, 4), "resize": "scale"}, "no resize='scale' with it; give one"),
    ],
    ids=str,
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RoPE(TokenLayout(2, 3), 2, 8, **options)


def test_a_flag_must_be_one():
    with pytest.raises(TypeError, match="linear_bands must be True or False, got 'no'"):
        RoPE(TokenLayout(2, 3), 2, 8, freqs="pixel", linear_bands="no")


def test_a_width_that_does_not_fit_is_said_before_a_model_changes():
    from tiny_vit import snapshot, vit

    model = vit(embed_dim=12)  # two heads of width 6
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"got 6 of head_dim=6; rotated=4 turns the first 4"):
        posenc.patch_model(model, "rope")
    assert snapshot(model) == before
    with pytest.warns(UserWarning, match="RoPE has an effect"):
        posenc.patch_model(model, "rope", rotated=4)


def test_blocks_of_pairs():
    cos = torch.ones(1, 1, 1, 3)
    q = torch.zeros(1, 1, 1, 6)
    with pytest.raises(ValueError, match=r"Rotation.blocks must divide the 3 pairs .* got 2"):
        attend(q, q, q, Rotation(cos, cos, blocks=2))
