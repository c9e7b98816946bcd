"""How well a linear map reads the place of a token from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from posenc.analysis.checks import check_tokens
from posenc.encodings.base import is_finite
from posenc.functional.coordinates import patch_coordinates
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout


class CoordinateProbe(NamedTuple):
    """R2 of the row and of the column on images that the probe was not fitted to.

    Args:
        row: 1 where rows are read without error, 0 where no better than their mean, below 0
            where worse; nan with a single row.
        column: likewise.
    """

    row: float
    column: float


def coordinate_probe(
    tokens: Tensor,
    layout: TokenLayout,
    *,
    held_out: float = 0.5,
    strength: float = 1e-3,
) -> CoordinateProbe:
    """Fits row and column of each patch to its token by ridge regression.

    `W = argmin |X W - Y|^2 / m + strength mean(X^2) |W|^2` over the m patches of the first images,
    X their tokens and Y their (row, column), both centered; then
    `R2 = 1 - sum (y - prediction)^2 / sum (y - mean y)^2` over the patches of the last images.
    Prefix tokens are left out. The images should be in random order: position that all images
    share is read also from others, content of the images that were fitted is not.

    Args:
        tokens: `[B, N, C]`, such as those of `block_tokens`, or of a model without any position.
        layout: of the tokens.
        held_out: share of the images that R2 is measured on, at least one; at least one is left.
        strength: of the ridge, relative to the mean square of a centered channel.

    Raises:
        ValueError: a shape that does not fit the layout, fewer than 2 images, values that are not
            finite, or an option out of its range.
        TypeError: no floating point tensor.

    Reference: Islam et al. 2020, arXiv 2001.08248 (zero padding tells positions); Wang and Chen
    2020, arXiv 2010.04903, on position embeddings in language.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> table = torch.randn(1, 7, 8).expand(4, -1, -1)  # all is position
    >>> round(coordinate_probe(table, layout, strength=1e-6).column, 3)
    1.0
    """
    _check(tokens, layout, held_out, strength)
    patches = tokens[:, layout.prefix :].to(at_least_float32(tokens.dtype))
    count = min(len(patches) - 1, max(1, round(held_out * len(patches))))
    fitted, kept = patches[:-count], patches[-count:]
    places = patch_coordinates(layout, patches.device, patches.dtype)  # centered
    mean = fitted.mean(dim=(0, 1))
    weights = _ridge((fitted - mean).flatten(0, 1), places.repeat(len(fitted), 1), strength)
    errors = (kept - mean) @ weights - places
    total = places.square().sum(dim=0) * count
    scores = 1 - errors.square().sum(dim=(0, 1)) / total.where(total > 0, float("nan"))
    return CoordinateProbe(*scores.tolist())


def _ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """The normal equations of centered data, solved."""
    gram = x.T @ x / len(x)
    size = gram.diagonal().mean()
    # Tokens that are all equal tell nothing: any positive ridge gives weights of zero.
    ridge = strength * size.where(size > 0, 1.0)
    eye = torch.eye(len(gram), device=x.device, dtype=x.dtype)
    return torch.linalg.solve(gram + ridge * eye, x.T @ y / len(x))


def _check(tokens: Tensor, layout: TokenLayout, held_out: float, strength: float) -> None:
    check_tokens(tokens, layout, "coordinate_probe: tokens")
    if len(tokens) < 2:
        raise ValueError(
            f"coordinate_probe: {len(tokens)} images are too few: pass at least 2, one to fit and "
            "one to measure"
        )
    if not is_finite(tokens):
        raise ValueError("coordinate_probe: tokens have values that are not finite")
    if not 0 < held_out < 1:
        raise ValueError(
            f"coordinate_probe: held_out must be more than 0 and less than 1, got {held_out!r}"
        )
    if not 0 < strength < float("inf"):
        raise ValueError(f"coordinate_probe: strength must be positive, got {strength!r}")
