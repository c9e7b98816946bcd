"""Maps of packages for class activation light up where the spots are, rows and columns right."""

import importlib

import pytest
import spots
import torch
from matplotlib.image import imread

EXAMPLES = {
    "with_captum": "captum",
    "with_grad_cam": "pytorch_grad_cam",
    "with_torchcam": "torchcam",
}


@pytest.fixture(scope="module")
def models():
    return dict(spots.models())


@pytest.fixture(params=EXAMPLES)
def example(request):
    package = EXAMPLES[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed")
    return importlib.import_module(request.param)


def peak(map_):
    """Row and column of the brightest of 6 x 10 patches."""
    patches = torch.nn.functional.adaptive_avg_pool2d(map_[None], (6, 10))
    return divmod(int(patches.argmax()), 10)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_each_spot_is_found_at_its_place(example, models, kind):
    maps = example.maps(models[kind], spots.example())
    assert {color: peak(map_) for color, map_ in maps.items()} == spots.PLACES


@pytest.mark.parametrize("change", ["turned", "of the prefix"])
def test_a_wrong_map_is_noticed(example, models, monkeypatch, change):
    def wrong(model):
        def transform(tokens):
            first = 5 if change == "turned" else 0
            kept = tokens[:, first : first + 60].transpose(1, 2)
            if change == "turned":
                return kept.unflatten(-1, (10, 6)).transpose(2, 3)
            return kept.unflatten(-1, (6, 10))

        return transform

    monkeypatch.setattr(example, "reshape_transform", wrong)
    for color, map_ in example.maps(models["vit"], spots.example()).items():
        assert peak(map_) != spots.PLACES[color]


def test_the_picture(tmp_path):
    maps = {kind: {color: torch.rand(6, 10) for color in spots.PLACES} for kind in ("vit", "swin")}
    spots.draw(maps, str(tmp_path / "x.png"))
    assert imread(tmp_path / "x.png").shape[:2] == (400, 900)
