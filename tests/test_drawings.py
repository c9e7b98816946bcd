"""The drawings of the pages are what their script draws from the code of today."""

import drawings
import pytest


@pytest.mark.parametrize("name", drawings.DRAWINGS)
def test_the_stored_drawing_is_that_of_the_code(name):
    drawn = drawings.DRAWINGS[name]().svg()
    assert (drawings.DOCS / name).read_text() == drawn, "run python docs/drawings.py"
