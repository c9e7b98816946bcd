"""`posenc look`: its picture, which weights it draws, its errors, and what is left behind."""

import os
import sys

import numpy as np
import pytest
import timm
import torch
from drawn import marked, numbers, panels
from matplotlib.cbook import get_sample_data
from PIL import Image

import posenc
from posenc.analysis import capture_attention
from posenc.cli import look, main, photo

MODEL = "vit_tiny_patch16_224"
SMALL = ["--model", MODEL, "--img-size", "64", "96"]
PHOTO = get_sample_data("grace_hopper.jpg", asfileobj=False)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments):
    try:
        code = main(["look", *map(str, arguments)])
    except SystemExit as left:
        code = left.code
    out, err = capsys.readouterr()
    return code, out, err


def drawn(*arguments):
    """The figure that the command would write."""
    from posenc.cli import parser

    arguments = parser().parse_args(["look", PHOTO, *map(str, arguments)])
    return look.draw(photo.read(arguments.image), arguments)


def titles(figure):
    return [ax.get_title() for ax in panels(figure)]


def test_the_picture_is_in_the_folder(capsys, tmp_path):
    assert run(capsys, PHOTO, *SMALL) == (0, "grace_hopper-look.png\n", "")
    assert os.listdir() == ["grace_hopper-look.png"]
    with Image.open("grace_hopper-look.png") as picture:
        assert picture.width == 1000
        assert 500 < picture.height < 800
        assert len(picture.convert("RGB").getcolors(2**20)) > 1000


def test_what_the_model_saw_is_what_is_drawn():
    name = "deit_tiny_patch16_224"  # with another mean than standard deviation
    size = ["--img-size", 64, 96]
    figure = drawn("--model", name, *size, "--query", 1, 4, "--layer", "blocks.3.attn")
    first, rolled, *rest = panels(figure)
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=(64, 96)).eval()
    config = timm.data.resolve_model_data_config(model) | {"input_size": (3, 64, 96)}
    image = timm.data.create_transform(**config)(Image.open(PHOTO).convert("RGB"))
    seen = image.permute(1, 2, 0) * torch.tensor(config["std"]) + torch.tensor(config["mean"])
    np.testing.assert_allclose(numbers(first), seen, atol=1e-6)
    with torch.no_grad(), capture_attention(model) as captured:
        model(image[None])
    row = captured.attention["blocks.3.attn"][0, :, 1 + 1 * 6 + 4, 1:].view(3, 4, 6)
    heads = [ax for ax in rest if ax.get_title().startswith("head")]
    for ax, weights in zip(heads, row, strict=True):
        np.testing.assert_allclose(numbers(ax), weights / weights.max(), rtol=1e-4)
        assert marked(ax) == ((16, 64), (16, 16))
    assert marked(first) == ((16, 64), (16, 16))
    assert numbers(rolled).shape == (4, 6)


def test_what_the_panels_say():
    figure = drawn(*SMALL)
    assert figure.get_suptitle() == f"grace_hopper.jpg, {MODEL}, random weights (seed 0)"
    assert titles(figure)[:3] == [
        "64x96 pixels, tokens 4x6 + 1 prefix\nquery: the patch at (2, 3)",
        "rollout of token 0",
        "how far each head looks",
    ]
    rows = [row.get_suptitle() for row in figure.subfigs]
    assert rows == ["", "attention of the patch at (2, 3) in block 11"]
    image = panels(figure)[0]
    assert len(image.lines) == 3 + 5  # between 4 rows and 6 columns


@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_a_patched_model_shows_its_bias():
    figure = drawn(*SMALL, "--encoding", "alibi_2d", "--prefix-token", 0, "--seed", 5)
    assert figure.get_suptitle().endswith("random weights (seed 5), encoding alibi_2d as it starts")
    assert [row.get_suptitle() for row in figure.subfigs[1:]] == [
        "attention of prefix token 0 in block 11",
        "bias that prefix token 0 gives to each patch",
    ]
    model = posenc.patch_model(timm.create_model(MODEL, img_size=(64, 96)), "alibi_2d")
    bias = posenc.analysis.position_biases(model)["blocks.11.attn"]
    expected = posenc.analysis.bias_map(bias, posenc.TokenLayout(4, 6, 1), 0)
    for ax, head in zip(panels(figure)[-3:], expected, strict=True):
        np.testing.assert_allclose(numbers(ax), head, atol=1e-6)


