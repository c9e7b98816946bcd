"""What is said about the effect of a freshly built encoding."""

import re
import warnings

import pytest
import torch
from tiny_vit import images, vit

import posenc
from posenc import AttentionEncoding, DenseBias, TokenLayout, fold_biases, patch_model, summary

SIZES = {"num_heads": 4, "head_dim": 8, "embed_dim": 16}


class Alibi(AttentionEncoding):
    """Does not say whether it has an effect, and has a large one."""

    is_static = True

    def terms(self, q, k, layout, scale):
        return DenseBias(-3.0 * torch.ones(layout.num_tokens, layout.num_tokens).tril()[None, None])


class Says(Alibi):
    def __init__(self, layout, num_heads, head_dim=None, *, start=True):
        super().__init__(layout, num_heads, head_dim)
        self.start = start

    def changes_at_start(self):
        return self.start


def test_an_encoding_that_does_not_say_is_unknown():
    text = "may give other outputs than before: whether Alibi has an effect from the start is unk"
    with pytest.warns(UserWarning, match=text) as record:
        model = patch_model(vit(), Alibi)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert summary(model).at_start == {"alibi": None}
    assert "[effect at start unknown]" in str(summary(model))
    assert "no effect" not in str(summary(model))
    fold_biases(model)
    assert summary(model).at_start == {"alibi": None}


@pytest.mark.parametrize(
    ("start", "said"), [(True, "changes the model at start"), (False, "no effect at start")]
)
def test_an_encoding_that_says(start, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = patch_model(vit(), Says, start=start)
    assert len(caught) == start
    assert f"[{said}]" in str(summary(model))
    fold_biases(model)
    assert f"[{said}]" in str(summary(model))


def test_known_and_unknown_together():
    message = r"gives other .*: Quadratic has .* \(quadratic=dict\(strength=0\) starts without\);"
    with pytest.warns(UserWarning, match=message) as record:
        model = patch_model(vit(), ["quadratic", Alibi])
    assert len(record) == 1
    assert "Alibi has an effect from the start is unknown" in str(record[0].message)
    assert summary(model).at_start == {"quadratic": True, "alibi": None}


@pytest.mark.parametrize("name", posenc.list_encodings())
def test_built_in_encodings_say_true_or_false(name):
    encoding = posenc.create_encoding(name, layout=TokenLayout(2, 3, 1), **SIZES)
    assert encoding.changes_at_start() in (True, False)


CHANGING = {
    "rope_mixed": {},
    "convit": {},
    "deberta": {},
    "liere": {"strength": 1.0},
    "quadratic": {},
    "tupe": {},
    "sinusoidal": {},
    "alibi_2d": {"learnable": True},
    "kerple_2d": {},
    "human_part": {"strength": 1.0},
    "swin": {"init": "paper"},
    "cpb": {"init": "paper"},
    "learned": {"init": "paper"},
    "peg": {"init": "paper"},
}


NO_OTHER_START = {"cosine", "lookhere", "rope"}  # none starts without effect and learns one


@pytest.mark.parametrize("name", sorted({*NO_OTHER_START, "alibi_2d"}))
def test_no_advice_where_there_is_no_start_without_effect(name):
    with pytest.warns(UserWarning, match=r"has an effect from the start$"):
        patch_model(vit(), name)


@pytest.mark.parametrize("name", sorted({*posenc.list_encodings()} - NO_OTHER_START))
def test_following_the_advice_works(name):
    """It names an option that the encoding has, with which outputs are as before."""
    model = vit(num_heads=4, embed_dim=32)
    x = images(model)
    before = model(x)
    if name in CHANGING:
        with pytest.warns(UserWarning, match=r"has an effect from the start \(") as record:
            patch_model(model, name, **CHANGING[name])
        assert not torch.allclose(model(x), before)
        posenc.unpatch_model(model)
        said = str(record[0].message)
        (option, value) = re.search(r"\((\w+)=(.*?) starts without\)", said).groups()
        advised = {option: 0.0 if value == "0" else value.strip("'")}
        patch_model(model, name, **CHANGING[name] | advised)
    else:
        patch_model(model, name)  # without a warning: warnings are errors
    torch.testing.assert_close(model(x), before)


def test_advice_for_several_works():
    model = vit()
    with pytest.warns(UserWarning, match=r"\(human_part=dict\(strength=0\) starts") as record:
        patch_model(model, "quadratic+human_part", human_part={"strength": 1.0})
    assert "(quadratic=dict(strength=0) starts without)" in str(record[0].message)
    patch_model(
        posenc.unpatch_model(model),
        "quadratic+human_part",
        quadratic={"strength": 0},
        human_part={"strength": 0},
    )
