"""What content, position and bias contribute to the logits of attention."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from posenc.analysis.checks import check_images
from posenc.analysis.crops import crops_of
from posenc.analysis.logit_parts import FEWEST_MEANS
from posenc.analysis.logit_watcher import Passes, Watcher
from posenc.layout import TokenLayout
from posenc.patching.observe import observe_attention
from posenc.patching.own_positions import ROTARY, own_positions
from posenc.patching.select import Blocks

NUM_GROUPS = 6  # of images; with more groups estimates hardly vary less and take longer


@dataclass(frozen=True, eq=False)
class LogitShares:
    """Shares of the variance of attention's logits, by the name of the attention module.

    Args:
        shares: name of a part -> `[heads]`. The parts are content.content, content.position,
            position.content, position.position (query before key), mean.content and
            mean.position (the grand mean of the queries: what all queries look for), native_bias
            (the model's own), bias (that of posenc's encodings) and interaction. They sum to 1;
            of a head whose logits do not vary over the keys that are seen, they are nan.
        variance: of the logits, `[heads]`, over queries and keys: what the shares are of.
        rotation: for modules whose queries and keys posenc's encodings turn, `[heads]`: the
            variance of what turning changes in the logits, as a share of theirs. It is no further
            part: it is within the parts above.
        layouts: of the tokens.
        num_images: that were seen, crops counted.
        approximate: whether they were crops of one image.
        notes: what a reader must know of this model.
        left_out: name of an attention module that is not split -> why.
    """

    shares: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    variance: dict[str, Tensor] = field(default_factory=dict, repr=False)
    rotation: dict[str, Tensor] = field(default_factory=dict, repr=False)
    layouts: dict[str, TokenLayout] = field(default_factory=dict)
    num_images: int = 0
    approximate: bool = False
    notes: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def split_logits(
    model: nn.Module,
    images: Tensor,
    *,
    blocks: Blocks = None,
    layout: TokenLayout | None = None,
    batch_size: int = 8,
) -> LogitShares:
    """Splits the logits of each head into content, position and bias, by variance.

    Over images, the query at place i is `q_i = grand mean + position_i + content_i`: the grand
    mean is over images and places, `position_i = E[q_i] - grand mean` is what the place alone
    tells, and the rest is content. Keys likewise. The logit, centered over keys (softmax does not
    see what all keys share, such as the grand mean of keys), is then the sum
    `sum_{x, y} x_i . y_j (scale) + native bias + bias` over x in content, position, mean and y in
    content, position. The share of a part is its mean square over images, queries and keys,
    divided by that of the whole logit.

    Parts are not independent (a query and a key of one image share their content), so their
    variances do not sum to that of the whole. What is missing is twice the sum of their
    covariances, named "interaction" and negative where parts cancel.

    A mean of B images is wrong by `content / B`, which looks like position: with plain means
    position gets too much, and with one image all. The estimate is therefore made of groups of
    images. For one image and four groups a, b, c, d without it,
    `mean_ij (x_a,i . y_c,j)(x_b,i . y_d,j)` has an error in each factor, independent of the
    others, so that it is unbiased; it is averaged over all such choices and images. Estimates of
    parts that are nothing lie around 0, also below. Shares are ratios of unbiased numbers.

    Only patches are read, prefix tokens are left out: what their place tells is who they are.
    Windows count as parts of the image: a place is a window and a patch in it (windows are
    expected to follow each other image by image). Pairs that a mask hides, or a bias more than 50
    below the row's maximum, are left out of the biases and of the variance of the logit. Queries
    and keys are read as they enter the logit: turned by a rotary embedding, normalized where
    attention is by cosine. The mean over images of a turned query is part of its position.

    The model runs twice over the images, in eval; memory is that of a forward and, for each
    module, of the queries and keys of 6 images.

    Args:
        model: any model that `posenc.patch_model` could patch, or one that it has patched.
        images: `[B, 3, H, W]`, whose content does not depend on the place more than usual: at
            least 5, better 30 and more. One image, `[1, 3, H, W]`, is replaced by 30 crops of
            it (`posenc.analysis.crops_of`), and the result says `approximate`.
        blocks: as for `patch_model`: indices, a slice or a predicate on names.
        layout: as for `capture_attention`.
        batch_size: images in one forward.

    Raises:
        ValueError: 2 to 4 images, a model in training mode, compiled or not known, or blocks
            that select nothing.
        TypeError: images that are no floating point tensor.

    Reference: bi-orthogonal factor decomposition, arXiv 2601.05328, whose plain means are
    replaced by unbiased estimates here.

    >>> import timm
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
    >>> split = split_logits(vit, torch.randn(8, 3, 32, 48), blocks=[1])
    >>> {name: len(parts["content.content"]) for name, parts in split.shares.items()}
    {'blocks.1.attn': 3}
    """
    check_images(model, images, batch_size, "split_logits")
    _check_count(images)
    pictures = crops_of(images) if len(images) == 1 else images
    passes = Passes(groups=min(NUM_GROUPS, len(pictures)))
    with torch.no_grad(), observe_attention(model, layout, passes.watch, "split_logits") as watch:
        passes.select(model, blocks)
        for measure in (False, True):
            passes.measure = measure
            for group, chunk in _chunks(pictures, passes.groups, batch_size):
                passes.group, passes.num_images = group, len(chunk)
                model(chunk)
    result = LogitShares(
        num_images=len(pictures),
        approximate=len(images) == 1,
        notes=_notes(model),
        left_out=dict(watch.left_out),
    )
    for name, watcher in passes.watchers.items():
        _report(name, watcher, result)
    return result


def _chunks(images: Tensor, groups: int, size: int) -> Iterator[tuple[int, Tensor]]:
    for group, members in enumerate(images.tensor_split(groups)):
        for chunk in members.split(size):
            yield group, chunk


def _report(name: str, watcher: Watcher, result: LogitShares) -> None:
    """Writes what was measured of a module."""
    if watcher.layout is None or watcher.reason is not None:
        result.left_out[name] = watcher.reason or "it did not run"
        return
    variances = watcher.variances()
    total, turned = variances.pop("total"), variances.pop("rotation", None)
    unit = total.where(total > 0, math.nan)
    shares = {part: variance / unit for part, variance in variances.items()}
    shares["interaction"] = 1 - torch.stack(list(shares.values())).sum(dim=0)
    result.shares[name] = shares
    result.variance[name] = total / result.num_images
    result.layouts[name] = watcher.layout
    if turned is not None:
        result.rotation[name] = turned / unit


def _notes(model: nn.Module) -> tuple[str, ...]:
    turning = [source for source in own_positions(model) if source.startswith(ROTARY)]
    if not turning:
        return ()
    return (
        f"{' and '.join(turning)} of the model: queries and keys are read after it has turned "
        "them, so the mean of turned queries counts as position, and how content meets content "
        "depends on the offset",
    )


def _check_count(images: Tensor) -> None:
    if len(images) != 1 and len(images) <= FEWEST_MEANS:
        raise ValueError(
            f"split_logits: {len(images)} images are too few for means over images: pass at least "
            f"{FEWEST_MEANS + 1}, better 30, or one image, of which crops are made"
        )
