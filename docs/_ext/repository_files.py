"""Pages that are files elsewhere in the repository, and links to files that are no pages.

Pages name files by relative paths, as GitHub understands them. A page of one line, such as
`<!-- text of ../CHANGELOG.md -->`, gets the text of that file, with its paths made right. A link to
a file outside the documentation leads to the repository once pyproject.toml names its address, and
is plain text before.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
TEXT_OF = re.compile(r"<!-- text of (\S+) -->\s*")
LINK = re.compile(
    r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<path>[^\s():#]+)(?P<anchor>#[^\s()]*)?\)"
)

PAGES = {  # of files that are another page on the site, or its text
    DOCS / "gallery" / "GALLERY_HEADER.rst": DOCS / "auto_gallery" / "index.rst",
    DOCS / "encodings_table.md": DOCS / "encodings" / "index.md",
    ROOT / "examples" / "reid" / "README.md": DOCS / "reid" / "index.md",
    ROOT / "CHANGELOG.md": DOCS / "changelog.md",
}


def setup(app: Any) -> dict[str, bool]:
    """Changes what is read, before other extensions see it."""
    app.connect("source-read", _read, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _read(app: Any, page: str, source: list[str]) -> None:
    path = origin = DOCS / f"{page}.md"
    if found := TEXT_OF.fullmatch(source[0]):
        origin = (path.parent / found[1]).resolve()
        source[0] = origin.read_text("utf-8")
        app.env.note_dependency(origin)
    if path.exists():
        address = repository((ROOT / "pyproject.toml").read_text("utf-8"))
        source[0] = with_links(source[0], origin.parent, path.parent, address)


def on_the_site(path: Path) -> Path:
    """The page of a file, or the file."""
    if path.parent == DOCS / "gallery" and path.suffix == ".py":
        return DOCS / "auto_gallery" / f"{path.stem}.rst"
    if path.suffix == ".ipynb":
        return path.with_suffix(".md")
    return PAGES.get(path, path)


def repository(project: str) -> str | None:
    r"""Its address, from the text of pyproject.toml.

    >>> repository('[project.urls]\nRepository = "https://example.org/posenc"')
    'https://example.org/posenc'
    """
    found = re.search(r'^(?:Repository|Source) = "(.+)"', project, re.MULTILINE | re.IGNORECASE)
    return found and found[1].rstrip("/")


def with_links(text: str, folder: Path, page_folder: Path, address: str | None) -> str:
    """The text of a file in `folder`, as a page in `page_folder`."""

    def anew(link: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / link["path"]))
        if not path.exists():
            return link[0]  # no link, or one that Sphinx warns of
        path = on_the_site(path)
        if link["image"] or path.is_relative_to(DOCS):
            target = Path(os.path.relpath(path, page_folder)).as_posix()
            return f"{link['image']}[{link['text']}]({target}{link['anchor'] or ''})"
        if address is None:
            return link["text"]
        return f"[{link['text']}]({address}/blob/main/{path.relative_to(ROOT).as_posix()})"

    return LINK.sub(anew, text)
