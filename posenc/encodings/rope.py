"""Two-dimensional rotary embedding with fixed frequencies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from posenc.encodings.base import (
    AttentionEncoding,
    check_choice,
    check_flag,
    check_number,
    check_positive,
    check_positive_number,
    flag,
)
from posenc.functional.precision import at_least_float32
from posenc.functional.rotary_angles import (
    Axis,
    axial_turns,
    band_values,
    centered,
    counted,
    period_bands,
    pixel_bands,
    power_bands,
    spanned,
    token_places,
    turns,
)
from posenc.layout import TokenLayout
from posenc.terms import Rotation, Term

Convention = Literal["timm", "dinov3", "rope_vit", "lucidrains", "croco"]
Freqs = Literal["lang", "pixel"]
Order = Literal["rows", "columns"]
Normalize = Literal["separate", "max", "min"]
Resize = Literal["scale", "extrapolate"]


class _Style(NamedTuple):
    """What a convention fixes, and the defaults of what it leaves open."""

    temperature: float
    order: str = "rows"
    interleaved: bool = True
    blocks: int = 1
    max_freq: float | None = None  # of conventions that have freqs="pixel"
    linear_bands: bool = False


_STYLES = {
    "timm": _Style(10000.0, max_freq=224.0),
    "dinov3": _Style(100.0, interleaved=False),
    "rope_vit": _Style(100.0, order="columns"),
    "lucidrains": _Style(10000.0, max_freq=10.0, linear_bands=True),
    "croco": _Style(100.0, interleaved=False, blocks=2),
}
_EXTENTS: dict[str, Any] = {
    "separate": tuple,
    "max": lambda sides: (max(sides),) * 2,
    "min": lambda sides: (min(sides),) * 2,
}


class RoPE(AttentionEncoding):
    """Queries and keys turn by row and column, as in EVA, DINOv3, RoPE-ViT, lucidrains or CroCo.

    Pair p of channels of token i turns by `strength * place_i * band_p`, where half of the pairs
    take the place on the axis of rows and the other half that of columns; n = rotated / 4 bands
    serve each axis. The score of two patches then depends on their offset (and on the content).
    Prefix tokens do not turn, so their scores with a patch depend on where the patch is.

    | convention | places | bands | first half | pairs |
    |---|---|---|---|---|
    | "timm" (EVA's), freqs="lang" | index + offset | temperature ** (-i / n), 10000 | rows | 2c, 2c + 1 |
    | "timm", freqs="pixel" | -1 to 1 | pi to pi max_freq / 2 in equal factors, 224 | rows | 2c, 2c + 1 |
    | "dinov3" | patch centers, borders -1 and 1 | 2 pi temperature ** (-i / n), 100 | rows | c, c + R / 2 |
    | "rope_vit" (axial) | index | temperature ** (-i / n), 100 | columns | 2c, 2c + 1 |
    | "lucidrains", freqs="lang" | index | temperature ** (-i / n), 10000 | rows | 2c, 2c + 1 |
    | "lucidrains", freqs="pixel" | -1 to 1 | pi to pi max_freq / 2 in equal steps, 10 | rows | 2c, 2c + 1 |
    | "croco" (DUSt3R's RoPE100) | index | temperature ** (-i / n), 100 | rows | c, c + R / 4 of each half |

    Another grid: where patches are counted the places go on beyond those of the grid that it was
    built for ("extrapolate"); where they run from -1 to 1 they still do ("scale"). `resize` asks
    for the other rule: counted places are multiplied by built / present sides, as with
    `reference`; places from -1 to 1 keep the start and step of the built grid and leave the range.

    Args:
        layout: the tokens; there are no parameters.
        num_heads: heads of the attention, which all turn alike.
        head_dim: width of a head.
        convention: see the table.
        freqs: "lang" (default) or "pixel", for "timm" and "lucidrains".
        temperature: base of the frequencies, where the table has one.
        order: which axis the first half of the pairs takes, "rows" or "columns" (timm's "ij" and
            "xy"); default: the table's.
        rotated: number of channels R that turn, the first of each head; the others pass. A
            multiple of 4; default: all.
        strength: multiplies all frequencies. It is a constant: 0 turns nothing, for comparison.
        resize: "scale" or "extrapolate"; default: the convention's own rule.
        max_freq: of freqs="pixel" (timm's `max_res`).
        linear_bands: of freqs="pixel": bands in equal steps instead of equal factors.
        reference: (rows, columns): counted places are multiplied by reference / present sides
            (timm's `ref_feat_shape`, DUSt3R's adaptive frequencies), offset included.
        offset: added to counted places, in patches (timm's `grid_offset`).
        normalize: of "dinov3": -1 and 1 are the borders of each axis ("separate"), or both axes
            have the step of the longer ("max") or shorter ("min") one.
        periods: of "dinov3": (shortest, longest) instead of a temperature: bands are 2 pi / period,
            with periods in equal factors.
        shift: of "dinov3", in training: a number from -shift to shift is added to the places of
            each axis.
        jitter: of "dinov3", in training: the places of each axis are multiplied by a number
            from 1 / jitter to jitter, whose logarithm is uniform.
        rescale: of "dinov3", in training: the same with one number for both axes.
        device: not needed, angles are made where the queries are.
        dtype: not needed, angles are made in that of the queries and at least float32.

    Where DINOv3 draws one shift, jitter and rescale for all blocks of a forward pass, each
    attention draws its own here, for the whole batch.

    Initial effect: queries and keys turn; none, ever, with `strength=0`. Rotary embeddings have
    no start without effect, and a model that was trained without one needs training to use it.
    On a model with a rotary embedding of its own both act.

    Raises:
        ValueError: `rotated` (or head_dim) is no multiple of 4 or wider than a head; a value out
            of range; or an option that the convention does not have.

    Reference: Su et al. 2021, arXiv 2104.09864, section 3.2, in two dimensions: Fang et al. 2023
    (EVA-02), arXiv 2303.11331; Heo et al. 2024 (RoPE-ViT), arXiv 2403.13298, section
    3.2; Simeoni et al. 2025 (DINOv3), arXiv 2508.10104; Weinzaepfel et al. 2023 (CroCo v2), arXiv
    2211.10408. The public rope-vit reuses its table wherever token counts agree (2x8 for 4x4).

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> q = torch.ones(1, 2, 7, 4)
    >>> (turn,) = RoPE(layout, num_heads=2, head_dim=4)(q, q, layout)
    >>> turn.cos[0, 0, -1]  # of row 1 and column 2
    tensor([ 0.5403, -0.4161])
    """  # noqa: E501

    paper = ("Su et al. 2021", "https://arxiv.org/abs/2104.09864")
    is_sized_by_prefix = False
    kind = "rotary"

    def __init__(
        self,
        layout: TokenLayout,
        num_heads: int,
        head_dim: int,
        *,
        convention: Convention = "timm",
        freqs: Freqs | None = None,
        temperature: float | None = None,
        order: Order | None = None,
        rotated: int | None = None,
        strength: float = 1.0,
        resize: Resize | None = None,
        max_freq: float | None = None,
        linear_bands: bool | None = None,
        reference: tuple[int, int] | None = None,
        offset: float | None = None,
        normalize: Normalize | None = None,
        periods: tuple[float, float] | None = None,
        shift: float | None = None,
        jitter: float | None = None,
        rescale: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, num_heads, head_dim)
        check_choice(convention, get_args(Convention), "convention", "RoPE")
        style = _STYLES[convention]
        self.convention = convention
        if freqs is not None and style.max_freq is None:
            raise ValueError(
                f'RoPE: freqs= is a choice of "timm" and "lucidrains", convention={convention!r} '
                "has none; leave it out"
            )
        self.freqs = _choice(freqs, Freqs, "freqs") or "lang"
        given = {
            "temperature": temperature,
            "max_freq": max_freq,
            "linear_bands": linear_bands,
            "reference": reference,
            "offset": offset,
            "normalize": normalize,
            "periods": periods,
            "shift": shift,
            "jitter": jitter,
            "rescale": rescale,
        }
        self._check_belong({name for name, value in given.items() if value is not None})
        self.order = _choice(order, Order, "order") or style.order
        self.rotated = _check_width(head_dim if rotated is None else rotated, head_dim)
        self.strength = check_number(strength, "strength", "RoPE")
        self.resize = _choice(resize, Resize, "resize")
        self.offset = 0.0 if offset is None else check_number(offset, "offset", "RoPE")
        self.normalize = _choice(normalize, Normalize, "normalize") or "separate"
        self.reference = _check_reference(reference, resize)
        self.shift = 0.0 if shift is None else _at_least(shift, 0, "shift")
        self.jitter = 1.0 if jitter is None else _at_least(jitter, 1, "jitter")
        self.rescale = 1.0 if rescale is None else _at_least(rescale, 1, "rescale")
        self._bands = tuple(
            self.strength * band
            for band in self._make_bands(style, temperature, max_freq, linear_bands, periods)
        )

    @property
    def _places(self) -> str:
        """How patches lie on an axis: "counted", "spanned" or "centered"."""
        if self.convention == "dinov3":
            return "centered"
        return "counted" if self.freqs == "lang" else "spanned"

    def _check_belong(self, given: set[str]) -> None:
        own = {
            "counted": {"temperature", "reference", "offset"},
            "spanned": {"max_freq", "linear_bands"},
            "centered": {"temperature", "normalize", "periods", "shift", "jitter", "rescale"},
        }[self._places]
        if given - own:
            freqs = f", freqs={self.freqs!r}" if _STYLES[self.convention].max_freq else ""
            raise ValueError(
                f"RoPE: convention={self.convention!r}{freqs} has no {min(given - own)}=; beside "
                f"order, rotated, strength and resize it has {', '.join(sorted(own))}"
            )
        if {"temperature", "periods"} <= given:
            raise ValueError("RoPE: temperature= and periods= both fix the bands; give one")

    def _make_bands(
        self,
        style: _Style,
        temperature: float | None,
        max_freq: float | None,
        linear_bands: bool | None,
        periods: tuple[float, float] | None,
    ) -> tuple[float, ...]:
        count = self.rotated // 4
        if self._places == "spanned":
            linear = style.linear_bands if linear_bands is None else linear_bands
            check_flag(linear, "linear_bands", "RoPE")
            top = style.max_freq if max_freq is None else max_freq
            return pixel_bands(count, _positive(top, "max_freq"), linear)
        if periods is not None:
            return period_bands(count, *_check_periods(periods))
        temperature = style.temperature if temperature is None else temperature
        bands = power_bands(count, _positive(temperature, "temperature"))
        return tuple(math.tau * band for band in bands) if self._places == "centered" else bands

    @flag
    def is_static(self) -> bool:
        """Unless it draws: with shift, jitter or rescale in training."""
        return not (self.training and self._draws)

    @property
    def _draws(self) -> bool:
        return (self.shift, self.jitter, self.rescale) != (0, 1, 1)

    @flag
    def is_sized_by_grid(self) -> bool:
        """Where the grid that it was built for decides about places on others."""
        if self._places == "counted":
            return self.resize == "scale"
        return self.resize == "extrapolate"

    def changes_at_start(self) -> bool:
        """Unless the strength is zero."""
        return self.strength != 0

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """One rotation."""
        style, dtype = _STYLES[self.convention], at_least_float32(q.dtype)
        axes, columns_first = self._axes(layout), self.order == "columns"
        if self.is_static:
            cos, sin = axial_turns(layout, axes, self._bands, columns_first, q.device, dtype)
        else:
            places = token_places(layout, axes, q.device, dtype)[layout.prefix :]
            bands = band_values(self._bands, q.device, dtype)
            cos, sin = turns(self._moved(places), bands, layout.prefix, columns_first)
        return (Rotation(cos, sin, style.interleaved, style.blocks),)

    def _axes(self, layout: TokenLayout) -> tuple[Axis, Axis]:
        built, sides = self.layout.grid, layout.grid
        if self._places == "counted":
            whole = self.reference or (built if self.resize == "scale" else sides)
            rows, columns = (
                counted(side, to, self.offset) for side, to in zip(sides, whole, strict=True)
            )
            return rows, columns
        sides = built if self.resize == "extrapolate" else sides
        if self._places == "spanned":
            return spanned(sides[0]), spanned(sides[1])
        height, width = _EXTENTS[self.normalize](sides)
        return centered(height), centered(width)

    def _moved(self, places: Tensor) -> Tensor:
        """Drawn anew: a shift and a stretch of each axis, then a stretch of both."""

        def draw(count: int, limit: float) -> Tensor:
            return limit * (2 * torch.rand(count, device=places.device, dtype=places.dtype) - 1)

        if self.shift:
            places = places + draw(2, self.shift)
        if self.jitter != 1:
            places = places * draw(2, math.log(self.jitter)).exp()
        if self.rescale != 1:
            places = places * draw(1, math.log(self.rescale)).exp()
        return places

    def extra_repr(self) -> str:
        """Options, as printed."""
        freqs = f", freqs={self.freqs}" if _STYLES[self.convention].max_freq else ""
        return f"convention={self.convention}{freqs}, strength={self.strength:g}"


def _choice(value: Any, choices: Any, name: str) -> Any:
    return value if value is None else check_choice(value, get_args(choices), name, "RoPE")


def _check_width(rotated: Any, head_dim: int) -> int:
    check_positive(rotated, "rotated", "RoPE")
    if rotated > head_dim or rotated % 4:
        fits = min(rotated, head_dim) // 4 * 4
        advice = f"rotated={fits} turns the first {fits}" if fits else "widen the heads"
        raise ValueError(
            "RoPE: the channels that turn must be a multiple of 4 (pairs for rows and for "
            f"columns) within a head, got {rotated} of head_dim={head_dim}; {advice}"
        )
    return int(rotated)


def _check_reference(value: Any, resize: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    if resize is not None:
        raise ValueError(
            "RoPE: reference= says how places are scaled to every grid, so there is no "
            f"resize={resize!r} with it; give one"
        )
    height, width = _pair(value, "reference")
    return (
        check_positive(height, "reference", "RoPE"),
        check_positive(width, "reference", "RoPE"),
    )


def _check_periods(value: Any) -> tuple[float, float]:
    shortest, longest = (_positive(each, "periods") for each in _pair(value, "periods"))
    return shortest, longest


def _pair(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"RoPE: {name} must be a pair of numbers, got {value!r}")
    return value


def _positive(value: Any, name: str) -> float:
    return check_positive_number(value, name, "RoPE")


def _at_least(value: Any, least: float, name: str) -> float:
    number = check_number(value, name, "RoPE")
    if number < least:
        raise ValueError(f"RoPE: {name} must be at least {least}, got {value!r}")
    return number
