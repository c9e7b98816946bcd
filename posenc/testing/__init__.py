"""Checks that every encoding must pass: what `posenc.testing.check_encoding` promises its users.

They hold for the encodings of posenc and for those of users alike; no encoding is known by name
here. Parameters are randomized before two computations are compared, because tables that start at
zero hide mistakes, and grids are not square, because squares hide exchanged rows and columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from posenc.attention import BackendName
from posenc.layout import TokenLayout
from posenc.testing import alone, backends, in_models
from posenc.testing.subject import LAYOUTS, Subject

Check = Callable[[], None]

__all__ = ["check_backend", "check_encoding", "checks_of"]


def check_encoding(encoding: Any, *, num_heads: int = 2, head_dim: int = 8, **options: Any) -> None:
    """Raises unless an encoding keeps all promises of posenc, for both kinds of encodings.

    An attention encoding is compared on every backend that computes it with the reference, forward
    and all gradients; a token encoding is compared image by image. Both are checked for their
    stated effect at start, other grids than their own and states of those, dtypes, autocast, copies
    and state dicts, one graph under `torch.compile`, and inside a patched model (keys, gradients,
    capture, folding, export, unpatching). It takes some seconds, on the CPU, and no images.

    Args:
        encoding: as for `patch_model`: a registered name, a class or a callable.
        num_heads: heads to build it with.
        head_dim: width of a head to build it with; tokens have `num_heads * head_dim` channels.
        **options: of the encoding.

    Raises:
        AssertionError: the first promise that is not kept, named, with the reason.
        ValueError: an unknown name or option.

    >>> check_encoding("swin")
    """
    for name, check in checks_of(encoding, num_heads=num_heads, head_dim=head_dim, **options):
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{encoding!r}: {name}: {error}") from error


def checks_of(
    encoding: Any, *, num_heads: int = 2, head_dim: int = 8, **options: Any
) -> Iterator[tuple[str, Check]]:
    """Name and function of each check, for test runners: arguments as of `check_encoding`.

    >>> [name for name, _ in checks_of("peg")][:2]
    ['States its effect at start', 'Accepts other grids']
    """
    subject = Subject(encoding, num_heads, head_dim, options)
    in_attention = backends.CHECKS if subject.acts_in_attention else ()
    for check in (*alone.CHECKS, *in_attention, *in_models.CHECKS):
        doc = (inspect.getdoc(check) or "").splitlines()[0].rstrip(".")
        yield doc, _bound(check, subject)


def check_backend(
    encoding: Any,
    backend: BackendName,
    *,
    dtype: torch.dtype = torch.float64,
    layouts: Sequence[TokenLayout] = LAYOUTS,
    num_heads: int = 2,
    head_dim: int = 8,
    **options: Any,
) -> int:
    """Compares one backend with the reference, forward and all gradients.

    Args:
        encoding: of the attention, as for `check_encoding`.
        backend: its name.
        dtype: of queries, keys and values.
        layouts: on which they are compared.
        num_heads: as for `check_encoding`.
        head_dim: as for `check_encoding`.
        **options: of the encoding.

    Raises:
        AssertionError: results that differ by more than rounding.

    Returns:
        Number of layouts on which the backend computes the call; it may refuse all.
    """
    subject = Subject(encoding, num_heads, head_dim, options)
    return sum(backends.compare(subject, layout, backend, dtype) for layout in layouts)


def _bound(check: Any, subject: Subject) -> Check:
    return lambda: check(subject)
