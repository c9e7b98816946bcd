"""Builds the documentation: `make docs`, which writes docs/_build/html and checks its links."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "_ext")]

from source_links import linkcode_resolve as linkcode_resolve  # noqa: E402

import posenc  # noqa: E402

project = "posenc"
author = "the authors of posenc"
project_copyright = "2026, the authors of posenc"
version = release = posenc.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.linkcode",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    # Our own, in _ext.
    "docstrings",
    "encoding_pages",
    "live_explorer",
    "llms_txt",
    "notebooks",
    "repository_files",
    "site_only",
]
# What is read as a part of other pages, or no page.
exclude_patterns = ["_build", "_site", "encodings_table.md", "gallery", "**.ipynb"]
templates_path = ["_templates"]

# There is no MathJax: formulas are code spans, which read the same in a docstring, in `help` and on
# GitHub. There is no intersphinx either: a build asks nothing of a network.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 4
default_role = "code_name"

smartquotes = False  # options are strings, to be copied as they are

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autosummary_generate = True
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!posenc\.).*"),  # types of other packages
    ("py:obj", r"posenc\.(attention\.lower|memo\.LIMIT_BYTES)"),  # named, and not public
    # In signatures: type variables, aliases, and what `PairIndex` makes itself.
    ("py:class", r"posenc\.(pairs\.(Lines|OffsetTable)|patching\.patch\.Model)"),
    ("py:class", r"posenc\.patching\.models\.registered\.AttentionClass"),
]

copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs are left behind

# In the gallery; a page that shows the warning would show the path of its script, too.
warnings.filterwarnings("ignore", "posenc: the patched model gives other outputs")
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "backreferences_dir": "auto_gallery/backreferences",
    "doc_module": ("posenc",),
    "reference_url": {"posenc": None},
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": (),
    "download_all_examples": False,
    "min_reported_time": 600,
    "show_signature": False,
    "write_computation_times": False,
    "copyfile_regex": r"",
}

html_theme = "pydata_sphinx_theme"
html_title = f"posenc {release}"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
# There is no version switcher: it needs the addresses of published versions, and none is published
# yet. The title names the version.
html_context = {"default_mode": "auto"}  # dark where the reader's system is
html_theme_options = {
    "logo": {"text": html_title},
    "navbar_align": "left",
    "header_links_before_dropdown": 9,
    "navbar_persistent": ["search-button"],
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
