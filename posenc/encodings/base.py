"""The two kinds of encodings, and what every encoding shares."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from posenc.functional.precision import autocast_dtype, without_autocast
from posenc.layout import TokenLayout
from posenc.memo import is_transformed
from posenc.term_maps import map_biases, map_tensors, with_memo
from posenc.terms import Term


def flag(function: Callable[[Any], bool]) -> bool:
    """A property that type checkers take for the class attribute that it stands for."""
    return cast(bool, property(function))


class Encoding(nn.Module, ABC):
    """What both kinds share: a layout that fixes the parameter sizes, and checked loading.

    Attributes that are not parameters are constants: set them in the constructor only. What an
    `is_...` asks, a class answers by a class attribute, or by a property where its options decide
    (a `flag`, to satisfy type checkers).
    """

    is_sized_by_prefix: bool = True
    """Whether there are parameters for prefix tokens."""

    is_sized_by_grid: bool = False
    """Whether the sizes of parameters depend on the grid."""

    paper: tuple[str, str] | None = None
    """Authors and year, and address, of the paper (or of what else it is from); None: ours."""

    outdated: Mapping[str, str] = MappingProxyType({})
    """Parameters that a former version had, and why they are not loaded."""

    def __init__(self, layout: TokenLayout) -> None:
        """The class describes the arguments."""  # `help` shows it for subclasses, too
        super().__init__()
        self.layout = check_layout(layout, type(self).__name__)

    def changes_at_start(self) -> bool | None:
        """Whether a freshly built module has an effect; None where the class does not say.

        `patch_model` warns unless it is False.
        """
        return None

    def check_prefix(self, layout: TokenLayout) -> None:
        """Raises when `layout` has prefix tokens that no parameter was made for."""
        if layout.prefix and not self.layout.prefix and self.is_sized_by_prefix:
            raise ValueError(
                f"{type(self).__name__} was built for {self.layout.prefix} prefix tokens, the "
                f"layout {layout} has {layout.prefix}; build it with that prefix"
            )

    def check_device(self, tensor: Tensor, name: str) -> None:
        """Raises when the parameters are on another device than a tensor of this name."""
        for parameter in self._parameters.values():
            if parameter is not None and parameter.device != tensor.device:
                raise ValueError(
                    f"{type(self).__name__} is on {parameter.device}, {name} on {tensor.device}; "
                    "move it with .to(device)"
                )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if metadata is not None and self.is_sized_by_grid:
            # 16x8 and 8x16 give tables of equal size: the shapes alone would not tell.
            metadata[prefix[:-1]]["posenc_grid"] = self.layout.grid

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        grid = local_metadata.get("posenc_grid", self.layout.grid)
        if self.is_sized_by_grid and tuple(grid) != self.layout.grid:
            error_msgs.append(
                f"{prefix[:-1]} was made for a {grid[0]}x{grid[1]} grid, this model's "
                f"{type(self).__name__} for {self.layout.height}x{self.layout.width}: create the "
                "model with that input size, load, then call model.set_input_size(...)"
            )
            return
        for name, reason in self.outdated.items():
            if prefix + name in state_dict:
                error_msgs.append(f"{prefix}{name} was not loaded: {reason}")
                return
        for name, parameter in self._parameters.items():
            value = state_dict.get(prefix + name)
            if value is not None and (fault := unfit(value, parameter)):
                error_msgs.append(
                    f"{prefix}{name} {fault[0]}, {type(self).__name__} was not loaded; {fault[1]}"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


# Where `patch_model` puts encodings that act on tokens, and in words.
PLACEMENTS = {
    "position": "on tokens, at the position step",
    "block": "on tokens, after blocks",
    "block_input": "on tokens, before blocks",
    "attention_input": "on tokens, before attention",
    "mlp_hidden": "on tokens, inside MLPs",
}


class TokenEncoding(Encoding):
    """Acts on tokens: `forward(x, layout) -> x`, `[B, N, embed_dim]`.

    Subclasses are final and implement `encode`. `placement` says where `patch_model` puts it:
    "position" at the model's own position step; "block" on the output of the blocks in `after`;
    "block_input" on what the blocks in `at` receive, all blocks where it is None; "mlp_hidden" on
    the hidden tokens of their MLPs, after the activation, whose width embed_dim then is; and
    "attention_input" on the tokens that the attention modules selected by `blocks=` receive, of
    which they make queries, keys and values.
    """

    placement = "position"
    after: tuple[int, ...] = ()
    at: tuple[int, ...] | None = None

    def __init__(self, layout: TokenLayout, embed_dim: int) -> None:
        super().__init__(layout)
        self.embed_dim = check_positive(embed_dim, "embed_dim", type(self).__name__)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """`[B, N, embed_dim]` -> `[B, N, embed_dim]`, tokens as `layout` says.

        Raises:
            TypeError: the layout is no TokenLayout, or the tokens are no floating point tensor:
                positions would be rounded.
            ValueError: the shape does not fit the layout or embed_dim, or the encoding is on
                another device.
        """
        name = type(self).__name__
        check_layout(layout, name)
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"{name}: tokens must be a floating point tensor, got {got}; positions would be "
                "rounded: convert the tokens first, such as with .float()"
            )
        expected = (layout.num_tokens, self.embed_dim)
        if x.dim() != 3 or tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"{name}: the layout {layout} has {layout.num_tokens} tokens of "
                f"width {self.embed_dim}, expected [B, {expected[0]}, {expected[1]}], got "
                f"{list(x.shape)}; pass the layout of these tokens"
            )
        self.check_device(x, "the tokens")
        self.check_prefix(layout)
        with without_autocast(x.device):
            return self.encode(x, layout)

    @abstractmethod
    def encode(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """The encoding of checked tokens."""


class AttentionEncoding(Encoding):
    """Acts inside attention: `forward(q, k, layout, *, scale=None) -> terms`.

    Subclasses are final and implement `terms`; one that reads neither `q` nor `k` says so by
    `is_static`, and its terms are then remembered in eval. Reports compare `kind` with the model's
    own positions: on a model that turns queries and keys itself, `patch_model` warns of another
    "rotary" encoding.
    """

    # What it gives, so that reports can say where a model has that already: "relative", "rotary",
    # or "content" where it knows no position.
    kind: str = "relative"

    is_static: bool = False
    """Whether the terms depend on the parameters and the layout only."""

    def __init__(self, layout: TokenLayout, num_heads: int, head_dim: int | None = None) -> None:
        super().__init__(layout)
        self.num_heads = check_positive(num_heads, "num_heads", type(self).__name__)
        self.head_dim = (
            None if head_dim is None else check_positive(head_dim, "head_dim", type(self).__name__)
        )
        self._static = _StaticTerms()

    def forward(
        self, q: Tensor, k: Tensor, layout: TokenLayout, *, scale: float | None = None
    ) -> tuple[Term, ...]:
        """The terms to hand to `posenc.attend`.

        Args:
            q: queries `[B, heads, N, head_dim]` as they reach attention, unscaled.
            k: keys, same shape.
            layout: the layout of these tokens.
            scale: of the attention, default `head_dim ** -0.5`; contextual terms use it.

        Raises:
            TypeError: the layout is no TokenLayout.
            ValueError: shapes or devices that fit neither the layout nor the constructor.
        """
        self._check(q, k, layout)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        if autocast_dtype(q.device) is None:  # the usual case, without a context
            return self._terms(q, k, layout, scale)
        with without_autocast(q.device):
            return self._terms(q, k, layout, scale)

    def _terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        if self.is_static and self._may_remember(q):
            return self._static.get(self, q, k, layout, scale)
        return _as_tuple(self.terms(q, k, layout, scale), self)

    @abstractmethod
    def terms(
        self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float
    ) -> Term | tuple[Term, ...]:
        """One term or several, of checked queries and keys, computed in at least float32."""

    def _check(self, q: Tensor, k: Tensor, layout: TokenLayout) -> None:
        name = type(self).__name__
        check_layout(layout, name)
        if q.dim() != 4 or q.shape != k.shape:
            raise ValueError(
                f"{name}: q and k must both be [B, heads, N, head_dim], got {list(q.shape)} and "
                f"{list(k.shape)}"
            )
        _, heads, tokens, head_dim = q.shape
        if tokens != layout.num_tokens:
            raise ValueError(
                f"{name}: the layout {layout} has {layout.num_tokens} tokens, but q has {tokens}; "
                "pass the layout of these tokens (were tokens dropped or merged?)"
            )
        if heads != self.num_heads or self.head_dim not in (None, head_dim):
            raise ValueError(
                f"{name} was built for num_heads={self.num_heads}, head_dim={self.head_dim}, but "
                f"q has {heads} heads of width {head_dim}"
            )
        self.check_device(q, "q")
        self.check_prefix(layout)

    def _may_remember(self, q: Tensor) -> bool:
        # On other devices comparing the parameters would wait for the device.
        return not (
            self.training or torch.is_grad_enabled() or q.device.type != "cpu" or is_transformed(q)
        )

    def train(self, mode: bool = True) -> AttentionEncoding:
        """As in torch; forgets the remembered terms."""
        self._static = _StaticTerms()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._static = _StaticTerms()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._static = _StaticTerms()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy see: without the remembered terms."""
        return {**self.__dict__, "_static": _StaticTerms()}


