"""What `load_state_dict` of a patched model says, and that its advice works."""

import re

import oracles
import pytest
import torch
from tiny_vit import images, snapshot, vit
from torch import nn

import posenc


def patched(names="irpe", seed=0, **options):
    model = posenc.patch_model(vit(seed=seed), names, **options)
    for index, encoding in enumerate(posenc.patched_encodings(model).values()):
        oracles.randomize(encoding, index)
    return model


def inside(model, is_inside):
    return nn.ModuleDict({"vit": model}) if is_inside else model


# A checkpoint of a model that was not patched

UNPATCHED = (
    r"none of the model's 2 encoding tables \((vit.)?blocks.0.attn.posenc.irpe.table_k, ...\), .*"
    r"Load first, then patch; or load with strict=False"
)


@pytest.mark.parametrize("is_inside", [False, True])
@pytest.mark.parametrize("options", [{}, {"strict": True}, {"assign": True}])
def test_an_unpatched_checkpoint_is_refused(options, is_inside):
    model = inside(patched(), is_inside)
    state = inside(vit(seed=5), is_inside).state_dict()
    before = snapshot(model)
    with pytest.raises(ValueError, match=UNPATCHED):
        model.load_state_dict(state, **options)
    assert snapshot(model) == before


@pytest.mark.parametrize("is_inside", [False, True])
def test_both_advices_for_an_unpatched_checkpoint_work(is_inside):
    source, model = vit(seed=5), patched()
    kept = {key: value.clone() for key, value in posenc.encoding_state_dict(model).items()}
    wrapped = inside(model, is_inside)
    missing, unexpected = wrapped.load_state_dict(
        inside(source, is_inside).state_dict(), strict=False
    )
    assert sorted(missing) == sorted(("vit." if is_inside else "") + key for key in kept)
    assert unexpected == []
    first = vit()
    first.load_state_dict(source.state_dict())
    posenc.patch_model(first, "irpe")
    x = images(source)
    with torch.no_grad():
        torch.testing.assert_close(first(x), source(x), rtol=1e-12, atol=1e-12)
        posenc.unpatch_model(model)
        assert torch.equal(model(x), source(x))


def test_a_model_whose_encodings_have_no_parameters_loads_strictly():
    model = patched("swin")
    posenc.fold_biases(model)
    for encoding in posenc.patched_encodings(model).values():
        for name in list(encoding._buffers):
            encoding.register_buffer(name, encoding.get_buffer(name), persistent=False)
    model.load_state_dict(vit(seed=5).state_dict())


class Override(nn.Module):
    """As some libraries do: their own `load_state_dict` around torch's."""

    def __init__(self, model):
        super().__init__()
        self.vit = model

    def load_state_dict(self, state_dict, *args, **options):
        return super().load_state_dict(state_dict, *args, **options)


def test_strictness_is_found_through_an_override():
    model = Override(patched())
    state = {f"vit.{key}": value for key, value in vit(seed=5).state_dict().items()}
    with pytest.raises(ValueError, match=UNPATCHED):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=UNPATCHED):
        model.load_state_dict(state, True)
    assert model.load_state_dict(state, False).unexpected_keys == []


# Half a set of encodings


def half(state, prefix=""):
    return {k: v for k, v in state.items() if k != f"{prefix}blocks.1.attn.posenc.irpe.table_k"}


@pytest.mark.parametrize("strict", [True, False])
def test_the_advice_for_half_a_set_works(strict):
    source, model = patched(seed=5), patched(seed=6)
    with pytest.raises(ValueError, match=r"1 of the model's 2 .*") as caught:
        model.load_state_dict(half(source.state_dict()), strict=strict)
    message = str(caught.value)
    assert re.search(r"posenc.patch_from_config with its posenc.encoding_config", message)
    assert re.search(r"leave all keys with '.posenc.' out and load with strict=False", message)

    fresh = posenc.patch_from_config(vit(), posenc.encoding_config(source))
    fresh.load_state_dict(source.state_dict())
    x = images(source)
    with torch.no_grad():
        assert torch.equal(fresh(x), source(x))

    kept = {key: value.clone() for key, value in posenc.encoding_state_dict(model).items()}
    rest = {k: v for k, v in half(source.state_dict()).items() if ".posenc." not in k}
    model.load_state_dict(rest, strict=False)
    assert torch.equal(model.head.weight, source.head.weight)
    for key, value in posenc.encoding_state_dict(model).items():
        assert torch.equal(value, kept[key])


# Tables that were cast


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.complex64])
@pytest.mark.parametrize("strict", [True, False])
def test_tables_cast_to_another_kind_of_number(dtype, strict):
    model = patched()
    state = dict(model.state_dict())
    state["blocks.1.attn.posenc.irpe.table_k"] = state["blocks.1.attn.posenc.irpe.table_k"].to(
        dtype
    )
    before = snapshot(model)
    message = (
        rf"blocks.1.attn.posenc.irpe.table_k is {dtype} instead of floating .*without the cast"
    )
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state, strict=strict)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", posenc.list_encodings())
def test_an_encoding_by_itself_refuses_them_too(name):
    sizes = {"num_heads": 2, "head_dim": 4, "embed_dim": 8}
    encoding = posenc.create_encoding(name, layout=posenc.TokenLayout(2, 3, 1), **sizes)
    before = {key: value.clone() for key, value in encoding.state_dict().items()}
    if not before:
        return  # fixed numbers: there is nothing to load
    state = {key: torch.ones_like(value, dtype=torch.int32) for key, value in before.items()}
    with pytest.raises(
        RuntimeError, match=r"is torch.int32 instead of floating point, .* not loaded"
    ):
        encoding.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in encoding.state_dict().items())
    encoding.load_state_dict({key: value.half() for key, value in before.items()})
