"""Who is measured: modules `(q, k, v) -> out`, each with its definition to compare against."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import posenc
from posenc.attention.api import BACKENDS, BackendName
from posenc.bench.cases import Case, Shape


class Contender(Protocol):
    """A row of the table: its first two columns, and what it runs."""

    @property
    def case(self) -> str:
        """Its label."""
        ...

    @property
    def backend(self) -> str:
        """That of posenc, or "peer"."""
        ...

    def build(
        self, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """The module to measure, for inputs of this dtype, and its definition, in float64."""
        ...


class Plain(nn.Module):
    """What every ratio is over."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Plain SDPA."""
        return F.scaled_dot_product_attention(q, k, v)


class Encoded(nn.Module):
    """Attention with an encoding of posenc."""

    def __init__(self, encoding: nn.Module, layout: posenc.TokenLayout, backend: str) -> None:
        super().__init__()
        self.encoding, self.layout, self.backend = encoding, layout, backend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The terms, and attention with them."""
        terms = self.encoding(q, k, self.layout)
        return posenc.attend(q, k, v, terms, backend=cast(BackendName, self.backend))

    def choice(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[str, str | None]:
        """(backend, why it rejects these inputs); both may depend on the gradient mode."""
        explained = posenc.explain(q, k, v, self.encoding(q, k, self.layout))
        if self.backend == "auto":  # of a mixture, one backend for each attention
            return explained.choice, None
        return self.backend, explained.reasons[self.backend]


@dataclass(frozen=True)
class Ours:
    """An encoding by one backend of `posenc.attend`."""

    encoding: Case
    backend: str

    @property
    def case(self) -> str:
        """The encoding's label."""
        return self.encoding.label

    def build(
        self, shape: Shape, device: torch.device, dtype: torch.dtype
    ) -> tuple[nn.Module, nn.Module]:
        """Defined by the reference backend; parameters stay in float32 beside 16-bit inputs."""
        encoding = self.encoding.build(shape, device)
        return Encoded(encoding, shape.layout, self.backend), definition(encoding, shape)


def definition(encoding: nn.Module, shape: Shape) -> Encoded:
    """The reference backend in float64, with the same parameters."""
    return Encoded(deepcopy(encoding).double(), shape.layout, "reference")


def expand_backends(names: Iterable[str]) -> list[str]:
    """`all` stands for every backend there is."""
    expanded = [one for name in names for one in (BACKENDS if name == "all" else [name])]
    return list(dict.fromkeys(expanded))
