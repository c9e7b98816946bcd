"""The page of each encoding: its facts, and the numbers of its figure."""

import inspect

import encoding_figures
import encoding_pages
import pytest
import tables
import torch

import posenc
from posenc.registry import encoding_class


@pytest.mark.parametrize("fact", encoding_pages.TELLS_OF)
@pytest.mark.parametrize("name", tables.built_in())
def test_each_docstring_tells_of_prefix_tokens_and_other_grids(name, fact):
    assert encoding_pages.sentences(name, inspect.getdoc(encoding_class(name)), fact)


def test_a_docstring_that_does_not_is_named():
    with pytest.raises(ValueError, match="docstring of mine has no sentence about: prefix tokens"):
        encoding_pages.sentences("mine", "Mine.\n\nAnother grid is resampled.", "Prefix tokens")


def test_facts():
    facts = encoding_pages.facts_of("irpe")
    assert facts["Depends on"] == "position and content"
    assert facts["Parameters"].startswith("3,200 in")
    assert facts["Prefix tokens"].startswith("`prefix_pairs`: pairs with a prefix token get no")
    assert facts["Another grid"] == "Other grids need no resampling: the buckets are recomputed."
    assert encoding_pages.facts_of("peg")["Prefix tokens"].endswith("prefix tokens pass by.")


def test_a_page(tmp_path):
    page = encoding_pages.page("swin", tmp_path / "swin.png")
    assert (tmp_path / "swin.png").stat().st_size > 2000
    assert page.startswith("# swin\n\nOne learned number per head and offset")
    assert ".. autoclass:: SwinBias" in page
    assert "start at zero have random values" in page


def test_all_encodings_are_named_and_linked():
    names = tables.built_in()
    page = encoding_pages.overview(names)
    assert all(f"| [`{name}`]({name}.md) |" in page for name in names)
    assert page.split("```{toctree}")[1].split()[-1 - len(names) : -1] == names


def test_attention_between_equal_tokens_is_the_bias():
    layout = posenc.TokenLayout(3, 5, prefix=2)
    encoding = posenc.create_encoding("alibi_2d", layout=layout, num_heads=2, head_dim=16)
    rows, columns = torch.meshgrid(torch.arange(3) - 1, torch.arange(5) - 2, indexing="ij")
    slopes = torch.tensor([2.0**-4, 2.0**-8])[:, None, None]
    expected = -slopes * (rows**2 + columns**2).sqrt()
    expected = expected - expected.mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(encoding_figures.attention_between_equals(encoding), expected)


def test_what_is_not_seen_is_no_part_of_the_mean():
    layout = posenc.TokenLayout(3, 5, prefix=1)
    encoding = posenc.create_encoding("lookhere", layout=layout, num_heads=4, head_dim=16)
    maps = encoding_figures.attention_between_equals(encoding)
    seen = maps.isfinite()
    assert (~seen).any()
    assert maps[seen].sum().abs() < 1e-5


def test_what_a_patch_passes_on_is_the_kernel_mirrored():
    layout = posenc.TokenLayout(5, 7, prefix=1)
    encoding = posenc.create_encoding("peg", layout=layout, embed_dim=4)
    torch.nn.init.normal_(encoding.weight)
    torch.nn.init.normal_(encoding.bias)
    with torch.no_grad():
        maps = encoding_figures.passed_on(encoding)
    torch.testing.assert_close(maps[:, 1:4, 2:5], encoding.weight.detach()[:, 0].flip(1, 2))
    assert maps[:, 0].abs().max() < 1e-6
