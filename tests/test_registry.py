"""Names of encodings: what may be registered, and what a wrong name or option is told."""

import inspect

import pytest
from torch import nn

import posenc
from posenc import AttentionEncoding, SwinBias, TokenEncoding, TokenLayout, registry
from posenc.encodings.base import Encoding


class Plain(AttentionEncoding):
    def terms(self, q, k, layout, scale):
        return ()


class Halves(TokenEncoding):
    def encode(self, x, layout):
        return x / 2


class Unfinished(AttentionEncoding):
    pass


class Neither(Encoding):
    pass


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))


@pytest.mark.parametrize("cls", [Plain, Halves])
def test_a_registered_class_is_built_by_name(cls):
    posenc.register_encoding("mine", cls)
    posenc.register_encoding("mine", cls)  # as a notebook cell that runs again
    assert "mine" in posenc.list_encodings()
    sizes = {"num_heads": 2, "embed_dim": 8}
    built = posenc.create_encoding("mine", layout=TokenLayout(2, 3), **sizes)
    assert type(built) is cls


@pytest.mark.parametrize(
    ("name", "cls", "error", "message"),
    [
        ("mine", nn.Linear, TypeError, "'mine' must be a subclass of AttentionEncoding or Tok"),
        ("mine", Plain(TokenLayout(2, 3), 2), TypeError, "'mine' must be a subclass"),
        ("mine", None, TypeError, "'mine' must be a subclass .* got None"),
        ("mine", Neither, TypeError, "Neither must be derived from AttentionEncoding or TokenE"),
        ("mine", Unfinished, TypeError, "Unfinished is abstract, it must implement terms"),
        ("mine", AttentionEncoding, TypeError, "AttentionEncoding is abstract"),
        ("swin", Plain, ValueError, r"'swin' is taken by posenc\.encodings\.swin\.SwinBias"),
        ("Mine", Plain, ValueError, "must be a lower-case identifier, got 'Mine'"),
        ("my-own", Plain, ValueError, "must be a lower-case identifier, got 'my-own'"),
        (3, Plain, ValueError, "must be a lower-case identifier, got 3"),
        ("keys", Plain, ValueError, "cannot be named 'keys', torch modules use that name"),
        ("posenc", Plain, ValueError, "cannot be named 'posenc'"),
    ],
)
def test_what_cannot_be_registered(name, cls, error, message):
    before = posenc.list_encodings()
    with pytest.raises(error, match=message):
        posenc.register_encoding(name, cls)
    assert posenc.list_encodings() == before


@pytest.mark.parametrize("name", registry.RESERVED)
def test_arguments_of_patch_model_are_no_names(name):
    with pytest.raises(ValueError, match=f"'{name}' is an argument of patch_model"):
        posenc.register_encoding(name, Plain)


def test_reserved_names_are_those_of_patch_model():
    """And device and dtype, which it refuses as options."""
    parameters = inspect.signature(posenc.patch_model).parameters.values()
    named = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    assert set(registry.RESERVED) == named | {"device", "dtype"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("iprp", "irpe"),
        ("IRPE", "irpe"),
        ("Swin", "swin"),
        ("shwin", "swin"),
        ("sinusodial", "sinusoidal"),
        ("human-part", "human_part"),
        ("HumanPart", "human_part"),
        ("sincos", "sinusoidal"),
        ("sine", "sinusoidal"),
        ("ape", "learned"),
        ("APE", "learned"),
        ("absolute", "learned"),
        ("vit", "learned"),
        ("cpe", "peg"),
        ("CPVT", "peg"),
        ("relpos", "irpe"),
        ("rpe", "irpe"),
        ("cordonnier", "quadratic"),
        ("cordonier", "quadratic"),
        ("gaussian", "quadratic"),
        ("swin_bias", "swin"),
        ("RoPE", "rope"),
        ("rotary", "rope"),
        ("roformer", "rope"),
        ("rope-mixed", "rope_mixed"),
        ("relative position bias", "swin"),
        ("relative_position_bias", "swin"),
    ],
)
def test_a_wrong_name_is_told_what_may_have_been_meant(name, meant):
    with pytest.raises(ValueError, match=rf"unknown encoding '{name}'\. Did you mean '{meant}'\?"):
        posenc.create_encoding(name, layout=TokenLayout(2, 3))


@pytest.mark.parametrize("name", ["wxyz", "zzz", "xpos", "", "x1"])
def test_no_hint_where_nothing_is_near(name):
    with pytest.raises(ValueError, match=rf"unknown encoding '{name}'\. There are: .*human_part"):
        posenc.create_encoding(name, layout=TokenLayout(2, 3))


def test_a_hint_knows_what_was_registered():
    posenc.register_encoding("distance", Plain)
    with pytest.raises(ValueError, match=r"Did you mean 'distance'\?"):
        posenc.create_encoding("distanse", layout=TokenLayout(2, 3))


def test_other_words_are_hints_and_no_aliases():
    assert set(registry.OTHER_WORDS.values()) <= set(posenc.list_encodings())
    assert not set(registry.OTHER_WORDS) & set(posenc.list_encodings())


@pytest.mark.parametrize("name", [None, 3, SwinBias, ["swin"]])
def test_a_name_must_be_a_string(name):
    with pytest.raises(TypeError, match=r"name must be a string, one of .*human_part, .*; got"):
        posenc.create_encoding(name, layout=TokenLayout(2, 3), num_heads=2)


@pytest.mark.parametrize(
    ("name", "sizes", "missing"),
    [
        ("swin", {}, "num_heads"),
        ("irpe", {"num_heads": 2}, "head_dim"),
        ("irpe", {"head_dim": 4}, "num_heads"),
        ("peg", {"num_heads": 2, "head_dim": 4}, "embed_dim"),
    ],
)
def test_a_missing_size_is_named(name, sizes, missing):
    with pytest.raises(ValueError, match=f"{name} needs {missing}=..., which was not given"):
        posenc.create_encoding(name, layout=TokenLayout(2, 3), **sizes)
