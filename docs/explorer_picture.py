"""Makes the picture of docs/explorer.md: the page of a photo, in a headless Chromium.

python docs/explorer_picture.py
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from posenc.cli import main as posenc

try:
    from matplotlib.cbook import get_sample_data
    from playwright.sync_api import sync_playwright
except ModuleNotFoundError as missing:
    raise SystemExit(f'{missing}: pip install ".[dev]"') from None

PICTURE = Path(__file__).parent / "explorer.png"
SIZE = {"width": 1280, "height": 735}
PLACE = "#subject=0&layer=4&head=1&query=93&mode=total"


def main() -> None:
    """Writes the page, opens it, and takes its picture."""
    photo = get_sample_data("grace_hopper.jpg", asfileobj=False)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        model = ["--model", "vit_small_patch16_224", "--encoding", "lookhere"]
        if posenc(["explore", str(photo), *model, "--out", str(page)]):
            raise SystemExit("no page was written")
        take(page.as_uri() + PLACE)


def take(address: str) -> None:
    """Of the page there."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("there is no Chromium on the path")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(address)
        page.wait_for_selector("article.view[data-subject='0']")
        page.screenshot(path=PICTURE)
        browser.close()


if __name__ == "__main__":
    main()
