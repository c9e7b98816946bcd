"""Which spatial frequencies tokens carry."""

from __future__ import annotations

import torch
from torch import Tensor

from posenc.analysis.checks import check_tokens
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout

SMALLEST = 1e-6  # is added to amplitudes, as in the public code


def fourier_log_amplitude(tokens: Tensor, layout: TokenLayout) -> Tensor:
    """Log amplitude of the spatial frequencies of tokens, relative to frequency zero.

    `a(f) = mean over images and channels of log(|fft2(x)|(f, f) + 1e-6)`, natural logarithm, and
    the result is `a(f) - a(0)`, along the diagonal on which both axes have the same frequency f.
    Its values are those of the shorter side s: `f_m = 2 m / s` in units of pi for
    `m = 0 ... ceil(s / 2) - 1`. Where the grid is no square, f lies between two frequencies of the
    longer side, and the log amplitude is interpolated between them; on squares this is the public
    code, whose diagonal misses frequency zero on rectangles (github.com/xxxnell/how-do-vits-work).
    Prefix tokens are left out.

    Args:
        tokens: `[B, N, C]`, such as the output of a block.
        layout: of the tokens.

    Raises:
        ValueError: a shape that does not fit the layout.
        TypeError: no floating point tensor.

    Returns:
        `[ceil(min(height, width) / 2)]`, first 0, in at least float32.

    Reference: Park and Kim 2022, arXiv 2202.06709, figure 2.

    >>> layout = TokenLayout(4, 6)
    >>> smooth = torch.linspace(1, 2, 6).repeat(4).view(1, 24, 1)
    >>> curve = fourier_log_amplitude(smooth, layout)
    >>> curve.shape, bool(curve[1] < -5)
    (torch.Size([2]), True)
    """
    check_tokens(tokens, layout, "fourier_log_amplitude: tokens")
    patches = tokens[:, layout.prefix :].to(at_least_float32(tokens.dtype))
    maps = patches.transpose(1, 2).unflatten(-1, layout.grid)
    logs = (torch.fft.fft2(maps).abs() + SMALLEST).log().mean(dim=(0, 1))
    curve = _diagonal(logs)
    return curve - curve[0]


def _diagonal(logs: Tensor) -> Tensor:
    """Where both axes have the same frequency, at the frequencies of the shorter side."""
    short, long = logs if logs.shape[0] <= logs.shape[1] else logs.T, max(logs.shape)
    steps = torch.arange((len(short) + 1) // 2, device=logs.device)
    place = steps * long  # in units of 1 / len(short) of a frequency of the longer side
    below, rest = place // len(short), (place % len(short)).to(logs.dtype) / len(short)
    above = (below + 1) % long
    return torch.lerp(short[steps, below], short[steps, above], rest)
