"""What a patched module does, as data: its generated class follows from its roles."""

from __future__ import annotations

from dataclasses import dataclass


class _OnForward:
    """A role of the module's forward."""

    def replaced(self) -> tuple[str, ...]:
        """Methods that it replaces, which must not stand on an instance already."""
        return ("forward",)


@dataclass(frozen=True)
class Root:
    """Tells optimizers about the encodings."""

    def replaced(self) -> tuple[str, ...]:
        """Nothing that may stand on an instance already."""
        return ()


@dataclass(frozen=True)
class HideTable:
    """Hides its absolute table in these methods."""

    table: str
    methods: tuple[str, ...]

    def replaced(self) -> tuple[str, ...]:
        """The methods that read the table."""
        return self.methods


@dataclass(frozen=True)
class BindLayout:
    """Remembers the layout of its input, for a replay of its forward."""

    def replaced(self) -> tuple[str, ...]:
        """`__call__`, which no instance has."""
        return ()


@dataclass(frozen=True)
class EncodeInput(_OnForward):
    """Encodes the tokens that its forward receives."""


@dataclass(frozen=True)
class SeeMap(_OnForward):
    """Takes the layout from the map that its forward receives."""

    pattern: str  # "b h w c", "b c h w" or "size", see AttentionKind


@dataclass(frozen=True)
class ReplaceAttention(_OnForward):
    """Replaces the attention calls in its forward, or by an adapter."""

    adapter: str | None = None


@dataclass(frozen=True)
class SeeImage(_OnForward):
    """Notes the layout of the image that its forward received."""


@dataclass(frozen=True)
class EncodePositions:
    """Encodes the tokens that this method returns."""

    method: str

    def replaced(self) -> tuple[str, ...]:
        """The method."""
        return (self.method,)


@dataclass(frozen=True)
class EncodeOutput(_OnForward):
    """Encodes the tokens that its forward returns."""


Role = (
    Root
    | HideTable
    | BindLayout
    | EncodeInput
    | SeeMap
    | ReplaceAttention
    | SeeImage
    | EncodePositions
    | EncodeOutput
)

# The order in which a generated class gets its roles: what comes later wraps what came before,
# so that a map is seen before the input is encoded, and the output is encoded last.
ORDER = (
    Root,
    HideTable,
    ReplaceAttention,
    EncodeInput,
    SeeMap,
    BindLayout,
    SeeImage,
    EncodePositions,
    EncodeOutput,
)


def in_order(roles: list[Role]) -> tuple[Role, ...]:
    """The roles as a key of the generated class."""
    return tuple(sorted(roles, key=lambda role: ORDER.index(type(role))))
