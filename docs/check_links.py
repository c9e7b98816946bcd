"""Checks the pages that `make docs` made: each link leads somewhere, and none loads from a network.

python docs/check_links.py docs/_build/html
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}


class Page(HTMLParser):
    """What a page names: places in it, links, and files that it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Of each element."""
        values = dict(attrs)
        self.places |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if values.get(LOADED.get(tag, "")) and values.get("rel") != "canonical":
            self.loads.append(values[LOADED[tag]])


def faults(folder: Path) -> Iterator[str]:
    """What is wrong, a line each."""
    files = sorted(set(folder.rglob("*.html")) - set((folder / "_static").rglob("*")))
    pages = {path: Page(path.read_text("utf-8")) for path in files}
    for path, page in pages.items():
        where = path.relative_to(folder)
        for address in page.loads:
            if urlsplit(address).scheme in ("http", "https") or address.startswith("//"):
                yield f"{where} loads {address} from a network"
        for address in dict.fromkeys(page.links + page.loads):
            if not _leads_somewhere(address, path, pages):
                yield f"{where} links to {address}, which is not there"


def _leads_somewhere(address: str, path: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return True
    target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if target.is_dir():
        target = target / "index.html"
    if not parts.fragment or target not in pages:
        return target.is_file()
    return unquote(parts.fragment) in pages[target].places


def main() -> None:
    """Prints what is wrong, and ends with 1 where anything is."""
    if len(sys.argv) != 2 or not Path(sys.argv[1], "index.html").is_file():
        raise SystemExit(f"{__doc__}\nThere is no index.html: build the pages first")
    found = list(faults(Path(sys.argv[1]).resolve()))
    print("\n".join(found) or "every link leads somewhere")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
