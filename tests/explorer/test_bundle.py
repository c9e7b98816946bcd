"""The page that is shipped is the one that its source gives, and stands on its own."""

import hashlib
import re
from pathlib import Path

import pytest

import posenc

EXPLORER = Path(posenc.__file__).parent / "explorer"
FRONT = EXPLORER / "front"
FILES = ("index.html", "package.json", "package-lock.json", "vite.config.js")


@pytest.fixture(scope="module")
def page():
    return (EXPLORER / "page.html").read_text()


def source_hash():
    sources = [path for path in (FRONT / "src").rglob("*") if path.is_file()]
    sources += [FRONT / name for name in FILES]
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(FRONT).as_posix(), path) for path in sources):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def test_page_is_built_from_the_source_beside_it(page):
    (recorded,) = re.findall(r'<meta name="posenc-source" content="(\w+)">', page)
    assert recorded == source_hash(), "the source has changed: run `make explorer`"


def test_data_have_one_line_of_their_own_before_the_script(page):
    (line,) = [n for n, text in enumerate(page.splitlines()) if "posenc data" in text]
    assert page.splitlines()[line] == "<!-- posenc data -->"
    assert page.index("<!-- posenc data -->") < page.index('<script type="module">')


def test_page_names_no_other_file(page):
    head = page[: page.index("<style>")]
    assert "default-src 'none'" in head  # the browser itself refuses whatever the page would load
    assert re.findall(r'(?:src|href)="([^"]*)"', head) == ["data:,"]
    assert not re.search(r"@import|url\((?![\"']?(?:data:|\$))", page)
    assert page.count("<script") == page.count("</script>") == 1


def test_page_is_small(page):
    assert len(page.encode()) < 64_000