def test_registers_and_the_mean_of_patches():
    figure = drawn("--model", "vit_small_patch14_reg4_dinov2", "--img-size", 56, 42)
    assert titles(figure)[0].startswith("56x42 pixels, tokens 4x3 + 5 prefix")
    figure = drawn("--model", "vit_medium_patch16_reg4_gap_256", "--img-size", 64, 48)
    assert titles(figure)[1] == "rollout of the mean of patches"


def test_windows_have_no_rollout(capsys):
    figure = drawn("--model", "swin_tiny_patch4_window7_224", "--encoding", "alibi_2d")
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert texts == ["no rollout:\nlayers see windows, or stages,\nwith grids of their own"]
    assert titles(figure)[0] == "224x224 pixels\nlayers.3.blocks.1.attn sees 7x7"
    assert titles(figure)[2:] == ["head 0", *map(str, range(1, 24))]  # room for 24
    assert [row.get_suptitle() for row in figure.subfigs[1:]] == [
        "bias that the patch at (3, 3) gives to each patch"
    ]


def test_encodings_of_a_file(tmp_path):
    model = posenc.patch_model(timm.create_model(MODEL, img_size=(64, 96)), "swin")
    with torch.no_grad():
        for _, parameter in posenc.encoding_parameters(model):
            parameter.normal_()
    posenc.save_encodings(model, "swin.safetensors")
    figure = drawn(*SMALL, "--encodings", "swin.safetensors", "--query", 0, 5)
    assert figure.get_suptitle().endswith("random weights (seed 0), encodings of swin.safetensors")
    bias = posenc.analysis.position_biases(model)["blocks.11.attn"]
    expected = posenc.analysis.bias_map(bias, posenc.TokenLayout(4, 6, 1), (0, 5))
    np.testing.assert_allclose(numbers(panels(figure)[-3]), expected[0], atol=1e-5)


def test_encodings_of_a_file_go_before_those_of_a_checkpoint():
    model = posenc.patch_model(timm.create_model(MODEL, img_size=(64, 96)), "swin")
    posenc.save_encodings(model, "zeros.safetensors")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    torch.save(model.state_dict(), "model.pth")
    figure = drawn(*SMALL, "--encodings", "zeros.safetensors", "--checkpoint", "model.pth")
    assert figure.get_suptitle().endswith("weights of model.pth, encodings of zeros.safetensors")
    assert not numbers(panels(figure)[-1]).any()
    figure = drawn(*SMALL, "--encoding", "swin", "--checkpoint", "model.pth")
    assert figure.get_suptitle().endswith("weights of model.pth, encoding swin")
    assert numbers(panels(figure)[-1]).any()


