"""The published formulas as loops over tokens: slow, literal, and independent of posenc.

A layout is three integers: `height` and `width` of the row-major grid, `prefix` tokens before
it. A bias is `[1 or B, heads, query, key]`. Query tokens are called i, key tokens j.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def random_qkv(tokens: int, heads: int = 2, head_dim: int = 4, batch: int = 2, seed: int = 0):
    """Query, key, value and the output's cotangent, float64, three leaves and a constant."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, tokens, head_dim)
    q, k, v, cotangent = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), cotangent


def randomize(module: torch.nn.Module, seed: int = 0, scale: float = 0.5) -> torch.nn.Module:
    """Moves every parameter away from its start, which may be zero or symmetric."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(scale * noise)
    return module


def position(token: int, width: int, prefix: int) -> tuple[int, int] | None:
    """(row, column) of a grid token; None for a prefix token."""
    return None if token < prefix else divmod(token - prefix, width)


def num_tokens(height: int, width: int, prefix: int) -> int:
    return prefix + height * width


def build_bias(height: int, width: int, prefix: int, entry) -> Tensor:
    """`[B, heads, N, N]` of `entry(i, j)`, each `[B, heads]`."""
    tokens = range(num_tokens(height, width, prefix))
    return torch.stack([torch.stack([entry(i, j) for j in tokens], -1) for i in tokens], -2)


# Attention


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Output `[B, heads, Nq, Dv]` and probabilities; a row without any key is zero.

    A boolean mask keeps where True, a float mask is added (-inf removes the key).
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    shape = (*q.shape[:3], k.shape[2])
    bias = torch.zeros(shape, dtype=q.dtype) if bias is None else bias.expand(shape)
    keep = torch.ones(shape, dtype=torch.bool)
    if mask is not None:
        mask = mask.expand(shape)
        keep = mask if mask.dtype == torch.bool else mask > -math.inf
        if mask.dtype != torch.bool:
            bias = bias + mask.masked_fill(~keep, 0.0)
    outputs, rows = [], []
    for i in range(q.shape[2]):
        scores = [
            scale * (q[:, :, i] * k[:, :, j]).sum(-1) + bias[:, :, i, j] for j in range(k.shape[2])
        ]
        top = torch.stack(scores).detach().amax(0)
        weights = [(s - top).exp() * keep[:, :, i, j] for j, s in enumerate(scores)]
        total = sum(weights)
        total = total + (total == 0)
        row = [weight / total for weight in weights]
        outputs.append(sum(p[..., None] * v[:, :, j] for j, p in enumerate(row)))
        rows.append(torch.stack(row, -1))
    return torch.stack(outputs, -2), torch.stack(rows, -2)


def value_lookup(
    probabilities: Tensor, table: Tensor, bucket, height: int, width: int, prefix: int
) -> Tensor:
    """`sum_j a[i, j] table[bucket(i, j)]`, `table` `[1 or heads, T, Dv]`; bucket None adds 0."""
    heads = probabilities.shape[1]
    table = table.expand(heads, -1, -1)
    tokens = range(num_tokens(height, width, prefix))
    zero = torch.zeros(*probabilities.shape[:2], table.shape[-1], dtype=table.dtype)
    rows = []
    for i in tokens:
        row = zero
        for j in tokens:
            if bucket(i, j) is not None:
                row = row + probabilities[:, :, i, j, None] * table[:, bucket(i, j)]
        rows.append(row)
    return torch.stack(rows, -2)


def prefix_bucket(i: int, j: int, prefix: int, prefix_pairs: str, grid_buckets: int) -> int | None:
    """Bucket of a pair with a prefix token: none, one more, or three more (BEiT's order)."""
    if prefix_pairs == "none":
        return None
    if prefix_pairs == "shared":
        return grid_buckets
    if i < prefix and j < prefix:
        return grid_buckets + 2
    return grid_buckets if i < prefix else grid_buckets + 1


# iRPE (Wu et al. 2021)


def piecewise(x: float, ratio: float) -> int:
    """g(x), equation 18, in the published code's order of float32 operations."""
    alpha, beta, gamma = ratio, 2 * ratio, 8 * ratio
    if abs(x) <= alpha:
        return round(x)  # half to even
    log = torch.log(torch.tensor(abs(x)) / alpha)
    far = (alpha + log / math.log(gamma / alpha) * (beta - alpha)).round().clip(max=beta).item()
    return int(math.copysign(far, x))


def irpe_buckets(method: str, ratio: float) -> int:
    """Buckets of grid pairs; method is product, euclidean, quantized, rows or cols."""
    side = 2 * int(2 * ratio) + 1
    return side * side if method == "product" else side


def irpe_bucket(
    i: int, j: int, width: int, prefix: int, method: str, ratio: float, prefix_pairs: str
) -> int | None:
    """Bucket of (query i, key j), from the offset query minus key."""
    query, key = position(i, width, prefix), position(j, width, prefix)
    if query is None or key is None:
        return prefix_bucket(i, j, prefix, prefix_pairs, irpe_buckets(method, ratio))
    row, column = query[0] - key[0], query[1] - key[1]
    middle = int(2 * ratio)
    if method == "product":
        side = 2 * middle + 1
        return (piecewise(row, ratio) + middle) * side + piecewise(column, ratio) + middle
    if method == "euclidean":
        return piecewise(float(round(math.sqrt(row**2 + column**2))), ratio) + middle
    if method == "quantized":
        return piecewise(row**2 + column**2, ratio) + middle
    return piecewise({"rows": row, "cols": column}[method], ratio) + middle


def irpe(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: dict[str, Tensor],
    height: int,
    width: int,
    prefix: int,
    *,
    mode: str,
    method: str,
    ratio: float = 1.9,
    prefix_pairs: str = "shared",
    scale: float | None = None,
) -> Tensor:
    """Attention output with iRPE; `tables` by name: table_q, table_k, table_v, or ..._rows, _cols.

    contextual: `(s q_i) . T_k[:, id(i, j)]`, `(s k_j) . T_q[:, id(j, i)]`; bias: the entry itself.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    heads = q.shape[1]

    def bucket_of(name: str):
        axis = name.split("_")[2] if method == "cross" else method
        return lambda i, j: irpe_bucket(i, j, width, prefix, axis, ratio, prefix_pairs)

    def entry(i: int, j: int) -> Tensor:
        total = torch.zeros(q.shape[:2], dtype=q.dtype)
        for name, table in tables.items():
            bucket = bucket_of(name)
            if name.startswith("table_k"):
                pair, content = bucket(i, j), q[:, :, i]
            elif name.startswith("table_q"):
                pair, content = bucket(j, i), k[:, :, j]
            else:
                continue
            if pair is None:
                continue
            if mode == "bias":
                total = total + table[:, pair]
            else:
                total = total + (scale * content * table.expand(heads, -1, -1)[:, :, pair]).sum(-1)
        return total

    bias = build_bias(height, width, prefix, entry)
    out, probabilities = attention(q, k, v, bias, scale=scale)
    for name, table in tables.items():
        if name.startswith("table_v"):
            out = out + value_lookup(probabilities, table, bucket_of(name), height, width, prefix)
    return out


# Swin (Liu et al. 2021)


def swin_bucket(i: int, j: int, height: int, width: int, prefix: int, prefix_pairs: str):
    """Offset query minus key, row-major."""
    query, key = position(i, width, prefix), position(j, width, prefix)
    if query is None or key is None:
        grid_buckets = (2 * height - 1) * (2 * width - 1)
        return prefix_bucket(i, j, prefix, prefix_pairs, grid_buckets)
    row, column = query[0] - key[0], query[1] - key[1]
    return (row + height - 1) * (2 * width - 1) + column + width - 1


def swin_bias(
    table: Tensor, height: int, width: int, prefix: int, prefix_pairs: str = "none"
) -> Tensor:
    """`table` `[heads, T]`."""

    def entry(i: int, j: int) -> Tensor:
        bucket = swin_bucket(i, j, height, width, prefix, prefix_pairs)
        return torch.zeros_like(table[None, :, 0]) if bucket is None else table[None, :, bucket]

    return build_bias(height, width, prefix, entry)


def geometric_positions(old: int, new: int) -> list[float]:
    """Where the old offsets 0, 1, ..., old-1 lie among the new: 0, 1, 1+q, 1+q+q^2, ...

    q is such that the last old offset lies on the last new one; found by bisection.
    """
    low, high = 1e-9, 1e3
    for _ in range(300):
        q = (low + high) / 2
        reached = sum(q**power for power in range(old - 1))
        low, high = (q, high) if reached < new - 1 else (low, q)
    return [sum(q**power for power in range(count)) for count in range(old)]


def resample_line(values: list[Tensor], new: int) -> list[Tensor]:
    """Entries of offsets -(old-1)..old-1, linearly interpolated at -(new-1)..new-1."""
    old = (len(values) + 1) // 2
    if old == 1:
        return [values[0]] * (2 * new - 1)
    if old == new:
        return list(values)
    places = geometric_positions(old, new)
    result = []
    for offset in range(1 - new, new):
        sign, distance = (-1 if offset < 0 else 1), abs(offset)
        step = 1
        while step < old - 1 and places[step] < distance - 1e-9:
            step += 1
        share = (distance - places[step - 1]) / (places[step] - places[step - 1])
        share = min(max(share, 0.0), 1.0)
        near, far = values[old - 1 + sign * (step - 1)], values[old - 1 + sign * step]
        result.append((1 - share) * near + share * far)
    return result


def resample_offsets(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """`[heads, (2h-1)(2w-1)]` on another grid, one axis after the other."""
    side = 2 * old[1] - 1
    rows = [table[:, start * side : (start + 1) * side] for start in range(2 * old[0] - 1)]
    rows = resample_line(rows, new[0])
    rows = [torch.stack(resample_line(list(row.unbind(-1)), new[1]), -1) for row in rows]
    return torch.cat(rows, -1)


# T5 (Raffel et al. 2019)


def t5_bucket(offset: int, num_buckets: int, max_distance: int) -> int:
    """Of key minus query: half for either sign, of these half exact and the rest logarithmic."""
    half, distance = num_buckets // 2, abs(offset)
    sign, exact = (half if offset > 0 else 0), half // 2
    if distance < exact:
        return sign + distance
    share = math.log(distance / exact) / math.log(max_distance / exact)
    return sign + min(half - 1, exact + int(share * (half - exact)))


# Quadratic (Cordonnier et al. 2020)


def quadratic_bias(
    centers: Tensor, alpha: Tensor, strength: Tensor, height: int, width: int, prefix: int
) -> Tensor:
    """`-g alpha |d - D|^2`, d = key minus query (row, column); 0 with a prefix token."""

    def entry(i: int, j: int) -> Tensor:
        query, key = position(i, width, prefix), position(j, width, prefix)
        if query is None or key is None:
            return torch.zeros_like(alpha)[None]
        row = key[0] - query[0] - centers[:, 0]
        column = key[1] - query[1] - centers[:, 1]
        return (-strength * alpha * (row**2 + column**2))[None]

    return build_bias(height, width, prefix, entry)


# Absolute positions


def sincos(
    height: int, width: int, prefix: int, dim: int, convention: str, temperature: float = 10000.0
) -> Tensor:
    """`[N, dim]` float64, prefix rows zero."""
    table = [[0.0] * dim for _ in range(prefix)]
    for token in range(prefix, num_tokens(height, width, prefix)):
        row, column = position(token, width, prefix)
        if convention == "vaswani":
            angles = [(token - prefix) / temperature ** (2 * i / dim) for i in range(dim // 2)]
            table.append([wave for a in angles for wave in (math.sin(a), math.cos(a))])
            continue
        frequencies = [temperature ** (-i / (dim // 4)) for i in range(dim // 4)]
        sin_row, cos_row = _waves(row, frequencies)
        sin_column, cos_column = _waves(column, frequencies)
        table.append(
            {
                "mae": sin_column + cos_column + sin_row + cos_row,
                "timm": sin_row + sin_column + cos_row + cos_column,
            }[convention]
        )
    return torch.tensor(table, dtype=torch.float64)


def _waves(place: int, frequencies: list[float]) -> tuple[list[float], list[float]]:
    return [math.sin(place * f) for f in frequencies], [math.cos(place * f) for f in frequencies]


def peg(x: Tensor, weight: Tensor, bias: Tensor, height: int, width: int, prefix: int) -> Tensor:
    """`x + conv(x)` on the grid, per channel, zeros outside it; prefix tokens as they are."""
    half = weight.shape[-1] // 2
    tokens = [x[:, token] for token in range(prefix)]
    for row in range(height):
        for column in range(width):
            total = x[:, prefix + row * width + column] + bias
            for down in range(-half, half + 1):
                for right in range(-half, half + 1):
                    r, c = row + down, column + right
                    if 0 <= r < height and 0 <= c < width:
                        neighbor = x[:, prefix + r * width + c]
                        total = total + weight[:, 0, down + half, right + half] * neighbor
            tokens.append(total)
    return torch.stack(tokens, 1)


# Terms that rewrite a call


def rotation_matrices(cos, sin, width, interleaved):
    """`[..., width, width]`: one 2x2 block for each pair of channels."""
    result = torch.zeros(*cos.shape[:-1], width, width, dtype=cos.dtype)
    result += torch.eye(width, dtype=cos.dtype)
    half = cos.shape[-1]
    for c in range(half):
        a, b = (2 * c, 2 * c + 1) if interleaved else (c, c + half)
        result[..., a, a], result[..., a, b] = cos[..., c], -sin[..., c]
        result[..., b, a], result[..., b, b] = sin[..., c], cos[..., c]
    return result


def turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Queries or keys, rotated by matrices."""
    matrix = rotation_matrices(cos, sin, x.shape[-1], interleaved)
    return (matrix @ x[..., None])[..., 0]


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()
