import math

import body_oracles
import oracles
import pytest
import torch
from encoding_files import assert_refused, config_in, write
from kernel_calls import set_tiles
from safetensors.torch import load_file
from tiny_vit import vit

from posenc import (
    HumanPart,
    TokenLayout,
    attend,
    fold_biases,
    is_patched,
    load_encodings,
    patch_from_config,
    patch_model,
    save_encodings,
)
from posenc.functional.body import ordered_centers
from posenc.testing import check_backend, checks_of

SLOW = ("Compiles as one graph", "Exports with torch.export")
BACKENDS = ["reference", "sdpa", "tiled", "lowrank"]
OPEN = {"strength": 1.0, "dtype": torch.float64}
LAYOUTS = [(2, 5, 0), (7, 4, 1), (1, 6, 2), (8, 1, 5), (6, 3, 0)]


def build(layout, *, seed=0, heads=2, **options):
    human = HumanPart(TokenLayout(*layout), heads, 4, **{**OPEN, **options})
    return oracles.randomize(human, seed)


def centered(bias):
    """Without the constant per query, which softmax does not see."""
    return bias - bias.mean(-1, keepdim=True)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("parts", [5, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_the_definition(layout, parts, adaptive):
    human = build(layout, parts=parts, adaptive=adaptive)
    q, k, v, cotangent = oracles.random_qkv(oracles.num_tokens(*layout))
    parameters = dict(human.named_parameters())
    expected_bias = body_oracles.human_part_bias(parameters, *layout, k)
    expected, _ = oracles.attention(q, k, v, expected_bias)
    leaves = [q, k, v, *parameters.values()]
    wanted = torch.autograd.grad(expected, leaves, cotangent, materialize_grads=True)
    for backend in BACKENDS:
        terms = human(q, k, TokenLayout(*layout))
        bias = sum(term.dense() for term in terms)
        torch.testing.assert_close(
            *torch.broadcast_tensors(centered(bias), centered(expected_bias)), atol=1e-10, rtol=0
        )
        out = attend(q, k, v, terms, backend=backend)
        torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
        for name, grad, want in zip(
            ["q", "k", "v", *parameters],
            torch.autograd.grad(out, leaves, cotangent, materialize_grads=True),
            wanted,
            strict=True,
        ):
            torch.testing.assert_close(
                grad, want, atol=1e-10, rtol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("used", [(6, 3, 1), (5, 2, 1), (3, 4, 4)])
def test_another_layout_needs_no_resampling(used):
    """Coordinates are relative to the crop; all prefix tokens share u and w."""
    human = build((2, 5, 1))
    q, k, _, _ = oracles.random_qkv(oracles.num_tokens(*used))
    bias = sum(term.dense() for term in human(q, k, TokenLayout(*used)))
    expected = body_oracles.human_part_bias(dict(human.named_parameters()), *used)
    torch.testing.assert_close(centered(bias), centered(expected), atol=1e-10, rtol=0)


def test_affinity_acts_on_the_part_of_the_key():
    """A[head, part of the query, part of the key], not symmetric: the head looks at the shins."""
    layout = TokenLayout(16, 3)
    human = HumanPart(layout, 1, strength=20.0, dtype=torch.float64)
    with torch.no_grad():
        human.affinity.zero_()
        human.affinity[0, 0, 4] = 1.0
        human.log_vertical_extent.fill_(5.0)
        human.log_horizontal_extent.fill_(5.0)
    zeros = torch.zeros(1, 1, 48, 4, dtype=torch.float64)
    eye = torch.eye(48, dtype=torch.float64)[None, None]
    attention = attend(zeros, zeros, eye, human(zeros, zeros, layout))[0, 0].reshape(16, 3, 16, 3)
    rows = attention.sum((1, 3)) / 3
    assert rows[0].argmax() >= 13
    assert rows[0, 13:].sum() > 0.5
    torch.testing.assert_close(rows[15], torch.full_like(rows[15], 1 / 16), atol=0.02, rtol=0)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_the_factors_fill_one_padded_block(prefix):
    """Rank parts + 3 = 8, prefix tokens included."""
    zeros = torch.zeros(1, 2, 15 + prefix, 4, dtype=torch.float64)
    (term,) = build((5, 3, prefix))(zeros, zeros, TokenLayout(5, 3, prefix))
    assert term.left.shape[-1] == term.right.shape[-1] == 8


def test_start():
    human = HumanPart(TokenLayout(16, 8, prefix=1), 3, dtype=torch.float64)
    values = {name: parameter.detach() for name, parameter in human.named_parameters()}
    expected = {
        "part_spacing": torch.tensor([1 / 16, 2 / 16, 4 / 16, 3 / 16, 4 / 16, 2 / 16]).log(),
        "log_part_width": torch.tensor([math.log(0.1)]),
        "affinity": torch.eye(5).expand(3, 5, 5),
        "log_vertical_extent": torch.full((3,), math.log(0.3)),
        "log_horizontal_extent": torch.full((3,), math.log(0.6)),
        "strength": torch.zeros(3),
        "prefix_query": torch.zeros(3, 5),
        "prefix_key": torch.zeros(3, 5),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(values[name], value.double(), atol=1e-6, rtol=0)


def test_no_prefix_parameters_without_prefix_tokens():
    """A parameter that never has a gradient would stop distributed training."""
    names = {name for name, _ in HumanPart(TokenLayout(4, 2), 2).named_parameters()}
    assert names.isdisjoint({"prefix_query", "prefix_key"})
    assert "affinity" in names


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_any_number_of_parts(parts):
    human = HumanPart(TokenLayout(4, 2, prefix=1), 2, parts=parts)
    assert human.affinity.shape == (2, parts, parts)
    assert human.prefix_query.shape == human.prefix_key.shape == (2, parts)
    stripes = (torch.arange(parts) + 0.5) / parts
    torch.testing.assert_close(ordered_centers(human.part_spacing), stripes)


def test_five_parts_start_where_they_are_on_a_figure():
    human = HumanPart(TokenLayout(4, 2), 2, dtype=torch.float64)
    centers = [1 / 16, 3 / 16, 7 / 16, 10 / 16, 14 / 16]
    assert ordered_centers(human.part_spacing).tolist() == pytest.approx(centers, abs=1e-15)


def test_no_effect_at_the_start_and_a_gradient_of_the_strength_only():
    layout = TokenLayout(4, 3, prefix=2)
    human = HumanPart(layout, 2, dtype=torch.float64)
    q, k, v, cotangent = oracles.random_qkv(14)
    out = attend(q, k, v, human(q, k, layout))
    torch.testing.assert_close(out, attend(q, k, v), atol=1e-14, rtol=0)
    out.backward(cotangent)
    for name, parameter in human.named_parameters():
        assert (parameter.grad != 0).any() == (name == "strength"), name


def test_strength_opens_every_parameter():
    layout = TokenLayout(4, 3, prefix=2)
    human = build((4, 3, 2))
    q, k, v, cotangent = oracles.random_qkv(14)
    attend(q, k, v, human(q, k, layout)).backward(cotangent)
    for name, parameter in human.named_parameters():
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("shift", [-3.0, 7.0])
def test_prefix_query_counts_up_to_a_constant(shift):
    """u is projected to zero sum; otherwise the window of the keys would leak into it."""
    human = build((4, 3, 1))
    q, k, v, _ = oracles.random_qkv(13)
    layout = TokenLayout(4, 3, prefix=1)
    before = attend(q, k, v, human(q, k, layout))
    with torch.no_grad():
        human.prefix_query += shift
    torch.testing.assert_close(attend(q, k, v, human(q, k, layout)), before, atol=1e-10, rtol=0)


@pytest.mark.parametrize("parts", [0, -2])
def test_refuses_no_parts(parts):
    with pytest.raises(ValueError, match=rf"parts.*{parts}"):
        HumanPart(TokenLayout(2, 3), 2, parts=parts)


def test_refuses_tokens_that_the_layout_does_not_have():
    q, k, _, _ = oracles.random_qkv(9)
    with pytest.raises(ValueError, match=r"10 tokens.*9"):
        build((2, 5, 0))(q, k, TokenLayout(2, 5))


def test_refuses_prefix_tokens_that_it_has_no_parameters_for():
    q, k, _, _ = oracles.random_qkv(11)
    with pytest.raises(ValueError, match=r"0 prefix tokens.* 1"):
        build((2, 5, 0))(q, k, TokenLayout(2, 5, prefix=1))


# Adaptive


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_foreground_adaptive_is_the_same_bit_for_bit(layout, dtype):
    plain = build(layout, dtype=dtype)
    human = HumanPart(TokenLayout(*layout), 2, 4, adaptive=True, dtype=dtype)
    human.load_state_dict(plain.state_dict(), strict=False)
    q, k, _, _ = (t.detach().to(dtype) for t in oracles.random_qkv(oracles.num_tokens(*layout)))
    layout = TokenLayout(*layout)
    expected = plain.memberships(k, layout, dtype).expand(2, -1, -1)
    assert torch.equal(human.memberships(k, layout, dtype), expected)
    ((one,), (other,)) = plain(q, k, layout), human(q, k, layout)
    tolerance = {"atol": 1e-5 if dtype == torch.float32 else 1e-13, "rtol": 0}
    torch.testing.assert_close(other.dense(), one.dense().expand(2, -1, -1, -1), **tolerance)
    torch.nn.init.ones_(human.foreground)
    assert layout.height == 1 or not torch.equal(human.memberships(k, layout, dtype), expected)


@pytest.mark.parametrize("moved", [-2, 3])
def test_parts_move_with_a_person(moved):
    """Keys of a block in the crop, moved by rows; the CLS token is not foreground."""
    layout = TokenLayout(12, 5, prefix=1)
    human = HumanPart(layout, 2, 4, adaptive=True, dtype=torch.float64)
    with torch.no_grad():
        human.foreground[0] = 40.0
    crop = torch.randn(1, 2, 12, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    crop[..., 0] = 0.0
    crop[:, :, 4:8, 1:4, 0] = 1.0

    def shares(crop):
        k = torch.cat([torch.ones(1, 2, 1, 4).double(), crop.flatten(2, 3)], 2)
        return human.memberships(k, layout, torch.float64).unflatten(1, (12, 5))

    still, there = shares(crop), shares(crop.roll(moved, 2))
    torch.testing.assert_close(there.roll(-moved, 1)[:, 3:9], still[:, 3:9], atol=1e-9, rtol=0)
    assert (still[0, 4:8, 0].argmax(-1).diff() > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_foreground_of_one_patch_stays_finite(backend):
    layout = TokenLayout(16, 8, 1)
    human = build((16, 8, 1), adaptive=True, dtype=torch.float32)
    q, k, v, _ = (t.detach().float() for t in oracles.random_qkv(129))
    k[:, :, 40] = 1e4 * human.foreground.detach().sign()
    q.requires_grad_(), k.requires_grad_()
    out = attend(torch.zeros_like(q), k, v, human(q, k, layout), backend=backend)
    out.square().sum().backward()
    grads = [p.grad for p in human.parameters()]
    assert all(torch.isfinite(value).all() for value in (out, k.grad, *grads))


@pytest.mark.parametrize("options", [{"adaptive": True}, {"adaptive": True, "strength": 1.0}])
def test_promises_of_adaptive_parts(options):
    for name, check in checks_of("human_part", **options):
        if name not in SLOW:
            check()


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_graphs_of_adaptive_parts(name):
    dict(checks_of("human_part", adaptive=True))[name]()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_adaptive_on_every_backend(backend, dtype):
    computed = check_backend("human_part", backend, dtype=dtype, adaptive=True, strength=1.0)
    # What the factors of a zoomed crop span is too much for 16 bits in training.
    assert (computed > 0) == ((backend, dtype) != ("lowrank", torch.bfloat16))


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adaptive_in_the_interpreter(dtype, monkeypatch):
    pytest.importorskip("posenc.attention.kernels.run", exc_type=ImportError)
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        set_tiles(monkeypatch, 16, 16)
    layouts = (TokenLayout(3, 7, 1), TokenLayout(2, 5, 0))
    options = {"layouts": layouts, "adaptive": True, "strength": 1.0}
    assert check_backend("human_part", "triton", dtype=dtype, **options) == 2


def test_adaptive_is_not_static():
    layout = TokenLayout(4, 3)
    assert HumanPart(layout, 2).is_static
    assert not HumanPart(layout, 2, 4, adaptive=True).is_static
    model = patch_model(vit(), "human_part", adaptive=True)
    with pytest.raises(ValueError, match=r"nothing to fold: .*this model has human_part"):
        fold_biases(model)


def test_adaptive_needs_the_width_of_keys():
    with pytest.raises(ValueError, match=r"adaptive=True reads keys, and needs head_dim"):
        HumanPart(TokenLayout(2, 3), 2, adaptive=True)
    with pytest.raises(TypeError, match="HumanPart: adaptive must be True or False, got 1"):
        HumanPart(TokenLayout(2, 3), 2, 4, adaptive=1)


# Learned parts


def test_learned_parts_stay_parts():
    """Steps that would throw free centers out of the crop."""
    layout = TokenLayout(8, 4)
    human = build((8, 4, 0), dtype=torch.float32)
    start = ordered_centers(human.part_spacing).detach()
    optimizer = torch.optim.SGD([human.part_spacing], lr=100.0)
    q, k, v, cotangent = (t.detach().float() for t in oracles.random_qkv(32))
    for _ in range(30):
        optimizer.zero_grad()
        (attend(q, k, v, human(q, k, layout)) * cotangent).mean().backward()
        optimizer.step()
        centers = ordered_centers(human.part_spacing)
        assert (centers.diff() > 0).all()
        assert 0 < centers[0] < centers[-1] < 1
    assert (centers - start).abs().max() > 0.02


# What the first version wrote


def first_version(tensors):
    """Tensors with the names of the first version, whose centers were free numbers."""
    old = {key: value for key, value in tensors.items() if not key.endswith("part_spacing")}
    for key, value in tensors.items():
        if key.endswith("part_spacing"):
            old[key.replace("part_spacing", "part_centers")] = value[:-1].clone()
    return old


@pytest.mark.parametrize("is_patched", [False, True])
def test_files_of_the_first_version_are_refused(is_patched, tmp_path):
    path = tmp_path / "old.safetensors"
    save_encodings(patch_model(vit(), "human_part+swin"), path)
    config = config_in(path)
    assert config["format"] == 2
    config["format"] = 1
    del config["encodings"][0]["options"]["adaptive"]
    write(path, config, first_version(load_file(path)))
    model = patch_model(vit(), "human_part+swin") if is_patched else vit()
    message = (
        r"old.safetensors has format 1, and human_part is read since format 2: .*first version of "
        r"human_part, whose centers \(part_centers\) could leave the crop.*train it"
    )
    assert_refused(model, path, message)
    with pytest.raises(ValueError, match="the config has format 1, and human_part is read since"):
        patch_from_config(vit(), config)


def test_files_without_it_are_written_and_read_as_before(tmp_path):
    path = tmp_path / "swin.safetensors"
    save_encodings(patch_model(vit(), "swin+body"), path)
    assert config_in(path)["format"] == 1
    assert is_patched(load_encodings(vit(), path))


@pytest.mark.parametrize("strict", [True, False])
def test_checkpoints_of_the_first_version_are_refused(strict):
    model = patch_model(vit(), "human_part")
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    state = first_version({key: value + 1 for key, value in kept.items()})
    message = r"blocks.0.attn.posenc.human_part.part_centers: nothing was loaded, .*first version"
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state, strict=strict)
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("strict", [True, False])
def test_an_encoding_alone_refuses_the_first_version(strict):
    human = build((4, 2, 1))
    state = first_version(human.state_dict())
    with pytest.raises(RuntimeError, match=r"part_centers was not loaded: .*patch a new model and"):
        human.load_state_dict(state, strict=strict)
    human.load_state_dict(human.state_dict(), strict=True)
