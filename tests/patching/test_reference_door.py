"""The door itself: what it takes, refuses and leaves alone, whatever the source."""

import copy

import pytest
import tiny_vit
import torch
import windowed_models

import posenc
from posenc import load_reference_checkpoint


def patched(seed=0, **options):
    """The simplest case: no key changes but those of the tables."""
    model = posenc.patch_model(tiny_vit.vit(seed=seed, **options), "irpe")
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.normal_()
    return model


def state_of(model):
    new = "rpe_k.lookup_table_weight"
    items = model.state_dict().items()
    return {key.replace("posenc.irpe.table_k", new): value.clone() for key, value in items}


def load(model, state, **options):
    return load_reference_checkpoint(model, state, **{"source": "irpe", **options})


def equal(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(value, theirs[key].to(value.dtype)) for key, value in mine.items())


# What it takes


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3, "model_ema": None},
        lambda state: {"state_dict": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"module": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {key: torch.nn.Parameter(value) for key, value in state.items()},
    ],
)
def test_wrappers_of_training_scripts(wrap):
    theirs, ours = patched(1), patched(2)
    load(ours, wrap(state_of(theirs)))
    assert equal(ours, theirs)


def test_a_backbone_within_a_model():
    theirs, ours = patched(1), patched(2)
    load(torch.nn.Sequential(torch.nn.Identity(), ours), state_of(theirs))
    assert equal(ours, theirs)


def test_dtypes_flags_and_identities_of_the_model_stay():
    theirs, ours = patched(1), patched(2).float()
    ours.cls_token.requires_grad_(False)
    ours.blocks[0].attn.posenc.irpe.table_k.requires_grad_(False)
    before = [(id(p), p.dtype, p.requires_grad) for p in ours.parameters()]
    load(ours, {key: value.bfloat16() for key, value in state_of(theirs).items()})
    assert [(id(p), p.dtype, p.requires_grad) for p in ours.parameters()] == before
    assert equal(ours, theirs.bfloat16())


def test_static_terms_of_eval_are_forgotten():
    theirs, ours = (posenc.patch_model(tiny_vit.vit(), "irpe", mode="bias") for _ in range(2))
    x = tiny_vit.images(ours)
    with torch.no_grad():
        ours(x)
        for _, parameter in posenc.encoding_parameters(theirs):
            parameter.normal_()
        state = {
            key.replace("posenc.irpe.table_k", "rpe_k.lookup_table_bias"): value
            for key, value in theirs.state_dict().items()
        }
        load(ours, state)
        assert torch.equal(ours(x), theirs(x))


def test_the_state_is_not_changed_nor_kept():
    theirs, ours = patched(1), patched(2)
    state = state_of(theirs)
    before = copy.deepcopy(state)
    load(ours, state)
    for parameter in ours.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_what_it_says():
    loaded = load(patched(), state_of(patched()))
    assert isinstance(loaded, posenc.LoadedCheckpoint)
    assert str(loaded) == f"irpe: {len(patched().state_dict())} tensors loaded"
    assert loaded.loaded == tuple(patched().state_dict())


# What it refuses, before anything is changed


def refused(error, match, model, state, **options):
    before = tiny_vit.snapshot(model)
    with pytest.raises(error, match=match):
        load(model, state, **options)
    assert tiny_vit.snapshot(model) == before


def test_an_unknown_source():
    message = r"unknown source 'swinv2'. Did you mean 'swin_v2'\? There are: irpe, beit, rope_vit"
    refused(ValueError, message, patched(), {}, source="swinv2")
    refused(ValueError, r"unknown source None\. There are", patched(), {}, source=None)


@pytest.mark.parametrize("grid", [4, (4,), (4.0, 4), (0, 4), "4x4", (True, 4)])
def test_a_grid_that_is_none(grid):
    refused(
        ValueError, r"grid must be \(height, width\)", patched(), state_of(patched()), grid=grid
    )


