"""Rollout weighted by gradients, against the public code with its row sums mended, and loops."""

import golden_cases
import pytest
import tiny_vit
import torch

from posenc import TokenLayout
from posenc.analysis import capture_attention, gradient_rollout


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layers(tokens=7, batch=2, seed=0):
    attention = list(random(3, batch, 2, tokens, tokens, seed=seed).softmax(-1))
    return attention, list(random(3, batch, 2, tokens, tokens, seed=seed + 1))


def loops(attentions, gradients, height, width, prefix, ratio):
    images = []
    for image in range(len(attentions[0])):
        n = attentions[0].shape[-1]
        rolled = torch.eye(n, dtype=torch.float64)
        for attention, gradient in zip(attentions, gradients, strict=True):
            heads = len(attention[image])
            flat = [
                max(0.0, sum((attention * gradient)[image, h, i, j].item() for h in range(heads)))
                / heads
                for i in range(n)
                for j in range(n)
            ]
            order = sorted(range(n * n), key=lambda index, flat=flat: flat[index])
            for index in order[: int(n * n * ratio)]:
                flat[index] = 0.0
            mixed = torch.tensor(flat, dtype=torch.float64).view(n, n) + torch.eye(n)
            rolled = torch.stack([row / row.sum() for row in mixed]) @ rolled
        read = rolled[0, prefix:] if prefix else rolled.mean(0)
        images.append(read / read.max() if read.max() > 0 else read)
    return torch.stack(images).view(-1, height, width)


@pytest.mark.parametrize("name", golden_cases.names("grad_rollout_"))
def test_golden(name):
    golden = golden_cases.case(name)
    actual = gradient_rollout(
        list(golden["attn"]),
        list(golden["grad"]),
        TokenLayout(4, 4, prefix=1),
        discard_ratio=golden.hyperparameters["discard_ratio"],
    )
    close = {"rtol": 0.0, "atol": golden.tolerance["atol"]}
    torch.testing.assert_close(actual[0], golden["mask_row_normalised"], **close)
    assert (actual[0] - golden["mask_as_is"]).abs().max() > 0.05


@pytest.mark.parametrize("ratio", [0.0, 0.7])
@pytest.mark.parametrize("layout", [(3, 5, 0), (2, 3, 1), (3, 2, 2), (1, 4, 5)])
def test_every_image_as_in_loops(layout, ratio):
    attentions, gradients = layers(tokens=layout[2] + layout[0] * layout[1])
    actual = gradient_rollout(attentions, gradients, TokenLayout(*layout), discard_ratio=ratio)
    expected = loops(attentions, gradients, *layout, ratio)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_what_nothing_raises_reaches_nothing():
    attentions, gradients = layers()
    actual = gradient_rollout(
        attentions, [-g.abs() for g in gradients], TokenLayout(2, 3, prefix=1)
    )
    assert not actual.any()


def test_of_a_model_as_the_docstring_says():
    model = tiny_vit.vit(1)
    images = tiny_vit.images(model)
    kept, hooks = {}, []
    for index, block in enumerate(model.blocks):
        block.attn.fused_attn = False

        def keep(module, args, attention, name=f"blocks.{index}.attn"):
            attention.retain_grad()
            kept[name] = attention

        hooks.append(block.attn.attn_drop.register_forward_hook(keep))
    model(images)[:, 2].sum().backward()
    for hook in hooks:
        hook.remove()
    gradients = {name: attention.grad for name, attention in kept.items()}
    layout = TokenLayout(3, 5, prefix=1)
    actual = gradient_rollout(kept, gradients, layout)
    expected = loops(list(kept.values()), list(gradients.values()), 3, 5, 1, 0.0)
    torch.testing.assert_close(actual, expected)
    with torch.no_grad(), capture_attention(model) as captured:
        model(images)
    torch.testing.assert_close(captured.attention, {n: a.detach() for n, a in kept.items()})


def test_errors():
    layout = TokenLayout(2, 3, prefix=1)
    attentions, gradients = layers()
    named = dict(enumerate(attentions))
    turned = dict(reversed(list(enumerate(gradients))))
    for wrong, slopes, options, error, message in [
        ([], [], {}, ValueError, "attentions must have at least one layer, got none"),
        (attentions, gradients[:2], {}, ValueError, "3 layers of attention and 2 of gradients"),
        (named, turned, {}, ValueError, r"\[0, 1, 2\] and gradients of \[2, 1, 0\]"),
        (attentions, [g[:, :1] for g in gradients], {}, ValueError, "and its gradient"),
        (attentions, [g[..., :6] for g in gradients], {}, ValueError, r"gradients\[0\] must be"),
        (attentions, [g / 0 for g in gradients], {}, ValueError, r"gradients\[0\] has values that"),
        (attentions, [1.0] * 3, {}, TypeError, r"gradients\[0\] must be a floating point"),
        (attentions, gradients, {"discard_ratio": 1.0}, ValueError, "gradient_rollout: discard_ra"),
        (attentions, gradients, {"pool": "max"}, ValueError, "gradient_rollout: pool must be"),
    ]:
        with pytest.raises(error, match=message):
            gradient_rollout(wrong, slopes, layout, **options)
