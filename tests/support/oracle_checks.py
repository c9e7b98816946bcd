"""An attention encoding against a formula in loops: output and all gradients, on each backend."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import torch
from torch import Tensor

from posenc import TokenLayout, attend

BACKENDS = ("reference", "sdpa", "tiled")


def equals(
    encoding,
    sizes: tuple[int, int, int],
    expected: Callable[..., Tensor],
    *,
    head_dim: int = 4,
    backends: tuple[str, ...] = BACKENDS,
) -> None:
    """`expected(q, k, v)` is the output that the formula gives for these tokens."""
    layout = TokenLayout(*sizes)
    q, k, v, cotangent = oracles.random_qkv(layout.num_tokens, encoding.num_heads, head_dim)
    leaves = [q, k, v, *encoding.parameters()]
    want = expected(q, k, v)
    wanted = torch.autograd.grad(want, leaves, cotangent, materialize_grads=True)
    for backend in backends:
        out = attend(q, k, v, encoding(q, k, layout), backend=backend)
        torch.testing.assert_close(out, want, atol=1e-10, rtol=0)
        grads = torch.autograd.grad(out, leaves, cotangent, materialize_grads=True)
        for grad, right in zip(grads, wanted, strict=True):
            torch.testing.assert_close(grad, right, atol=1e-9, rtol=0)


def with_bias(entry, sizes: tuple[int, int, int]) -> Callable[..., Tensor]:
    """Usual attention plus `entry(i, j, q, k)`, each `[1 or B, heads]`, for `equals`."""

    def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = oracles.build_bias(*sizes, lambda i, j: entry(i, j, q, k))
        return oracles.attention(q, k, v, bias)[0]

    return expected


def key_minus_query(i: int, j: int, width: int, prefix: int) -> tuple[int, int] | None:
    """(row, column), None with a prefix token."""
    query, key = oracles.position(i, width, prefix), oracles.position(j, width, prefix)
    return None if query is None or key is None else (key[0] - query[0], key[1] - query[1])