class _StaticTerms:
    """The terms of a static encoding, remembered while its parameters keep their *content*.

    `p.data.copy_()` changes a parameter without any trace but its values, so the values are
    compared: the tables are small, the dense biases that backends derive from them are not.
    """

    def __init__(self) -> None:
        # Replaced as a whole, so that threads see a consistent entry.
        self._entry: tuple[Any, list[Tensor], tuple[Term, ...]] = (None, [], ())

    def get(
        self, encoding: AttentionEncoding, q: Tensor, k: Tensor, layout: TokenLayout, scale: float
    ) -> tuple[Term, ...]:
        modules = _modules(encoding)
        state = _state(modules)
        # The class and the modules inside tell parametrisations that came or went.
        key = (layout, q.dtype, q.device, scale, type(encoding), modules[1:])
        seen, snapshot, terms = self._entry
        if seen != key or not _same_content(state, snapshot):
            # Outside inference mode: a later training step must be able to use its results.
            with torch.inference_mode(False), torch.no_grad():
                snapshot = [tensor.detach().clone() for tensor in state]
                terms = _as_tuple(encoding.terms(q, k, layout, scale), encoding)
                terms = tuple(map(_remembered, terms))
            self._entry = (key, snapshot, terms)
        return terms


def _as_tuple(terms: Any, encoding: AttentionEncoding) -> tuple[Term, ...]:
    """One term alone is accepted, as by `attend`."""
    if isinstance(terms, (tuple, list)):
        return tuple(terms)
    if not isinstance(terms, Term):
        raise TypeError(
            f"{type(encoding).__name__}: terms() must return a tuple of terms, got {terms!r}"
        )
    return (terms,)


