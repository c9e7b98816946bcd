"""The code of docs/analysis.md runs, and its pictures are those of this code."""

import re

import figures
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from posenc.analysis import plot

PAGE = figures.PAGE


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_each_picture_is_that_of_the_code_above_it():
    shown = 0
    for path, figure in figures.figures():
        width, height = (round(100 * side) for side in figure.get_size_inches())
        with Image.open(path) as picture:
            assert picture.size == pytest.approx((width, height), abs=1), path
        assert any(ax.images or ax.lines for ax in figure.axes), path
        plt.close(figure)
        shown += 1
    assert shown == len(list((PAGE.parent / "analysis").iterdir())) == 7


def test_pictures_are_small():
    for path in (PAGE.parent / "analysis").iterdir():
        assert path.stat().st_size < figures.LARGEST, path


def test_the_page_shows_every_function():
    called = set(re.findall(r"plot\.(plot_\w+)\(", PAGE.read_text()))
    assert called == set(plot.__all__)
