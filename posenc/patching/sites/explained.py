"""Which backend a site would use, asked without running its model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from posenc.attention import BackendName, Explanation, explain
from posenc.encodings.base import Encoding
from posenc.patching.sites.site import Site


def explain_site(
    module: nn.Module,
    site: Site,
    encodings: Sequence[Encoding],
    training: bool = False,
    batch: int = 1,
    dtype: torch.dtype | None = None,
) -> Explanation:
    """What `attend` would do at this site, at the layout of its last call or else its default.

    Args:
        module: the attention module.
        site: what it carries, or will carry.
        encodings: those that act inside its attention.
        training: with gradients and the module's dropout, instead of in eval without.
        batch: number of images.
        dtype: of queries, keys and values, default the module's own.
    """
    layout = site.layout.latest()
    parameter = next(module.parameters())
    shape = (batch, site.num_heads, layout.num_tokens)
    dtype = parameter.dtype if dtype is None else dtype
    q = torch.zeros(*shape, site.head_dim, device=parameter.device, dtype=dtype)
    v = q.new_zeros(*shape, site.value_dim)
    dropout = _dropout_of(module) if training else 0.0
    with torch.set_grad_enabled(training), _in_mode(encodings, training):
        q.requires_grad_(training)
        terms = [term for encoding in encodings for term in encoding(q, q, layout)]
        backend = cast(BackendName, site.backend)
        return explain(q, q, v, terms, dropout_p=dropout, backend=backend)


@contextlib.contextmanager
def _in_mode(encodings: Sequence[Encoding], training: bool) -> Iterator[None]:
    """The flag alone: `train()` would make encodings forget what they remember."""
    before = [encoding.training for encoding in encodings]
    try:
        for encoding in encodings:
            encoding.training = training
        yield
    finally:
        for encoding, mode in zip(encodings, before, strict=True):
            encoding.training = mode


def _dropout_of(module: Any) -> float:
    """The dropout of attention weights: of timm's `attn_drop`, or torch's number `dropout`."""
    given = getattr(getattr(module, "attn_drop", None), "p", getattr(module, "dropout", 0.0))
    return float(given) if isinstance(given, (int, float)) else 0.0
