"""What position encodings have learned, as maps of the patch grid."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from posenc.analysis.checks import check_pairs
from posenc.analysis.recorder import dense_bias
from posenc.encodings import LearnedAbsolute, Sinusoidal
from posenc.encodings.base import check_layout
from posenc.functional.precision import at_least_float32
from posenc.layout import TokenLayout
from posenc.patching.checkpoint import patched_encodings
from posenc.patching.fold import FoldedBias
from posenc.patching.observe import examine_originals
from posenc.patching.patch import is_patched, named_backbone, site_modules
from posenc.patching.sites.site import Site


def position_similarity(
    table: Tensor | LearnedAbsolute | Sinusoidal, layout: TokenLayout, *, center: bool = False
) -> Tensor:
    """Cosine similarity of the position vectors of each pair of patches.

    `s[i, j] = t_i . t_j / (|t_i| |t_j|)`; prefix rows are left out. With `center`, `t` is the table
    less the mean of its patches.

    Args:
        table: `[N, C]` or `[1, N, C]` with a row for each token or for each patch, such as
            `model.pos_embed`; or an encoding that adds such a table, which it then has for
            `layout` (resampled, where it was built for another grid).
        layout: of the tokens.
        center: subtract the mean, that what all vectors share does not hide where they differ.

    Raises:
        ValueError: a shape that does not fit the layout, or a row of zeros (of means, with
            `center`), which has no direction.
        TypeError: something that is neither a floating point tensor nor such an encoding.

    Returns:
        `[height, width, height, width]`, in at least float32, without graph: entry `[y, x]` is
        the map of the patch in row y and column x.

    Reference: Dosovitskiy et al. 2021, arXiv 2010.11929, figure 7, center.

    >>> layout = TokenLayout(2, 3, prefix=1)
    >>> maps = position_similarity(Sinusoidal(layout, embed_dim=8), layout)
    >>> maps.shape, round(maps[1, 2, 1, 2].item(), 4)
    (torch.Size([2, 3, 2, 3]), 1.0)
    """
    check_layout(layout, "position_similarity")
    rows = _grid_rows(_table_of(table, layout), layout)
    rows = rows.to(at_least_float32(rows.dtype))
    if center:
        rows = rows - rows.mean(dim=0)
    norms = rows.norm(dim=-1)
    if bool((norms == 0).any()):
        row, column = divmod(int((norms == 0).nonzero()[0]), layout.width)
        raise ValueError(
            f"position_similarity: the row of the patch at ({row}, {column}) is zero, so it has "
            "no direction (an encoding that has not been trained, or strength 0?)"
        )
    unit = rows / norms[:, None]
    return (unit @ unit.T).view(*layout.grid, *layout.grid)


def bias_map(
    bias: Tensor,
    layout: TokenLayout,
    query: int | tuple[int, int],
    *,
    center: bool = True,
) -> Tensor:
    """The bias that one query gives to each patch.

    `m[..., y, x] = b[..., query, key at (y, x)] - mean of b[..., query, :]`. The mean is over all
    keys, prefix tokens included: biases are defined up to a constant per query. Keys that the query
    does not see, at minus infinity, stay there and are left out of the mean.

    Args:
        bias: `[..., N, N]`, rows are queries, such as `captured.bias["blocks.0.attn"]`.
        layout: of the tokens.
        query: (row, column) of a patch, or the index of a prefix token.
        center: subtract the mean.

    Raises:
        ValueError: a shape that does not fit the layout, or a query that is not in it.
        TypeError: something that is no floating point tensor, or no query.

    Returns:
        `[..., height, width]` with the leading dimensions of `bias`.

    >>> layout = TokenLayout(2, 3)
    >>> bias_map(torch.arange(36.0).view(1, 1, 6, 6), layout, (1, 0))
    tensor([[[[-2.5000, -1.5000, -0.5000],
              [ 0.5000,  1.5000,  2.5000]]]])
    """
    check_pairs(bias, layout, "bias_map: bias")
    row = bias[..., query_index(query, layout, "bias_map"), :]
    if center:
        hidden = row == float("-inf")  # which would make the mean of the others infinite
        total = row.masked_fill(hidden, 0.0).sum(dim=-1, keepdim=True)
        row = row - total / (~hidden).sum(dim=-1, keepdim=True)
    return row[..., layout.prefix :].unflatten(-1, layout.grid)


def position_biases(model: nn.Module) -> dict[str, Tensor]:
    """The biases of a patched model, without any image.

    For static encodings, which read neither queries nor keys (`swin`, `quadratic`, `human_part`,
    `irpe` with mode="bias" and others with `is_static`), and any that `posenc.fold_biases` has
    folded, at the layout that the model has now. Several encodings of a module add up; each row is
    defined up to a constant.

    Args:
        model: a patched model; its own biases are not included.

    Raises:
        ValueError: the model is not patched, has no encoding inside attention, or one that
            depends on the images.

    Returns:
        Name of each attention module -> `[heads, N, N]`, in at least float32, without graph.

    >>> import timm, posenc
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2)
    >>> biases = position_biases(posenc.patch_model(vit, "swin"))
    >>> {name: tuple(bias.shape) for name, bias in biases.items()}
    {'blocks.0.attn': (3, 7, 7), 'blocks.1.attn': (3, 7, 7)}
    """
    biases: dict[str, Tensor] = {}
    for name, module in _encoded_attention(model).items():
        bias = _static_bias(name, module)
        if bias is not None:
            biases[name] = bias
    if not biases:
        raise ValueError(
            "position_biases: no encoding of the model gives a bias inside attention; for tables "
            "of tokens see posenc.analysis.position_similarity"
        )
    return biases


def bias_layouts(model: nn.Module) -> dict[str, TokenLayout]:
    """The layouts that `position_biases` has its biases at, by the same names.

    Raises:
        ValueError: the model is not patched.
    """
    return {n: module._posenc.layout.latest() for n, module in _encoded_attention(model).items()}


def _encoded_attention(model: nn.Module) -> dict[str, Any]:
    """Name in the model -> attention module with encodings."""
    prefix, backbone = named_backbone(model)
    return {
        ".".join(filter(None, [prefix, name])) or module._posenc.name: module
        for name, module in site_modules(backbone).items()
        if module._posenc.attention
    }


def model_table(
    model: nn.Module, caller: str
) -> tuple[Tensor | LearnedAbsolute | Sinusoidal, TokenLayout]:
    """The absolute positions of a model: what it is patched with, or else its own table.

    Raises:
        ValueError: there are none, or several encodings.
    """
    found = patched_encodings(model) if is_patched(model) else {}
    added = {n: one for n, one in found.items() if isinstance(one, LearnedAbsolute | Sinusoidal)}
    if len(added) > 1:
        raise ValueError(
            f"{caller}: the model is patched with several tables ({', '.join(added)}): pass one, "
            "posenc.patched_encodings(model) has them"
        )
    for one in added.values():
        return one, named_backbone(model)[1]._posenc_record.layout.latest()
    backbone = examine_originals(model, None)
    table, source = backbone.table, backbone.layout
    if table is None or source is None:
        raise ValueError(
            f"{caller}: {type(backbone.module).__name__} has no table of absolute positions that "
            "posenc knows: pass the table and layout="
        )
    layout = source.default()
    grid = backbone.table_grid or layout.grid
    rows = (table.detach().flatten(1, -2) if table.dim() == 4 else table.detach()).squeeze(0)
    layout = TokenLayout(*grid, prefix=layout.prefix)
    if rows.dim() != 2 or len(rows) not in (layout.num_grid, layout.num_tokens):
        raise ValueError(
            f"{caller}: the table is {list(table.shape)}, not a row a patch of {layout}: pass the "
            "table and layout="
        )
    return rows, layout


def _static_bias(name: str, module: Any) -> Tensor | None:
    site: Site = module._posenc
    layout, parameter = site.layout.latest(), next(module.parameters())
    shape = (1, site.num_heads, layout.num_tokens, site.head_dim)
    like = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    terms = []
    for label, encoding in zip(site.attention, site.encodings(module, site.attention), strict=True):
        if not (encoding.is_static or isinstance(encoding, FoldedBias)):
            raise ValueError(
                f"position_biases: {label} of {name} depends on queries and keys, so it has no "
                "bias without an image: use posenc.analysis.capture_attention(model), run images "
                "and read captured.bias"
            )
        with torch.no_grad():
            terms.extend(encoding(like, like, layout))
    bias = dense_bias(terms, like)
    return None if bias is None else bias[0].expand(site.num_heads, -1, -1).clone()


def _table_of(table: Any, layout: TokenLayout) -> Tensor:
    if isinstance(table, LearnedAbsolute | Sinusoidal):
        parameter = next(table.parameters())
        nothing = parameter.new_zeros(1, layout.num_tokens, table.embed_dim)
        with torch.no_grad():
            return table(nothing.to(at_least_float32(parameter.dtype)), layout)
    if not isinstance(table, Tensor) or not table.is_floating_point():
        got = table.dtype if isinstance(table, Tensor) else type(table).__name__
        raise TypeError(
            "position_similarity: table must be a floating point tensor, a posenc.LearnedAbsolute "
            f"or a posenc.Sinusoidal, got {got}"
        )
    return table.detach()


def _grid_rows(table: Tensor, layout: TokenLayout) -> Tensor:
    """`[num_grid, C]`."""
    rows = table[0] if table.dim() == 3 and table.shape[0] == 1 else table
    if rows.dim() != 2 or rows.shape[0] not in (layout.num_tokens, layout.num_grid):
        raise ValueError(
            f"position_similarity: table must be [N, C] or [1, N, C] with {layout.num_tokens} rows "
            f"for the tokens of {layout}, or {layout.num_grid} for its patches, got "
            f"{list(table.shape)}; pass the layout of this table"
        )
    return rows[-layout.num_grid :]


def query_index(query: Any, layout: TokenLayout, caller: str) -> int:
    """The token of a query: (row, column) of a patch, or the index of a prefix token.

    Raises:
        ValueError: it is not in the layout.
        TypeError: it is neither.
    """
    place = query if isinstance(query, tuple | list) else (query,)
    try:
        numbers = [operator.index(number) for number in place]
    except TypeError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise TypeError(
            f"{caller}: query must be (row, column) of a patch, or the index of a prefix token, "
            f"got {query!r}"
        )
    limits = layout.grid if len(numbers) == 2 else (layout.prefix,)
    if not all(0 <= n < limit for n, limit in zip(numbers, limits, strict=True)):
        raise ValueError(
            f"{caller}: query={query!r} is not in the layout {layout}: (row, column) of a patch "
            f"goes up to ({layout.height - 1}, {layout.width - 1}), and there are {layout.prefix} "
            "prefix tokens"
        )
    if len(numbers) == 1:
        return numbers[0]
    return layout.prefix + numbers[0] * layout.width + numbers[1]
