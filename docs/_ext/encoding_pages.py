"""Makes docs/encodings: a page for each registered encoding, and one with all."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import encoding_figures
import tables

import posenc
from posenc.cli.listing import describe
from posenc.registry import encoding_class

PAGE = """\
# {name}

{summary}.

![{name}: {alt}](figures/{name}.png)

*{caption}*

| | |
| --- | --- |
{facts}

```python
import timm, posenc

vit = timm.create_model("vit_small_patch16_224", img_size=(256, 128))  # pretrained=True
model = posenc.patch_model(vit, "{name}")
```

```{{eval-rst}}
.. currentmodule:: posenc

.. autoclass:: {cls}
   :no-members:
```
"""
OVERVIEW = """\
---
html_theme.sidebar_secondary.remove: true
---

# Encodings

Every encoding has a page with its formula, its options and a figure of what it does.

{table}

```{{toctree}}
:hidden:
:maxdepth: 1

{names}
```
"""
SENTENCE_ENDS = re.compile(r"(?<=\S[.;])\s+(?=[A-Z`])|\s+- (?=\w)")
PREFIX_PAIRS = re.compile(r"\n    prefix_pairs:((?:.|\n {8})*)")
NOT_OURS = ("|", "The published code", "Published code")  # a table; what others do
# Sentences of a docstring that tell these facts.
TELLS_OF = {
    "Prefix tokens": re.compile(r"\bprefix\b", re.IGNORECASE),
    "Another grid": re.compile(r"\b(other|another|any) grids?\b|\bresampl", re.IGNORECASE),
}


def setup(app: Any) -> dict[str, bool]:
    """Makes the pages before any page is read."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _write(app: Any) -> None:
    folder = Path(app.srcdir, "encodings")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    names = tables.built_in()
    for name in names:
        _update(folder / f"{name}.md", page(name, folder / "figures" / f"{name}.png"))
    _update(folder / "index.md", overview(names))


def _update(path: Path, text: str) -> None:
    """Sphinx reads again what has another time."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def page(name: str, figure: Path) -> str:
    """Of one encoding; draws its figure, too."""
    cls, summary = encoding_class(name), describe(name).summary.rstrip(".")
    caption = encoding_figures.draw(name, figure)
    facts = "\n".join(f"| {fact} | {value} |" for fact, value in facts_of(name).items())
    return PAGE.format(
        name=name,
        summary=summary,
        alt=caption.partition(":")[0],
        caption=caption,
        facts=facts,
        cls=cls.__name__,
    )


def facts_of(name: str) -> dict[str, str]:
    """Those of the README's table, and what the docstring says of them."""
    row = dict(zip(tables.COLUMNS, tables.encoding_row(describe(name)), strict=True))
    module, doc = tables.at_its_usual_size(name), inspect.getdoc(encoding_class(name)) or ""
    return {
        "Acts": row["acts"],
        "Starts": row["starts"],
        "Parameters": f"{row['parameters']} in one place of a ViT-S/16 at 224 pixels",
        "Depends on": depends_on(module),
        "Costs as": row["costs as"],
        "Time of a ViT-S/16": time_of(name),
        **{fact: sentences(name, doc, fact) for fact in TELLS_OF},
        "Checked against": row["checked against"],
        "Paper": row["paper"],
    }


def time_of(name: str) -> str:
    """As measured."""
    times = tables.model_times(name)
    if not times:
        return "not measured"
    return f"{' and '.join(times)} of that without it, in inference and in training, on a CPU"


def depends_on(module: Any) -> str:
    """Whether content matters."""
    if isinstance(module, posenc.TokenEncoding):
        return "position and tokens" if module.placement != "position" else "position"
    return "position alone" if module.is_static else "position and content"


def sentences(name: str, doc: str, fact: str) -> str:
    """Those of a docstring that tell a fact, and the argument that does."""
    text, _, arguments = doc.partition("\nArgs:")
    text = re.split(r"\n(?:Initial effect|Raises|Reference|>>>)", text)[0]
    paragraphs = [p for p in text.split("\n\n")[1:] if not p.startswith(NOT_OURS)]
    found = [s for p in paragraphs for s in SENTENCE_ENDS.split(" ".join(p.split()))]
    found += [" ".join(f"`prefix_pairs`: {a}".split()) for a in PREFIX_PAIRS.findall(arguments)]
    told = [sentence for sentence in found if TELLS_OF[fact].search(sentence)]
    if not told:
        raise ValueError(f"the docstring of {name} has no sentence about: {fact.lower()}")
    return " ".join(told).replace("|", r"\|")


def overview(names: list[str]) -> str:
    """The README's table, each name a link."""
    table = re.sub(r"(?m)^\| `(\w+)`", r"| [`\1`](\1.md)", tables.table("encodings"))
    table = table.replace("](tests/", "](../../tests/")
    return OVERVIEW.format(table=table, names="\n".join(names))
