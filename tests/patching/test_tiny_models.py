"""The tiny windowed models are what their cases say, before posenc sees them."""

from __future__ import annotations

import oracles
import pytest
import tiny_windowed
import torch
from eager_attention import biased_attention
from tiny_windowed import CASES


@pytest.mark.parametrize("name", CASES)
def test_without_a_bias_the_oracle_is_the_model(name):
    model, x = tiny_windowed.build(name), tiny_windowed.images(name)
    flags = {n: m.fused_attn for n, m in model.named_modules() if hasattr(m, "fused_attn")}
    with torch.no_grad():
        expected = model(x)
        with biased_attention(model):
            actual = model(x)
    assert expected.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert flags == {n: m.fused_attn for n, m in model.named_modules() if hasattr(m, "fused_attn")}


@pytest.mark.parametrize("name", CASES)
def test_sites_see_what_the_case_says(name):
    case, model = CASES[name], tiny_windowed.build(name)
    with torch.no_grad(), biased_attention(model) as calls:
        model(tiny_windowed.images(name))
    assert sorted(call.name for call in calls) == sorted([*case.sites, *case.others])
    for call in calls:
        if call.name not in case.sites:
            continue
        expected = case.sites[call.name]
        height, width, prefix = expected.layout
        assert call.q.shape[1:] == (expected.num_heads, prefix + height * width, expected.head_dim)
        assert call.k.shape[-2] == call.q.shape[-2]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sites])
def test_a_bias_at_any_site_changes_the_output(name):
    model, x = tiny_windowed.build(name), tiny_windowed.images(name)
    with torch.no_grad():
        plain = model(x)
        for site, expected in CASES[name].sites.items():
            tokens = expected.layout[2] + expected.layout[0] * expected.layout[1]
            table = torch.linspace(-3, 3, tokens**2, dtype=torch.float64).view(tokens, tokens)
            table = table.sin() * 4

            def bias(caller, q, k, site=site, table=table):
                return table if caller == site else 0.0

            with biased_attention(model, bias):
                assert (model(x) - plain).abs().max() > 1e-6, site


@pytest.mark.parametrize("name", ["swin", "swin_small_stage", "maxvit", "maxxvit", "coatnet"])
def test_a_bias_is_the_same_as_a_change_of_the_own_table_of_the_model(name):
    """The models' own relative tables are swin's: an independent check of the oracle."""
    model, x = tiny_windowed.build(name), tiny_windowed.images(name)
    changes = {}
    for index, (site, expected) in enumerate(CASES[name].sites.items()):
        attention = model.get_submodule(site)
        own = getattr(attention, "rel_pos", attention).relative_position_bias_table
        generator = torch.Generator().manual_seed(index)
        change = torch.randn(own.shape, generator=generator, dtype=own.dtype)
        changes[site] = (own, change, oracles.swin_bias(change.T, *expected.layout))
    with torch.no_grad():
        with biased_attention(model, lambda site, q, k: changes[site][2]):
            biased = model(x)
        plain = model(x)
        for own, change, _ in changes.values():
            own.add_(change)
        changed = model(x)
    torch.testing.assert_close(biased, changed, rtol=1e-9, atol=1e-9)
    assert (changed - plain).abs().max() > 1e-3
