"""Which parameters are trained, and the groups of an optimizer."""

import oracles
import pytest
import tiny_windowed
import torch
from timm.optim import param_groups_weight_decay
from tiny_vit import images, snapshot, vit
from torch import nn

import posenc


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def ours(model):
    return {name for name, _ in posenc.encoding_parameters(model)}


# train_only_encodings

CASES = {
    "swin": {"encoding": "swin"},
    "three": {"encoding": "peg+irpe+learned"},
    "shared": {"encoding": "swin+irpe", "share": True},
    "hidden": {"encoding": "learned", "absolute": "hide"},
}


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_only_encodings_train(case, is_inside, is_frozen):
    model = posenc.patch_model(vit(), **CASES[case])
    model = nn.ModuleDict({"vit": model}) if is_inside else model
    if is_frozen:
        model.requires_grad_(False)
    before = [(id(parameter), parameter.tolist()) for parameter in model.parameters()]
    assert posenc.train_only_encodings(model) is model
    assert trainable(model) == ours(model) != set()
    assert before == [(id(parameter), parameter.tolist()) for parameter in model.parameters()]


@pytest.mark.parametrize(
    "also",
    [("head",), ["head.weight"], iter(("head", "blocks.1.mlp")), ("blocks.1.attn.qkv", "norm")],
)
def test_others_that_stay_trainable(also):
    also = list(also)
    model = posenc.train_only_encodings(posenc.patch_model(vit(), "swin"), also=iter(also))
    expected = {
        name
        for name, _ in model.named_parameters()
        if any(name == other or name.startswith(other + ".") for other in also)
    }
    assert trainable(model) == ours(model) | expected
    assert expected


def test_a_prefix_is_a_whole_name():
    model = posenc.patch_model(vit(depth=12), "swin")
    posenc.train_only_encodings(model, also=("blocks.1",))
    assert "blocks.1.mlp.fc1.weight" in trainable(model)
    assert "blocks.11.mlp.fc1.weight" not in trainable(model)


def test_a_step_changes_the_encodings_and_the_head_only():
    model = posenc.patch_model(vit(), "peg+irpe").train()
    for encoding in posenc.patched_encodings(model).values():
        oracles.randomize(encoding)
    posenc.train_only_encodings(model, also=("head",))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    groups = posenc.parameter_groups(model, lr=0.1, encoding_lr=0.1, weight_decay=0.1)
    optimizer = torch.optim.SGD(groups)
    model(images(model)).square().sum().backward()
    optimizer.step()
    changed = {n for n, parameter in model.named_parameters() if not parameter.equal(before[n])}
    assert changed == ours(model) | {"head.weight", "head.bias"}