@pytest.mark.parametrize(
    ("state", "match"),
    [
        (None, "mapping of names to tensors, .* got NoneType"),
        ("model.pth", r"torch\.load\(path\).*got str"),
        ([("a", torch.ones(1))], "got list"),
        (torch.nn.Linear(2, 2), r"got Linear: pass its state_dict\(\)"),
        ({"model": torch.nn.Linear(2, 2)}, r"got Linear: pass its state_dict\(\)"),
        ({"weights": {"a": torch.ones(1)}}, r"'weights' \(dict\).*pass the weights alone"),
        ({"a": 3, 4: torch.ones(1)}, r"'a' \(int\), 4 \(Tensor\)"),
    ],
)
def test_a_state_that_is_no_mapping_of_tensors(state, match):
    refused(TypeError, match, patched(), state)


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({}, "checkpoint is empty"),
        ({"model": {}}, "checkpoint is empty"),
        ({"model": {}, "model_ema": {}}, r"under 'model' and 'model_ema': pass one.*\['model'\]"),
        ({"a": torch.ones(1)}, r"none of source='irpe'.*lookup_table_weight, but a$"),
        ({"a": torch.ones(2, device="meta")}, "a is on the meta device"),
        ({"a": torch.eye(2).to_sparse()}, "a is no dense tensor"),
    ],
)
def test_a_state_of_no_use(state, match):
    refused(ValueError, match, patched(), state)


@pytest.mark.parametrize("key", ["norm.bias", "blocks.1.attn.rpe_k.lookup_table_weight"])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda value: value.fill_(float("nan")), "has non-finite values"),
        (lambda value: value.to(torch.int8), r"is torch\.int8 instead of floating point"),
    ],
)
def test_values_that_no_parameter_has(key, change, match):
    state = state_of(patched(1))
    state[key] = change(state[key])
    refused(ValueError, rf"{key.partition('.rpe_')[0]}.* {match}", patched(), state)


def test_keys_in_one_of_both_only():
    state = state_of(patched(1))
    table = state.pop("blocks.1.attn.rpe_k.lookup_table_weight")
    refused(ValueError, r"only the model has irpe in blocks\.1\.attn", patched(), state)
    state["blocks.1.attn.rpe_k.lookup_table_weight"] = table
    state["head_dist.weight"] = state.pop("norm.weight")
    match = r"Only in the checkpoint: head_dist\.weight; only in the model: norm\.weight\. Norm"
    refused(ValueError, match, patched(), state)


def test_a_part_of_the_tables():
    state = state_of(patched(1))
    state["blocks.0.attn.rpe_q.lookup_table_weight"] = torch.ones(1, 8, 50)
    state["blocks.1.attn.rpe_q.lookup_table_weight"] = torch.ones(1, 8, 50)
    model = posenc.patch_model(tiny_vit.vit(), "irpe", on="qk")
    load(model, state)
    del state["blocks.1.attn.rpe_q.lookup_table_weight"]
    refused(ValueError, r"Only in the model: blocks\.1\.attn\.posenc\.irpe\.table_q$", model, state)


def test_another_encoding_or_one_more():
    state = state_of(patched(1))
    model = posenc.patch_model(tiny_vit.vit(), "swin")
    refused(ValueError, r"patched with swin, the irpe checkpoint needs irpe: call ", model, state)
    model = posenc.patch_model(tiny_vit.vit(), "irpe+peg")
    refused(ValueError, r"patched with irpe and peg, .* needs irpe: call ", model, state)


def test_a_model_that_is_not_patched():
    match = (
        r'is not patched.*posenc\.patch_model\(model, "irpe", mode=.contextual.*ratio=1\.9\) first'
    )
    refused(ValueError, match, tiny_vit.vit(), state_of(patched(1)))


def test_a_folded_model():
    model = posenc.patch_model(tiny_vit.vit(), "irpe", mode="bias").eval()
    new = "rpe_k.lookup_table_bias"
    state = {k.replace("posenc.irpe.table_k", new): v for k, v in model.state_dict().items()}
    posenc.fold_biases(model)
    refused(ValueError, r"folded.*before posenc\.fold_biases", model, state)


def test_no_module():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got dict"):
        load({}, {})


def test_a_model_without_memory():
    model = patched().to("meta")
    with pytest.raises(ValueError, match=r"the model's cls_token is on the meta device"):
        load(model, state_of(patched()))


def test_a_model_with_stages():
    """Its blocks have other names."""
    model = posenc.patch_model(windowed_models.swin(), "irpe")
    with pytest.raises(
        ValueError, match=r"SwinTransformer has no modules blocks\.<i>: .*plain vision"
    ):
        load(model, state_of(patched()))
