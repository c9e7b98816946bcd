"""Attention rollout weighted by gradients: how much each patch reaches one output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from posenc.analysis.rollout import check_discard, check_layers, checked_pool, discard, roll_out
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout

Layers = Sequence[Tensor] | Mapping[str, Tensor]


def gradient_rollout(
    attentions: Layers,
    gradients: Layers,
    layout: TokenLayout,
    *,
    discard_ratio: float = 0.0,
    pool: str | None = None,
) -> Tensor:
    """Rolls out the attention that raises one output, such as the logit of a class.

    `R = a_L ... a_2 a_1` with `a_l = normalize(discard(relu(mean_heads(A_l * G_l))) + I)`, where
    `G_l` is the gradient of the output with respect to the attention `A_l`, `discard` sets the
    `int(discard_ratio N^2)` smallest entries of each image to 0 (the entry (0, 0) may be among
    them) and `normalize` divides each row by its sum. The result is read as in
    `attention_rollout`.

    The public code (github.com/jacobgil/vit-explain) divides columns by the sums of rows, and its
    hooks pair the attention of the first layer with the gradient of the last; here rows sum to 1
    and both arguments have the order of the layers.

    Fused attention has no matrix to take gradients of. In timm, set `fused_attn = False` on the
    attention modules, and let the outputs of their `attn_drop` call `retain_grad()` in a forward
    hook: after `logits[:, target].sum().backward()` outputs and their `.grad` are the arguments.
    Attention that posenc computes, in a patched model, has no such matrix.

    Args:
        attentions: `[B, heads, N, N]` of each layer, the first layer first; or a dictionary of
            them in that order.
        gradients: of the same shapes, in the same order; dictionaries with the same names.
        layout: of the tokens.
        discard_ratio: at least 0 and less than 1.
        pool: as for `attention_rollout`.

    Raises:
        ValueError: no layers, shapes or names that do not fit, values that are not finite, or an
            option out of its range.
        TypeError: something that is no floating point tensor.

    Returns:
        `[B, height, width]`, 0 to 1, in at least float32.

    Reference: Abnar and Zuidema 2020, arXiv 2005.00928, section 3, with weights after Chefer et
    al. 2021, arXiv 2103.15679, who take the positive part before the mean over heads.

    >>> import torch
    >>> attention = torch.full((1, 1, 7, 7), 1 / 7)
    >>> gradient = torch.zeros(1, 1, 7, 7)
    >>> gradient[..., 0, 5] = 1.0  # looking at patch (1, 1) raises the output
    >>> gradient_rollout([attention], [gradient], TokenLayout(2, 3, prefix=1))
    tensor([[[0., 0., 0.],
             [0., 1., 0.]]])
    """
    layers, slopes = _paired(attentions, gradients)
    check_layers(layers, layout, "gradient_rollout: attentions")
    check_layers(slopes, layout, "gradient_rollout: gradients")
    for index, (attention, slope) in enumerate(zip(layers, slopes, strict=True)):
        if attention.shape != slope.shape:
            raise ValueError(
                f"gradient_rollout: attentions[{index}] is {list(attention.shape)} and its "
                f"gradient {list(slope.shape)}"
            )
    check_discard(discard_ratio, "gradient_rollout")
    pool = checked_pool(pool, layout, "gradient_rollout")
    fused = [_fuse(*pair) for pair in zip(layers, slopes, strict=True)]
    return roll_out([discard(each, discard_ratio) for each in fused], layout, pool)


def _fuse(attention: Tensor, slope: Tensor) -> Tensor:
    dtype = at_least_float32(attention.dtype, slope.dtype)
    return (attention.to(dtype) * slope.to(dtype)).mean(dim=1).relu()


def _paired(attentions: Layers, gradients: Layers) -> tuple[list[Tensor], list[Tensor]]:
    both_named = isinstance(attentions, Mapping) and isinstance(gradients, Mapping)
    if both_named and list(attentions) != list(gradients):
        raise ValueError(
            f"gradient_rollout: attentions are of {list(attentions)} and gradients of "
            f"{list(gradients)}: pass the same layers in the same order"
        )
    layers, slopes = (
        list(each.values() if isinstance(each, Mapping) else each)
        for each in (attentions, gradients)
    )
    if len(layers) != len(slopes):
        raise ValueError(
            f"gradient_rollout: {len(layers)} layers of attention and {len(slopes)} of gradients"
        )
    return layers, slopes
