"""plot_parts draws where the parts of `human_part` and `body` are."""

import body_oracles
import numpy as np
import pytest
import torch
from drawn import numbers
from matplotlib.figure import Figure
from tiny_vit import images, vit

from posenc import patch_model, patched_encodings
from posenc.analysis.plot import plot_parts
from posenc.functional.body import BodyFrame

CENTERS = [0.1, 0.3, 0.5, 0.7, 0.9]


SPACING = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.2, 0.1]).log()


def model_with(parts=5, adaptive=False, **options):
    human_part = {"parts": parts, "adaptive": adaptive}
    model = patch_model(vit(), "human_part", human_part=human_part, **options)
    for encoding in patched_encodings(model).values():
        torch.nn.init.constant_(encoding.strength, -0.25)
    return model


def encoding_of(model, block):
    return patched_encodings(model)[f"blocks.{block}.attn.human_part"]


def heights(ax):
    return [line.get_ydata()[0] for line in ax.lines]


def test_centers_and_widths_without_a_background():
    model = model_with()
    with torch.no_grad():
        encoding_of(model, 1).part_spacing.copy_(SPACING)
        encoding_of(model, 1).log_part_width.fill_(np.log(0.05))
    first, second = plot_parts(model, figure=Figure()).axes
    assert heights(second) == pytest.approx(CENTERS)
    bands = [(patch.get_y(), patch.get_height()) for patch in second.patches]
    assert [y for y, _ in bands] == pytest.approx([center - 0.05 for center in CENTERS])
    assert [height for _, height in bands] == pytest.approx([0.1] * 5)
    assert second.get_ylim() == (1, 0)
    assert first.get_ylabel() == "height (crops)"
    assert [ax.get_title() for ax in (first, second)] == [
        "block 0\nstrength 0.25",
        "block 1\nstrength 0.25",
    ]


def test_over_an_image_in_its_pixels():
    model = model_with()
    with torch.no_grad():
        encoding_of(model, 0).part_spacing.copy_(SPACING)
    mean = np.random.default_rng(0).random((40, 20, 3))
    ax, _ = plot_parts(model, mean, figure=Figure()).axes
    np.testing.assert_allclose(numbers(ax), mean, rtol=1e-6)
    assert heights(ax) == pytest.approx([3.5, 11.5, 19.5, 27.5, 35.5])  # pixel 0 begins at -0.5
    assert ax.get_ylim() == (39.5, -0.5)
    assert ax.get_ylabel() == "height (pixels)"


def test_adaptive_parts_at_rest():
    model = model_with(adaptive=True)
    with torch.no_grad():
        encoding_of(model, 0).part_spacing.copy_(SPACING)
        encoding_of(model, 0).foreground.normal_()
    first, second = plot_parts(model, figure=Figure()).axes
    assert heights(first) == pytest.approx(CENTERS)
    assert first.get_title() == "block 0\nstrength 0.25\nat rest"
    assert second.get_title() == "block 1\nstrength 0.25\nat rest"


def test_adaptive_parts_of_an_image():
    """Centers and widths are those at which the memberships of the model's own keys are."""
    model = model_with(adaptive=True).eval()
    one = encoding_of(model, 1)
    with torch.no_grad():
        one.part_spacing.copy_(SPACING)
        one.log_part_width.fill_(np.log(0.05))
        one.foreground.copy_(3 * torch.randn(8, generator=torch.Generator().manual_seed(0)))
    image, keys = images(model, 1), []
    hook = one.register_forward_hook(lambda _, args, terms: keys.append(args[1:]))
    model(image)
    hook.remove()
    _, axes = plot_parts(model, image=image, figure=Figure()).axes
    assert axes.get_title() == "block 1\nstrength 0.25\nin the image"
    logits = keys[0][0][0, :, 1:].mean(0) @ one.foreground
    rows = body_oracles.body_heights(list(logits[:, None]), 3, 5)
    low, high = rows[0].item(), rows[-1].item()  # in bodies, of the rows at 1/6 and 5/6 of the crop
    in_crop = [1 / 6 + (c - low) / (high - low) * 2 / 3 for c in CENTERS]
    assert heights(axes) == pytest.approx(in_crop, abs=1e-5)
    assert abs(in_crop[0] - CENTERS[0]) > 0.01
    (bottom, top) = ((p.get_y(), p.get_y() + p.get_height()) for p in axes.patches[2:4])
    assert (bottom[1] - bottom[0]) / 2 == pytest.approx(0.05 / (high - low) * 2 / 3, abs=1e-5)
    assert top[0] > bottom[0]
    assert not one._forward_pre_hooks