def _modules(module: nn.Module) -> list[nn.Module]:
    """Itself first, then those inside, in a third of the time that torch takes: it names them."""
    modules = [module]
    for child in module._modules.values():
        if child is not None:
            modules += _modules(child)
    return modules


def _state(modules: list[nn.Module]) -> list[Tensor]:
    """Parameters and buffers."""
    return [
        tensor
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]


def _same_content(state: list[Tensor], snapshot: list[Tensor]) -> bool:
    if len(state) != len(snapshot):
        return False
    for a, b in zip(state, snapshot, strict=True):
        if a.dtype != b.dtype or a.device != b.device or not torch.equal(a, b):
            return False
    return True


def _remembered(term: Term) -> Any:
    # Copies: a view would follow the parameter, the memo would not.
    own = map_tensors(term, lambda _, tensor: tensor.detach().clone())
    return map_biases(own, with_memo)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are; a meta tensor has none."""
    return tensor.is_meta or bool(torch.isfinite(tensor).all())


def unfit(value: Tensor, parameter: Tensor | None) -> tuple[str, str] | None:
    """Why a saved value cannot be loaded into a parameter, and what to do; None when it can."""
    if not value.is_floating_point() and (parameter is None or parameter.is_floating_point()):
        return f"is {value.dtype} instead of floating point", "load the checkpoint without the cast"
    if not is_finite(value):
        return "has non-finite values", "load a checkpoint from before the divergence"
    return None


def check_layout(layout: Any, name: str) -> TokenLayout:
    """Raises unless `layout` is a TokenLayout."""
    if not isinstance(layout, TokenLayout):
        raise TypeError(
            f"{name}: layout must be a posenc.TokenLayout(height, width, prefix), got {layout!r}"
        )
    return layout


def check_positive(value: Any, name: str, owner: str) -> int:
    """Raises unless `value` is an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{owner}: {name} must be a positive int, got {value!r}")
    return value


def check_flag(value: Any, name: str, owner: str) -> bool:
    """Raises unless `value` is a bool: a string such as "no" would be true."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be True or False, got {value!r}")
    return value


def check_positive_number(value: Any, name: str, owner: str) -> float:
    """Raises unless `value` is one finite number above 0."""
    number = check_number(value, name, owner)
    if number <= 0:
        raise ValueError(f"{owner}: {name} must be positive, got {value!r}")
    return number


def check_number(value: Any, name: str, owner: str) -> float:
    """Raises unless `value` is one finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{owner}: {name} must be a finite number, got {value!r}")
    return number


def check_kernel_size(value: Any, owner: str) -> int:
    """Raises unless `value` is the side of a kernel that has a middle."""
    if check_positive(value, "kernel_size", owner) % 2 == 0:
        raise ValueError(f"{owner}: kernel_size must be odd, to keep the grid, got {value}")
    return int(value)


def check_blocks(value: Any, name: str, owner: str) -> tuple[int, ...]:
    """Block indices as a tuple without repetition."""
    blocks = tuple(value) if isinstance(value, (tuple, list, range)) else (value,)
    if not blocks or not all(isinstance(block, int) for block in blocks):
        raise ValueError(f"{owner}: {name} must be block indices such as (0,), got {value!r}")
    if len(set(blocks)) != len(blocks):
        raise ValueError(f"{owner}: {name} must not repeat a block, got {value!r}")
    return blocks


def check_choice(value: Any, choices: tuple[str, ...], name: str, owner: str) -> str:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{owner}: {name} must be one of {known}, got {value!r}")
    return str(value)
