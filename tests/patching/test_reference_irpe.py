"""Official checkpoints of DeiT with iRPE, in a patched model of timm."""

import copy
import types

import golden_cases
import pytest
import tiny_vit
import torch

import posenc
from posenc import load_reference_checkpoint

# rpe_models.py of the published code: how each configuration is patched, and its buckets with CLS.
CONFIGURATIONS = {
    "ctx_product_50_shared_k": ({"on": "k"}, 50),
    "ctx_product_50_shared_qk": ({"on": "qk"}, 50),
    "ctx_product_50_shared_qkv": ({"on": "qkv"}, 50),
    "ctx_euc_20_shared_k": ({"method": "euclidean", "ratio": 20}, 82),
    "ctx_quant_51_shared_k": ({"method": "quantized", "ratio": 33}, 134),
    "ctx_cross_56_shared_k": ({"method": "cross", "ratio": 20}, 82),
}


def model_of(golden, **options):
    """A model of timm, patched as the golden case was built."""
    sizes = golden.hyperparameters
    vit = tiny_vit.vit(
        img_size=options.pop("img_size", sizes["img_size"]),
        patch_size=sizes["patch_size"],
        embed_dim=sizes["embed_dim"],
        depth=sizes["depth"],
        num_heads=sizes["num_heads"],
        mlp_ratio=sizes["mlp_ratio"],
        num_classes=sizes["num_classes"],
        dtype=options.pop("dtype", torch.float64),
    )
    choice = {
        "mode": sizes["mode"],
        "method": golden_cases.IRPE_METHODS[sizes["method"]],
        "on": sizes["rpe_on"],
        "share_heads": sizes["shared_head"],
        "ratio": sizes["ratio"],
    }
    return posenc.patch_model(vit, "irpe", **(choice | options))


def state_of(golden):
    start = "sd."
    return {k.removeprefix(start): v for k, v in golden.arrays.items() if k.startswith(start)}


def official(model):
    """The state of a patched model under the names of the published code."""
    state = {}
    for key, value in model.state_dict().items():
        if ".posenc.irpe." in key:
            site, _, name = key.partition(".posenc.irpe.table_")
            target, _, axis = name.partition("_")
            kind = "bias" if value.dim() == 2 else "weight"
            axis = axis and f".rp_{axis}"
            key = f"{site}.rpe_{target}{axis}.lookup_table_{kind}"
        state[key] = value.clone()
    return state


@pytest.mark.parametrize("name", golden_cases.names("irpe_e2e_"))
def test_a_patched_model_of_timm_gives_the_published_logits(name):
    golden = golden_cases.case(name)
    model = model_of(golden)
    loaded = load_reference_checkpoint(model, state_of(golden), source="irpe")
    assert len(loaded.loaded) == len(model.state_dict())
    assert (loaded.resized, loaded.left_out) == ((), ())
    logits = model(golden["x"])
    torch.testing.assert_close(logits, golden["logits"], **golden.close)
    tokens = model.forward_features(golden["x"])
    torch.testing.assert_close(tokens, golden["tokens"], **golden.close)
    logits.backward(golden["grad_out"])
    grads = {key: p.grad for key, p in model.named_parameters()}
    for key, value in golden.arrays.items():
        if key.startswith("grad."):
            ours = ours_of(key.removeprefix("grad."))
            torch.testing.assert_close(grads[ours], value, **golden.close)


def ours_of(key):
    """The name of a published parameter in a patched model, by hand."""
    site, marker, rest = key.partition(".rpe_")
    if not marker:
        return key
    target, *axis = rest.split(".")[:-1]
    name = "_".join(["table", target, *(part.removeprefix("rp_") for part in axis)])
    return f"{site}.posenc.irpe.{name}"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_published_configuration(name):
    options, buckets = CONFIGURATIONS[name]
    theirs, ours = (
        posenc.patch_model(tiny_vit.vit(seed=seed, img_size=(12, 12)), "irpe", **options)
        for seed in (1, 2)
    )
    randomize_tables(theirs)
    state = official(theirs)
    tables = [v for k, v in state.items() if ".rpe_k." in k]
    assert {v.shape[-1] for v in tables} == {buckets}
    load_reference_checkpoint(ours, {"model": state, "epoch": 299}, source="irpe")
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    x = tiny_vit.images(ours)
    assert torch.equal(ours(x), theirs(x))


def randomize_tables(model):
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.normal_()


