"""What takes the place of `F.scaled_dot_product_attention` in a module's forward."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

from posenc.attention.api import compute_call, make_call
from posenc.patching.sites.site import Site
from posenc.terms import Term


def attend_with_encodings(
    self: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Takes the place of `F.scaled_dot_product_attention` in the module's forward."""
    site: Site = self._posenc
    own_shape = query.shape
    if site.shape != "b h n d":
        query, key, value = (_heads_second(site, x) for x in (query, key, value))
        attn_mask = _mask_heads_second(site, attn_mask)
    layout = site.checked_layout(query.shape[-2])
    terms: list[Term] = []
    for encoding in site.encodings(self, site.attention):
        terms.extend(encoding(query, key, layout, scale=scale))
    call = make_call(query, key, value, terms, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    for observe in site.observers:
        observe(call, layout)
    result = compute_call(call, site.backend)
    return result if site.shape == "b h n d" else _as_it_was(site, result, own_shape)


# Other shapes than [batch, heads, tokens, width], and what they become: windows join the batch.
FOLDED = {
    "(b h) n d": "b h n d",
    "b h t n d": "(b t) h n d",
    "b t h n d": "(b t) h n d",
}


def _heads_second(site: Site, x: Tensor) -> Tensor:
    return rearrange(x, f"{site.shape} -> {FOLDED[site.shape]}", h=site.num_heads)


def _mask_heads_second(site: Site, mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.dim() == 2:
        return mask
    if site.shape != "(b h) n d" or mask.dim() != 3:
        raise ValueError(
            f"posenc: {site.name} has attention of shape [{site.shape}] with a mask "
            f"{list(mask.shape)}, which is not known how to fold"
        )
    return _heads_second(site, mask)


def _as_it_was(site: Site, x: Tensor, own_shape: Any) -> Tensor:
    names = site.shape.replace("(", "").replace(")", "").split()
    windows = {"t": own_shape[names.index("t")]} if "t" in names else {}
    return rearrange(x, f"{FOLDED[site.shape]} -> {site.shape}", **windows)


def no_attention_ran(self: Any) -> None:
    """Raises: a forward ended without the call that was replaced."""
    raise RuntimeError(
        f"posenc: {self._posenc.name} ran without the attention call that was replaced, so its "
        f"encodings had no effect (fused_attn={getattr(self, 'fused_attn', None)}); set "
        "fused_attn = True on the module, or call posenc.unpatch_model(model)"
    )
