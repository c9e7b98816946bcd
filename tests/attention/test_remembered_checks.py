"""What is remembered of a static term says nothing of another call, and nothing that changed."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import posenc
from posenc import AttentionEncoding, TokenLayout, attend, explain
from posenc.memo import Memo
from posenc.term_maps import map_tensors
from posenc.terms import DenseBias, LookupBias

LAYOUT = TokenLayout(2, 3, 1)


def qkv(heads=2, batch=2, **options):
    return [torch.randn(batch, heads, 7, 8, **options) for _ in range(3)]


def static_terms():
    encoding = posenc.create_encoding("swin", layout=LAYOUT, num_heads=2, head_dim=8).eval()
    q, k, _ = qkv()
    with torch.no_grad():
        return encoding(q, k, LAYOUT)


@torch.no_grad()
def test_a_term_is_checked_once_for_calls_of_one_size(monkeypatch):
    terms, checked = static_terms(), []
    check = LookupBias.check
    monkeypatch.setattr(LookupBias, "check", lambda *args: checked.append(1) or check(*args))
    for _ in range(3):
        attend(*qkv(), terms)
    assert len(checked) == 1
    attend(*qkv(batch=3), terms)
    assert len(checked) == 2


@torch.no_grad()
def test_another_size_is_checked_again():
    terms = static_terms()
    attend(*qkv(), terms)
    with pytest.raises(ValueError, match=r"LookupBias\.lookup must have shape"):
        attend(*qkv(heads=3), terms)
    attend(*qkv(), terms)
    with pytest.raises(ValueError, match="has 7 tokens, but the queries have 6"):
        attend(*(x[:, :, 1:] for x in qkv()), terms)


@torch.no_grad()
def test_another_device_is_checked_again():
    terms = static_terms()
    attend(*qkv(), terms)
    with pytest.raises(ValueError, match=r"LookupBias\.lookup is on cpu, the query on meta"):
        attend(*qkv(device="meta"), terms)


@torch.no_grad()
@pytest.mark.parametrize("by", ["replace", "map_tensors"])
def test_a_term_of_other_tensors_has_nothing_of_the_first(by):
    (term,), (q, k, v) = static_terms(), qkv()
    term.lookup.normal_()
    before = attend(q, k, v, term)
    if by == "replace":
        other = dataclasses.replace(term, lookup=3 * term.lookup)
    else:
        other = map_tensors(term, lambda _, tensor: 3 * tensor)
    after = attend(q, k, v, other)
    assert (after - before).abs().max() > 1e-2
    torch.testing.assert_close(after, attend(q, k, v, other, backend="reference"))
    with pytest.raises(ValueError, match=r"LookupBias\.lookup must have shape"):
        attend(q, k, v, dataclasses.replace(term, lookup=term.lookup[..., 1:]))


@torch.no_grad()
def test_each_condition_of_the_choice_is_asked_anew(monkeypatch):
    terms, own = static_terms(), "built once"
    attend(*qkv(), terms)
    assert own in explain(*qkv(), terms).why
    assert own not in explain(*qkv(), (*terms, DenseBias(torch.zeros(1, 1, 7, 7)))).why
    assert own not in explain(*qkv(), ()).why
    with torch.enable_grad():
        mask = torch.zeros(7, 7, requires_grad=True)
        assert own not in explain(*qkv(), terms, attn_mask=mask).why
    posenc.memo.clear_cache()
    assert own in explain(*qkv(), terms).why
    monkeypatch.setattr(Memo, "LIMIT_BYTES", 0)
    assert own not in explain(*qkv(), terms).why


@torch.no_grad()
def test_what_is_held_is_used_beyond_the_budget(monkeypatch):
    terms = static_terms()
    attend(*qkv(), terms)
    monkeypatch.setattr(Memo, "LIMIT_BYTES", 0)
    assert "built once" in explain(*qkv(), terms).why


class Times(nn.Module):
    """A parametrisation without parameters."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


@torch.no_grad()
def test_a_second_parametrisation_of_a_parameter_is_seen():
    encoding = posenc.create_encoding("swin", layout=LAYOUT, num_heads=2, head_dim=8).eval()
    encoding.table.normal_()
    q, k, v = qkv()
    results = []
    for factor in (2.0, 3.0):
        parametrize.register_parametrization(encoding, "table", Times(factor))
        results.append(attend(q, k, v, encoding(q, k, LAYOUT)))
        terms = encoding.terms(q, k, LAYOUT, 1.0)
        torch.testing.assert_close(results[-1], attend(q, k, v, terms, backend="reference"))
    assert (results[1] - results[0]).abs().max() > 1e-2


class WithChild(AttentionEncoding):
    """A bias from a child's parameter and a buffer; one parameter and one child are missing."""

    is_static = True
    is_sized_by_prefix = False

    def __init__(self, layout, num_heads, head_dim):
        super().__init__(layout, num_heads, head_dim)
        self.child = nn.Linear(1, 1, bias=False)
        self.register_buffer("offset", torch.zeros(()))
        self.register_parameter("missing", None)
        self.register_module("absent", None)

    def terms(self, q, k, layout, scale):
        tokens = torch.arange(7.0)
        return DenseBias((self.child.weight * tokens + self.offset * tokens**2).expand(1, 1, 7, 7))


@torch.no_grad()
@pytest.mark.parametrize("name", ["child.weight", "offset"])
def test_the_state_of_children_and_buffers_is_seen(name):
    encoding = WithChild(LAYOUT, 2, 8).eval()
    q, k, v = qkv()
    before = attend(q, k, v, encoding(q, k, LAYOUT))
    torch.testing.assert_close(attend(q, k, v, encoding(q, k, LAYOUT)), before)
    encoding.state_dict()[name].data.add_(1)
    after = attend(q, k, v, encoding(q, k, LAYOUT))
    assert (after - before).abs().max() > 1e-3
    terms = encoding.terms(q, k, LAYOUT, 1.0)
    torch.testing.assert_close(after, attend(q, k, v, terms, backend="reference"))
