"""Notebooks as pages of the site."""

import notebooks
from repository_files import DOCS, on_the_site

NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "What it does."]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "print(1)"], "outputs": ["1"]},
        {"cell_type": "markdown", "source": ["## End"]},
    ]
}
PAGE = """\
# Title

*This page is a notebook, [n.ipynb](https://example.org). The tests run it from top to bottom.*

What it does.

```python
print(1)
```

## End
"""


def test_a_page_has_the_text_and_the_code():
    assert notebooks.as_page(NOTEBOOK, "n.ipynb", "https://example.org") == PAGE


def test_links_to_a_notebook_lead_to_its_page():
    path = DOCS / "notebooks" / "what_does_it_look_at.ipynb"
    assert path.is_file()
    assert on_the_site(path) == path.with_suffix(".md")
