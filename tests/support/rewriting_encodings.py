"""Encodings whose terms rewrite the call, in the forms of golden cases; not part of posenc yet."""

from __future__ import annotations

import math

import torch
from torch import nn

from posenc import AttentionEncoding
from posenc.functional.buckets import fit_buckets, swin_index
from posenc.functional.coordinates import patch_offsets
from posenc.functional.precision import at_least_float32
from posenc.terms import ContentScale, LookupBias, Mixture


class _Static(AttentionEncoding):
    is_static = True
    is_sized_by_prefix = False

    def changes_at_start(self):
        return True

    def dtype_for(self, q):
        return at_least_float32(q.dtype)


class Gated(_Static):
    """ConViT: each head mixes its attention with one of positions alone."""

    def __init__(self, layout, num_heads, head_dim=None, *, device=None, dtype=None):
        super().__init__(layout, num_heads, head_dim)
        self.gate = nn.Parameter(torch.ones(num_heads, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.zeros(num_heads, 3, device=device, dtype=dtype))

    def terms(self, q, k, layout, scale):
        dtype = self.dtype_for(q)
        offsets = patch_offsets(layout, self.weight.device, dtype)  # key minus query
        features = torch.cat([offsets.flip(-1), offsets.square().sum(-1, keepdim=True)], -1)
        index = swin_index(layout, "none")
        table = fit_buckets(self.weight.to(dtype) @ features.T, index)
        positional = (ContentScale(0.0), LookupBias(table[None, :, None], index))
        gate = self.gate.to(dtype).sigmoid()[None, :, None, None]
        return (Mixture(gate, positional),)


class Cosine(_Static):
    """Swin V2: cosines times a learned number per head, 100 at most."""

    def __init__(self, layout, num_heads, head_dim=None, *, device=None, dtype=None):
        super().__init__(layout, num_heads, head_dim)
        start = torch.full((num_heads,), math.log(10.0), device=device, dtype=dtype)
        self.log_scale = nn.Parameter(start)

    def terms(self, q, k, layout, scale):
        factor = self.log_scale.to(self.dtype_for(q)).clamp(max=math.log(100.0)).exp()
        return (ContentScale(factor[None, :, None, None], cosine=True),)


ENCODINGS = {"gated": Gated, "cosine": Cosine}
