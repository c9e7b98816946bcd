"""The page docs/coverage.md: what `make sweep` found, and that a sample of it is true."""

import importlib.util
import pathlib
import re

import pytest
import timm
from timm.models import list_models

DOCS = pathlib.Path(__file__).parents[1] / "docs"
SAMPLE = {
    "vision_transformer": "vit_tiny_patch16_224",
    "deit": "deit_tiny_distilled_patch16_224",
    "eva": "eva02_tiny_patch14_224",
    "beit": "beit_base_patch16_224",
    "naflexvit": "naflexvit_base_patch16_gap",
    "vision_transformer_relpos": "vit_relpos_small_patch16_224",
    "vision_transformer_hybrid": "vit_tiny_r_s16_p8_224",
    "vitamin": "vitamin_small_224",
    "swin_transformer": "swin_tiny_patch4_window7_224",
    "swin_transformer_v2": "swinv2_tiny_window8_256",
    "swin_transformer_v2_cr": "swinv2_cr_tiny_224",
    "maxxvit": "coatnet_0_rw_224",
    "pit": "pit_ti_224",
    "lowformer": "lowformer_b0",
    "iformer": "iformer_t",
}


@pytest.fixture(scope="module")
def sweep():
    spec = importlib.util.spec_from_file_location("posenc_sweep", DOCS / "sweep.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page():
    return (DOCS / "coverage.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("module", SAMPLE)
def test_a_sample_is_what_the_page_says(module, sweep, page):
    name = SAMPLE[module]
    assert name in list_models(module=module)
    result = sweep.try_model((module, name))
    assert result.error == ""
    assert f"| `{name}` | {result.layouts} |" in page


def test_a_model_that_fails_is_a_row(sweep):
    result = sweep.try_model(("resnet", "resnet18"))
    assert "found no model that posenc knows in ResNet" in result.error


def test_the_page_lists_every_configuration(sweep, page):
    version = re.search(r"timm (\S+) and", page)[1]
    if version != timm.__version__:
        pytest.skip(f"the page was made with timm {version}")
    modules = sweep.global_modules()
    names = [name for module in modules for name in list_models(module=module)]
    assert len(names) == 326
    assert "326 of 326 configurations" in page
    assert all(f"| `{name}` |" in page for name in names)


def test_convolutional_configurations_do_not_count(sweep, page):
    result = sweep.try_model(("fastvit", "fastvit_t8"))
    assert (result.error, result.attention) == ("", ())
    assert "| `fastvit_t8` | no attention |" in page
    attention = sweep.Result("fastvit", "fastvit_sa12", ("Attention",), "8x8 (2)")
    failed = sweep.Result("fastvit", "other", error="ValueError")
    assert sweep.count([result, attention, failed]) == "1 of 2"
