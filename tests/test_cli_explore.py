"""`posenc explore`: its page, which models it compares, its errors, and what is left behind."""

import os
import sys
from pathlib import Path

import pytest
import timm
import torch
from matplotlib.cbook import get_sample_data
from page_reader import Page
from PIL import Image

import posenc
from posenc.analysis import capture_attention
from posenc.cli import main, photo

MODEL = "vit_tiny_patch16_224"
SIZE = ["--img-size", "32", "48"]
SMALL = [*SIZE, "--model", MODEL]
PHOTO = get_sample_data("grace_hopper.jpg", asfileobj=False)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _two_blocks(monkeypatch):
    create = timm.create_model

    def shallow(name, **options):
        return create(name, **options, **({"depth": 2} if name.startswith("vit") else {}))

    monkeypatch.setattr(timm, "create_model", shallow)


def run(capsys, *arguments):
    try:
        code = main(["explore", *map(str, arguments)])
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out, err


def page(path="grace_hopper-explore.html"):
    with open(path, "rb") as file:
        return Page(file.read())


def test_the_page_is_in_the_folder(capsys):
    code, out, err = run(capsys, PHOTO, *SMALL)
    assert (code, out) == (0, "grace_hopper-explore.html (0.1 MB)\n")
    assert "Error" not in err
    assert os.listdir() == ["grace_hopper-explore.html"]
    data = page().data
    assert data["version"] == posenc.__version__
    (model,) = data["models"]
    assert (model["name"], model["weights"]) == (MODEL, "random weights (seed 0)")
    assert [layer["name"] for layer in model["layers"]] == ["blocks.0.attn", "blocks.1.attn"]
    assert model["layers"][0]["prefix"] == ["CLS"]
    assert (model["layers"][0]["height"], model["layers"][0]["width"]) == (2, 3)
    image = data["subjects"][0]["image"]
    assert image["name"] == "grace_hopper.jpg"
    assert image["height"] * 3 == image["width"] * 2 >= 896  # sharper than what the model saw


def test_its_attention_is_that_of_the_model(capsys):
    run(capsys, PHOTO, *SMALL, "--seed", 3)
    torch.manual_seed(3)
    model = timm.create_model(MODEL, img_size=(32, 48)).eval()
    pixels, _ = photo.prepare(Image.open(PHOTO).convert("RGB"), model, [32, 48])
    with torch.no_grad(), capture_attention(model) as captured:
        model(pixels[None])
    for layer, weights in enumerate(captured.attention.values()):
        torch.testing.assert_close(
            page().weights(0, layer), weights[0].double(), rtol=5e-3, atol=1e-4
        )


def test_two_images_and_two_models(capsys):
    Image.new("RGB", (60, 40), "teal").save("teal.png")
    more = ["--model", MODEL, "--encoding", "swin", "--model", MODEL, "--encoding", "rope"]
    code, _, err = run(capsys, PHOTO, "teal.png", *SIZE, *more, "--seed", 1, "--out", "both.html")
    assert code == 0
    assert "RoPE has an effect from the start" in err
    data = page("both.html").data
    assert [model["weights"] for model in data["models"]] == [
        "random weights (seed 0), encoding swin as it starts",
        "random weights (seed 1), encoding rope as it starts",
    ]
    seen = [(one["model"], one["image"]["name"]) for one in data["subjects"]]
    assert seen == [(m, name) for m in (0, 1) for name in ("grace_hopper.jpg", "teal.png")]
    layers = [one["layers"][0]["parts"][0]["biases"] for one in data["subjects"]]
    assert [len(biases) for biases in layers] == [1, 1, 0, 0]


def test_a_checkpoint_beside_random_weights(capsys):
    model = timm.create_model(MODEL, img_size=(32, 48))
    torch.save(model.state_dict(), "own.pt")
    code, _, _ = run(capsys, PHOTO, *SMALL, "--checkpoint", "own.pt", "--model", MODEL)
    assert code == 0
    words = [model["weights"] for model in page().data["models"]]
    assert words == ["weights of own.pt", "random weights (seed 0)"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "required: IMAGE, --model"),
        ([PHOTO, "--mod", MODEL, *SMALL], 2, "unrecognized arguments: --mod"),
        ([PHOTO, "--model", "no_such_model"], 2, "is no timm model"),
        (["nothing.png", *SMALL], 2, "cannot read the image nothing.png: No such file"),
        ([PHOTO, *SMALL, "--encoding", "nope"], 2, "nope"),
        ([PHOTO, *SMALL, "--checkpoint", "nothing.pt"], 2, "cannot read nothing.pt: No such file"),
        ([PHOTO, *SMALL, "--out", "no/page.html"], 2, "cannot write no/page.html: No such file"),
        ([PHOTO, *SMALL, "--pretrained", "--checkpoint", "x"], 2, "not allowed with"),
        ([PHOTO, "--model", "resnet18"], 1, "resnet18 is refused: "),
        ([PHOTO, "--model", "vit_tiny_patch16_224", "--img-size", "0", "3"], 2, "must be positive"),
        ([PHOTO, "--model", "vit_tiny_patch16_224", "--img-size", "8", "32"], 2, "than a patch"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(capsys, arguments, code, words):
    result, out, err = run(capsys, *arguments)
    assert (result, out) == (code, "")
    assert err.count("\n") == 1
    assert err.startswith("posenc")
    assert words in err
    assert os.listdir() == []


def test_not_over_the_image(capsys):
    Image.new("RGB", (60, 40)).save("a.html", "PNG")
    before = Path("a.html").read_bytes()
    code, _, err = run(capsys, "a.html", *SMALL, "--out", "a.html")
    assert (code, err) == (2, "posenc: --out a.html is an image itself\n")
    assert Path("a.html").read_bytes() == before


def test_without_a_bar(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run(capsys, PHOTO, *SMALL)[2] == ""
