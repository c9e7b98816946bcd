"""The page of a run: its links lead somewhere, its numbers are the album's, it asks no network."""

import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
from findings.page import WORDS, write_page
from matplotlib import pyplot as plt
from pictures import PICTURES, draw
from training.config import Config


class Page(HTMLParser):
    """What a page links to, what it says, and which options are marked."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.words, self.marked = [], set(), [], []
        self.rows = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [attributes[name] for name in ("href", "src") if name in attributes]
        self.ids.add(attributes.get("id"))
        self.is_marked = (tag == "tr" and attributes.get("class") == "changed") or (
            tag in ("th", "td") and self.is_marked
        )
        self.rows += tag == "tr"
        self.in_name = tag == "th"

    def handle_data(self, text):
        self.words.append(text.strip())
        if text.strip() and self.in_name and self.is_marked:
            self.marked.append(text)


@pytest.fixture
def page(album, tmp_path):
    """With pictures of some sizes."""
    out = tmp_path / "pictures of it"
    out.mkdir()
    written = []
    for name, width in (("cmc", 3), ("rank10", 9)):
        figure = plt.figure(figsize=(width, 2))
        figure.savefig(out / f"{name}.png", dpi=100)
        written.append(out / f"{name}.png")
    (album.run / "evaluation").mkdir(exist_ok=True)
    (album.run / "evaluation" / "queries.csv").write_text("photo\n")
    return write_page(album, written, ["parts"], out)


def test_every_word_is_of_a_picture():
    assert set(WORDS) == set(PICTURES)


def test_links_lead_somewhere_without_a_network(page):
    read = Page(page)
    links = [link for link in read.links if link != "data:,"]
    for link in links:
        assert not re.match(r"\w+:|//", link), link
        if link.startswith("#"):
            assert link[1:] in read.ids, link
        else:
            assert (page.parent / unquote(link)).is_file(), link
    assert {link.rpartition("/")[2] for link in links if "#" not in link} == {
        *("cmc.png", "rank10.png", "config.json", "scores.json", "queries.csv")
    }


def test_numbers_are_those_of_the_album(page, album):
    words = Page(page).words
    expected = f"{100 * album.scores.mean_average_precision:.1f} %"
    assert next(filter(None, words[words.index("mAP") + 1 :])) == expected
    assert f"{100 * album.scores.rank(1):.1f} %" in words
    assert f"{len(album.data.query)} queries" in " ".join(words)
    assert any("parts" in word and "Nothing to show" in word for word in words)


def test_options_that_differ_are_marked(page, album):
    read, usual = Page(page), asdict(Config())
    changed = [name for name, value in asdict(album.config).items() if value != usual[name]]
    assert read.marked == [name.replace("_", "-") for name in changed]
    assert read.rows == len(usual) > len(changed) > 0


def test_large_pictures_have_the_whole_width(page):
    text = page.read_text()
    assert re.findall(r'class="card wide" id="(\w+)"', text) == ["rank10"]
    assert '<img src="cmc.png" alt="CMC" width="300" height="200"' in text


def test_names_are_no_markup(album, tmp_path):
    odd = replace(album, config=replace(album.config, encoding="<b>&"))
    text = write_page(odd, [], [], tmp_path).read_text()
    assert "<b>&lt;b&gt;&amp;</b>" in text


@pytest.mark.examples
@pytest.mark.slow
def test_page_in_a_browser(album, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on the path")
    write_page(album, draw(album, tmp_path, ["rank10", "cmc", "learning"]), [], tmp_path)
    arguments = "--no-sandbox --disable-gpu --disable-background-networking --disable-sync"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=arguments.split())
        grounds = {}
        for scheme, width in (("light", 390), ("dark", 1280)):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            asked, said = [], []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.on("console", lambda message, said=said: said.append(message.text))
            page.goto((tmp_path / "index.html").as_uri())
            page.evaluate("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
            page.wait_for_function("[...document.images].every(i => i.naturalWidth > 0)")
            assert page.evaluate("document.documentElement.scrollWidth") == width
            grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (said, [url for url in asked if not url.startswith(("file:", "data:"))]) == (
                [],
                [],
            )
        browser.close()
    assert grounds["light"] != grounds["dark"]