def test_a_photo_is_turned_as_its_camera_was_held():
    exif = Image.Exif()
    exif[274] = 6  # the camera stood on its side
    pixels = torch.arange(6, dtype=torch.uint8).view(2, 3, 1).expand(-1, -1, 3) * 40
    Image.fromarray(pixels.numpy()).save("side.png", exif=exif)
    turned = np.asarray(photo.read("side.png"))
    np.testing.assert_array_equal(turned, np.rot90(pixels.numpy(), -1))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere.jpg", *SMALL], 2, "cannot read the image nowhere.jpg: No such file"),
        ([__file__, *SMALL], 2, "test_cli_look.py: no format that Pillow knows"),
        ([PHOTO, *SMALL, "--layer", "12"], 2, "look: there is no layer 12: it has 0 to 11"),
        ([PHOTO, *SMALL, "--query", "4", "0"], 2, "query=[4, 0] is not in the layout 4x6 + 1"),
        ([PHOTO, *SMALL, "--prefix-token", "1"], 2, "query=1 is not in the layout 4x6 + 1 prefix"),
        ([PHOTO, *SMALL, "--encoding", "APE"], 2, "unknown encoding 'APE'. Did you mean 'learned'"),
        ([PHOTO, *SMALL, "--out", "no/x.png"], 2, "cannot write no/x.png: No such file"),
        ([PHOTO, *SMALL, "--out", "x.txt"], 2, "--out x.txt: the name must end in a format"),
        ([PHOTO, *SMALL, "--device", "tpux"], 2, "--device tpux: Expected one of cpu, cuda"),
        ([PHOTO, *SMALL, "--encodings", "gone"], 2, "cannot read gone: No such file"),
        ([PHOTO, *SMALL, "--encodings", __file__], 1, "was not written by posenc.save_encodings"),
        ([PHOTO, *SMALL, "--device", "meta"], 2, "--device meta: "),
        ([PHOTO, *SMALL, "--seed", str(2**70)], 2, f"--seed {2**70}: Overflow"),
        ([PHOTO, "--model", f"{MODEL}.x"], 2, f"Invalid pretrained tag (x) for {MODEL}. timm has"),
        ([PHOTO, *SMALL, "--weights", "gone"], 2, "cannot read gone: No such file"),
        ([PHOTO, *SMALL, "--weights", __file__], 1, "is no checkpoint that can be read"),
        ([PHOTO, *SMALL, "--weights", "a", "--checkpoint", "b"], 2, "not allowed with argument"),
        ([PHOTO, "--model", "resnet18"], 1, "resnet18 is refused: found no model that posenc"),
        ([PHOTO, "--model", "vit_tiny"], 2, "'vit_tiny' is no timm model. Did you mean"),
        ([PHOTO, "--model", MODEL, "--img-size", "0", "9"], 2, "must be positive, got 0 9"),
        ([PHOTO, "--model", "xcit_nano_12_p16_224"], 1, "is refused: Xcit: attends between"),
        ([PHOTO], 2, "posenc look: the following arguments are required: --model"),
        ([PHOTO, *SMALL, "--query", "1", "x"], 2, "posenc look: argument --query: invalid int"),
        ([PHOTO, *SMALL, "--encoding", "irpe", "--encodings", "f"], 2, "not allowed with"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(capsys, arguments, code, message):
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("posenc")
    assert err.count("\n") == 1
    assert message in err
    assert os.listdir() == []


def test_a_broken_photo(capsys):
    with open(PHOTO, "rb") as whole, open("half.jpg", "wb") as half:
        half.write(whole.read(20_000))
    code, _, err = run(capsys, "half.jpg", *SMALL)
    assert code == 2
    assert err.startswith("posenc: cannot read the image half.jpg: image file is truncated")


def test_the_image_is_not_overwritten(capsys):
    Image.open(PHOTO).save("photo.png")
    code, _, err = run(capsys, "photo.png", *SMALL, "--out", "./photo.png")
    assert (code, err) == (2, "posenc: --out photo.png is the image itself\n")


def test_a_folder_is_no_picture(capsys, tmp_path):
    (tmp_path / "x.png").mkdir()
    code, _, err = run(capsys, PHOTO, *SMALL, "--out", "x.png")
    assert (code, err) == (2, "posenc: cannot write x.png: it is a folder\n")


def test_an_older_picture_stays_where_drawing_fails(monkeypatch, capsys, tmp_path):
    (tmp_path / "x.png").write_text("older")

    def fail(*arguments):
        assert len(os.listdir()) == 2  # something was begun
        raise KeyboardInterrupt("enough")

    monkeypatch.setattr(look.sheet, "draw", fail)
    with pytest.raises(KeyboardInterrupt, match="enough"):
        run(capsys, PHOTO, *SMALL, "--out", "x.png")
    assert (os.listdir(), (tmp_path / "x.png").read_text()) == (["x.png"], "older")


def test_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run(capsys, PHOTO, *SMALL)
    assert (code, err) == (1, 'posenc: look draws with matplotlib: pip install "posenc[cli]"\n')


def test_no_pretrained_weights(monkeypatch, capsys):
    def create_model(name, pretrained, **options):
        raise RuntimeError("none\nfor this name" if pretrained else "asked for random ones")

    monkeypatch.setattr(timm, "create_model", create_model)
    code, _, err = run(capsys, PHOTO, *SMALL, "--pretrained")
    assert code == 1
    assert err == f"posenc: no pretrained weights of {MODEL}: none for this name\n"