def test_what_is_outside_of_a_crop_that_cuts_the_body_off_is_named(monkeypatch):
    model = model_with(adaptive=True).eval()
    with torch.no_grad():
        encoding_of(model, 0).part_spacing.copy_(SPACING)
    frame = BodyFrame(torch.tensor([[0.2]]), torch.tensor([[0.8]]))
    monkeypatch.setattr(encoding_of(model, 0), "body_frame", lambda *_: frame)
    first, second = plot_parts(model, image=images(model, 1), figure=Figure()).axes
    assert heights(first) == pytest.approx([0.2, 0.45, 0.7, 0.95, 1.2])
    assert first.get_xlabel() == "outside:\nshins at 1.20"
    assert second.get_xlabel() == ""
    assert first.get_ylim() == (1, 0)


def test_fixed_parts_need_no_image_and_do_not_run_it():
    figure = plot_parts(model_with(), image="not looked at", figure=Figure())
    assert figure.axes[0].get_title() == "block 0\nstrength 0.25"


def test_both_forms():
    options = {"body": {"parts": 3, "adaptive": True}, "human_part": {"adaptive": False}}
    model = patch_model(vit(), "body+human_part", **options).eval()
    body = patched_encodings(model)["body"]
    torch.nn.init.constant_(body.part_embedding, -0.5)
    figure = plot_parts(model, image=images(model, 1), figure=Figure())
    assert [ax.get_title() for ax in figure.axes] == [
        "body\nvectors 0.50\nin the image",
        "block 0\nstrength 0.00",
        "block 1\nstrength 0.00",
    ]
    assert [len(ax.lines) for ax in figure.axes] == [3, 5, 5]
    assert heights(figure.axes[0]) == pytest.approx([1 / 6, 1 / 2, 5 / 6])


@pytest.mark.parametrize(
    ("parts", "names", "expected"),
    [
        (5, None, ["head", "chest", "hips", "thighs", "shins"]),
        (3, None, ["part 0", "part 1", "part 2"]),
        (2, ("above", "below"), ["above", "below"]),
    ],
)
def test_names(parts, names, expected):
    figure = plot_parts(model_with(parts), names=names, figure=Figure())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == expected
    colors = [line.get_color() for line in figure.axes[0].lines]
    assert len(set(colors)) == parts


def test_one_encoding_for_all_blocks():
    figure = plot_parts(model_with(share=True), figure=Figure())
    assert [ax.get_title() for ax in figure.axes] == ["human_part\nstrength 0.25"]


def test_refusals():
    with pytest.raises(ValueError, match="is not patched; call"):
        plot_parts(vit())
    with pytest.raises(ValueError, match=r'no encoding "body" or "human_part", .* with swin'):
        plot_parts(patch_model(vit(), "swin"))
    with pytest.raises(ValueError, match=r"names must be 5, one for each part, got \['head'\]"):
        plot_parts(model_with(), names=["head"])
    with pytest.raises(TypeError, match="plot_parts: image must be a tensor"):
        plot_parts(model_with(), "mean.png")


def test_refused_images():
    model = model_with(adaptive=True)
    image = images(model, 1)
    with pytest.raises(ValueError, match=r"plot_parts: the model is in train mode; call model.ev"):
        plot_parts(model.train(), image=image)
    with pytest.raises(ValueError, match=r"image must be one image .*, got \[2, 3, 12, 20\]"):
        plot_parts(model.eval(), image=images(model, 2))
    with pytest.raises(TypeError, match="image must be a tensor as the model receives it, got str"):
        plot_parts(model, image="person.png")