REFUSED = {
    "unknown": (
        ("heed",),
        ValueError,
        r"also='heed' names no .*Did you mean 'head'.* Its modules are",
    ),
    "typo inside": (("blocks.1.mpl",), ValueError, r"Did you mean .*'blocks.1.mlp'"),
    "far": (
        ("xyzzy",),
        ValueError,
        r"names no module or parameter of the model. Its modules are pat",
    ),
    "empty": (("",), ValueError, r"also='' names no module"),
    "no parameters": (
        ("norm_pre",),
        ValueError,
        r"'norm_pre' has no parameters that could be trained",
    ),
    "second": (("head", "heed"), ValueError, r"also='heed' names no module"),
    "string": ("head", TypeError, r"also must be names such as \('head',\), got 'head'"),
    "none": (None, TypeError, r"also must be names such as \('head',\), got None"),
    "number": ((3,), ValueError, r"also=3 names no module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_are_not_there_change_nothing(case):
    also, error, message = REFUSED[case]
    model = posenc.patch_model(vit(), "swin")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        posenc.train_only_encodings(model, also=also)
    assert snapshot(model) == before


def test_models_without_encodings_to_train():
    with pytest.raises(ValueError, match=r"is not patched; call posenc.patch_model"):
        posenc.train_only_encodings(vit())
    folded = posenc.fold_biases(posenc.patch_model(vit(), "swin"))
    with pytest.raises(ValueError, match=r"encodings of the model have no parameters: .*folded"):
        posenc.train_only_encodings(folded)
    assert trainable(folded) == trainable(vit())


def test_unpatching_leaves_the_flags():
    model = posenc.train_only_encodings(posenc.patch_model(vit(), "swin"), also=("head",))
    posenc.unpatch_model(model)
    assert trainable(model) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("also", "expected"),
    [
        (("head",), {"head.weight", "head.bias"}),
        (
            ("head", "patch_embed"),
            {"head.weight", "head.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"},
        ),
    ],
)
def test_unpatching_does_not_train_the_hidden_table(also, expected):
    model = posenc.patch_model(vit(), "learned", absolute="hide")
    posenc.train_only_encodings(model, also=also)
    assert "pos_embed" not in trainable(model)
    posenc.unpatch_model(model)
    assert trainable(model) == expected


def test_the_hidden_table_inside_a_chosen_module():
    """DDP would wait for its gradient; without the patch it is trained as chosen."""
    model = nn.ModuleDict({"vit": posenc.patch_model(vit(), "learned", absolute="hide")})
    posenc.train_only_encodings(model, also=("vit",))
    off = {name for name, _ in model.named_parameters()} - trainable(model)
    assert off == {"vit.pos_embed"}
    posenc.unpatch_model(model)
    assert trainable(model["vit"]) == trainable(vit())


def test_the_hidden_table_cannot_be_chosen():
    model = posenc.patch_model(vit(), "learned", absolute="hide")
    with pytest.raises(
        ValueError, match=r"'pos_embed' has no parameters .*\"hide\" hides this table"
    ):
        posenc.train_only_encodings(model, also=("pos_embed",))


def test_training_everything_again_and_unpatching():
    model = posenc.patch_model(vit(), "learned", absolute="hide")
    posenc.train_only_encodings(model).requires_grad_(True)
    posenc.unpatch_model(model)
    assert trainable(model) == trainable(vit())


# parameter_groups


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_each_trainable_parameter_is_in_one_group(case, is_inside):
    model = posenc.patch_model(vit(prefix=5), **CASES[case])
    model = nn.ModuleDict({"vit": model, "other": nn.Linear(3, 3)}) if is_inside else model
    groups = posenc.parameter_groups(model, lr=0.1, encoding_lr=0.2, weight_decay=0.3)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    expected = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(listed) == sorted(expected)
    rates = [(group["lr"], group["weight_decay"]) for group in groups]
    assert rates == [(0.1, 0.3), (0.1, 0.0), (0.2, 0.0)]
    encodings = [id(parameter) for _, parameter in posenc.encoding_parameters(model)]
    assert sorted(map(id, groups[-1]["params"])) == sorted(encodings)


@pytest.mark.parametrize("build", [vit, lambda: tiny_windowed.build("swin")])
def test_decay_is_that_of_timm(build):
    model = posenc.patch_model(build(), "swin")
    encodings = {id(parameter) for _, parameter in posenc.encoding_parameters(model)}
    theirs = param_groups_weight_decay(model, 0.3, no_weight_decay_list=model.no_weight_decay())
    expected = {id(p): g["weight_decay"] for g in theirs for p in g["params"]}
    groups = posenc.parameter_groups(model, lr=0.1, encoding_lr=0.2, weight_decay=0.3)
    found = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert found == expected
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[key] for key, decay in found.items() if decay} == {
        name
        for name, p in model.named_parameters()
        if p.ndim > 1
        and id(p) not in encodings
        and "pos_embed" not in name
        and "cls_token" not in name
        and "relative_position_bias_table" not in name
    }


def test_the_models_own_names_hold_inside_a_wrapper():
    model = nn.ModuleDict({"vit": posenc.patch_model(vit(), "swin")})
    groups = posenc.parameter_groups(model, lr=0.1, encoding_lr=0.2, weight_decay=0.3)
    decaying = {id(parameter) for parameter in groups[0]["params"]}
    assert id(model["vit"].pos_embed) not in decaying
    assert id(model["vit"].head.weight) in decaying


def test_groups_without_parameters_are_left_out():
    model = posenc.train_only_encodings(posenc.patch_model(vit(), "swin"))
    (group,) = posenc.parameter_groups(model, lr=0.1, encoding_lr=0.2, weight_decay=0.3)
    assert (group["lr"], group["weight_decay"]) == (0.2, 0.0)
    folded = posenc.fold_biases(posenc.patch_model(vit(), "swin"))
    groups = posenc.parameter_groups(folded, lr=0.1, encoding_lr=0.2, weight_decay=0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        posenc.parameter_groups(model.requires_grad_(False), lr=0.1, encoding_lr=0.2)


@pytest.mark.parametrize("name", ["lr", "encoding_lr", "weight_decay"])
@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf"), "fast", None])
def test_numbers_that_no_optimizer_should_get(name, value):
    numbers = {"lr": 0.1, "encoding_lr": 0.2, "weight_decay": 0.3, name: value}
    with pytest.raises(ValueError, match=rf"parameter_groups: {name} must "):
        posenc.parameter_groups(posenc.patch_model(vit(), "swin"), **numbers)


def test_groups_need_a_patched_model():
    with pytest.raises(ValueError, match=r"is not patched; call posenc.patch_model"):
        posenc.parameter_groups(vit(), lr=0.1, encoding_lr=0.2)