@pytest.mark.parametrize("grid", [(3, 6), (5, 4)])
def test_another_grid_resizes_the_absolute_table_as_deit_does(grid):
    golden = golden_cases.case("irpe_e2e_ctx_product_k_shared")
    state = state_of(golden)
    model = model_of(golden, img_size=(8 * grid[0], 8 * grid[1]))
    loaded = load_reference_checkpoint(model, state, source="irpe", grid=(4, 4))
    rows = state["pos_embed"][:, 1:].unflatten(1, (4, 4)).movedim(-1, 1)
    rows = torch.nn.functional.interpolate(rows, grid, mode="bicubic", align_corners=False)
    expected = torch.cat([state["pos_embed"][:, :1], rows.flatten(2).mT], 1)
    torch.testing.assert_close(model.pos_embed.detach(), expected, atol=1e-12, rtol=0)
    assert loaded.resized == (f"pos_embed: 4x4 to {grid[0]}x{grid[1]}",)
    assert "resized: pos_embed: 4x4 to" in str(loaded)


# What the model must be patched with


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "bias"}, "patched with irpe of mode='bias'.*needs 'contextual'"),
        ({"on": "qk"}, r"on='qk'.*needs 'k'"),
        ({"on": "v"}, r"on='v'.*needs 'k'"),
        ({"share_heads": False}, r"share_heads=False.*needs True"),
        ({"method": "cross"}, r"method='cross'.*'product' or 'euclidean' or 'quantized'"),
    ],
)
def test_other_options_are_named_with_those_that_it_needs(options, message):
    golden = golden_cases.case("irpe_e2e_ctx_product_k_shared")
    model = model_of(golden, **options)
    before = tiny_vit.snapshot(model)
    with pytest.raises(ValueError, match=message) as error:
        load_reference_checkpoint(model, state_of(golden), source="irpe")
    assert (
        'call posenc.unpatch_model(model), then posenc.patch_model(model, "irpe", '
        "mode='contextual', method='product', on='k', share_heads=True, ratio=1.9)"
    ) in str(error.value)
    assert tiny_vit.snapshot(model) == before


def test_the_call_that_it_names_works():
    golden = golden_cases.case("irpe_e2e_ctx_cross_k_shared")
    model = posenc.unpatch_model(model_of(golden))
    with pytest.raises(ValueError, match=r"VisionTransformer is not patched.*call ") as error:
        load_reference_checkpoint(model, state_of(golden), source="irpe")
    call = str(error.value).partition("call ")[2].removesuffix(" first")
    # Its tables of 8 buckets are none of a published configuration: no ratio is named.
    assert call == (
        "posenc.patch_model(model, \"irpe\", mode='contextual', method='cross', on='k', "
        "share_heads=True)"
    )
    eval(call, {"posenc": posenc, "model": model})
    load_reference_checkpoint(model, state_of(golden), source="irpe")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_call_names_the_published_method_and_ratio(name):
    options, _ = CONFIGURATIONS[name]
    vit = tiny_vit.vit(img_size=(12, 12))
    state = official(posenc.patch_model(copy.deepcopy(vit), "irpe", **options))
    with pytest.raises(ValueError, match=r"VisionTransformer is not patched.*call ") as error:
        load_reference_checkpoint(vit, state, source="irpe")
    call = str(error.value).partition("call ")[2].removesuffix(" first")
    recorder = types.SimpleNamespace(patch_model=lambda model, encoding, **named: named)
    usual = {"mode": "contextual", "method": "product", "on": "k", "share_heads": True}
    assert eval(call, {"posenc": recorder, "model": vit}) == usual | {"ratio": 1.9} | options


@pytest.mark.parametrize("options", [{"ratio": 3.0}, {"prefix_pairs": "none"}])
def test_another_number_of_buckets(options):
    golden = golden_cases.case("irpe_e2e_ctx_product_k_shared")
    with pytest.raises(ValueError, match=r"table_k \[1, 8, 50\] instead of .*method= and ratio="):
        load_reference_checkpoint(model_of(golden, **options), state_of(golden), source="irpe")


def test_tables_of_both_modes():
    golden = golden_cases.case("irpe_e2e_ctx_product_k_shared")
    state = state_of(golden) | {"blocks.0.attn.rpe_q.lookup_table_bias": torch.zeros(1, 50)}
    with pytest.raises(ValueError, match=r"tables of both modes"):
        load_reference_checkpoint(model_of(golden), state, source="irpe")
