"""What all pictures promise."""

import inspect
import sys

import pytest
import tiny_global
import tiny_windowed
import torch
from matplotlib import pyplot as plt
from new_process import run_python
from tiny_vit import images, vit

from posenc import patch_model
from posenc.analysis import capture_attention, plot

EVERY = [getattr(plot, name) for name in plot.__all__]


def captured_of(model, x):
    with torch.no_grad(), capture_attention(model) as captured:
        model(x)
    return captured


def test_exports():
    assert [function.__name__ for function in EVERY] == plot.__all__
    for function in EVERY:
        assert {"ax", "figure"} & set(inspect.signature(function).parameters), function


@pytest.mark.parametrize("function", EVERY, ids=plot.__all__)
def test_without_matplotlib_the_extra_is_named(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = [None] * (2 if "image" in inspect.signature(function).parameters else 1)
    words = rf'^{function.__name__} draws with matplotlib.*: pip install "posenc\[viz\]"$'
    with pytest.raises(ModuleNotFoundError, match=words):
        function(*arguments)


@pytest.mark.slow
def test_matplotlib_is_imported_by_drawing_only():
    code = "import sys, posenc.analysis.plot; print('matplotlib' in sys.modules)"
    assert run_python(code).strip() == "False"


def test_each_makes_a_figure_and_shows_none(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_, **__: pytest.fail("shown"))
    model = patch_model(vit(), "human_part")
    captured = captured_of(model, images(model))
    photo = torch.rand(3, 12, 20)
    before = dict(plt.rcParams)
    for function, arguments in {
        plot.plot_attention: (photo, captured),
        plot.plot_bias: (model,),
        plot.plot_distance: (captured,),
        plot.plot_parts: (model,),
        plot.plot_rollout: (photo, captured),
        plot.plot_similarity: (model,),
    }.items():
        drawn = function(*arguments)
        figure = getattr(drawn, "figure", None) or drawn
        assert plt.gcf() is figure
        figure.canvas.draw()
        plt.close(figure)
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("name", ["swin", "maxvit", "pit"])
def test_grids_that_are_not_that_of_the_image(name):
    """Windows, and stages, which may have some."""
    model, case = tiny_windowed.build(name), tiny_windowed.CASES[name]
    x = torch.rand(1, 3, *case.image, dtype=torch.float64)
    sites = set(case.sites)
    assert captured_of(model, x).own_grids == sites
    patch_model(model, "swin", blocks=lambda site: site in sites)
    assert captured_of(model, x).own_grids == sites


def test_windows_in_some_blocks():
    model, case = tiny_global.build("sam"), tiny_global.CASES["sam"]
    found = captured_of(model, torch.rand(1, 3, *case.image, dtype=torch.float64))
    assert found.own_grids == {n for n, one in found.layouts.items() if one.grid != (3, 5)}
    assert 0 < len(found.own_grids) < len(found.layouts)


@pytest.mark.parametrize("options", [{}, {"dynamic_img_size": True}, {"prefix": 5}])
def test_grids_of_the_image(options):
    model = vit(**options)
    assert captured_of(model, images(model)).own_grids == set()
    patch_model(model, "swin", blocks=slice(0, 1))  # the other block is not patched
    assert captured_of(model, images(model)).own_grids == set()
