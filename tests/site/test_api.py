"""The API reference has every public name."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import tables

import posenc
from posenc.registry import encoding_class

API = Path(__file__).parents[2] / "docs" / "api"
PUBLIC = {
    *("posenc", "posenc.analysis", "posenc.analysis.plot"),
    *("posenc.explorer", "posenc.testing"),
}
LIST = re.compile(r"\.\. autosummary::\n   :toctree: generated\n\n((?:   \S+\n)+)")


def listed():
    """Full names, in all pages."""
    for page in API.glob("*.md"):
        for block in page.read_text().split("```{eval-rst}\n")[1:]:
            module = re.match(r"\.\. currentmodule:: (\S+)\n", block)
            for name in LIST.search(block)[1].split():
                yield f"{module[1]}.{name}" if module else name


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_public_name_is_listed(name):
    public = {each for each in importlib.import_module(name).__all__ if each != "__version__"}
    on_pages_of_their_own = {encoding_class(each).__name__ for each in tables.built_in()}
    expected = public - on_pages_of_their_own if name == "posenc" else public
    here = {each.removeprefix(f"{name}.") for each in listed() if each.startswith(f"{name}.")}
    assert {each for each in here if "." not in each} == expected


def submodules(name):
    module = importlib.import_module(name)
    return {each.name for each in pkgutil.iter_modules(module.__path__)}


def test_nothing_is_listed_twice():
    assert len(list(listed())) == len(set(listed()))


def test_every_module_of_functions_is_listed():
    found = {name for name in listed() if name.startswith("posenc.functional.")}
    assert found == {f"posenc.functional.{name}" for name in submodules("posenc.functional")}


def test_the_bases_of_terms_are_listed():
    bases = {base for term in (posenc.DenseBias, posenc.Rotation) for base in term.__mro__[1:]}
    names = {f"posenc.terms.{base.__name__}" for base in bases if "terms" in base.__module__}
    assert names <= set(listed())
