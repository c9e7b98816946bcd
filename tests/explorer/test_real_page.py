"""A page as `make_page` writes it, in a real browser: its weights are those of the model."""

import shutil

import pytest
import torch
from capture_cases import patched
from tiny_vit import images, vit

from posenc.analysis import capture_attention
from posenc.explorer import Exhibit, Picture, make_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path")
@pytest.mark.parametrize("encoding", ["swin", "irpe", "quadratic"])  # all forms of a bias
def test_weights_in_the_page_are_those_of_the_model(encoding, tmp_path):
    model = patched(encoding, vit(2))
    (pixels,) = images(model, 1)
    exhibit = Exhibit(model, "tiny", "random", [Picture("x.png", pixels, torch.rand(3, 24, 40))])
    (tmp_path / "page.html").write_bytes(make_page([exhibit], num_crops=6))
    with torch.no_grad(), capture_attention(model) as captured:
        model(pixels[None])
    asked = [(layer, head, query) for layer in (0, 1) for head in (0, 1) for query in range(17)]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        told = page.evaluate(
            """asked => asked.map(([layer, head, query]) => Array.from(
                posenc.weights({subject: 0, layer, head, query, mode: "total"})))""",
            asked,
        )
        browser.close()
    for (layer, head, query), row in zip(asked, told, strict=True):
        expected = captured.attention[f"blocks.{layer}.attn"][0, head, query]
        assert (torch.tensor(row) - expected).abs().max() <= 2e-2 * expected.max()
