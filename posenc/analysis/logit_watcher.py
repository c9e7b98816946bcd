"""Watches attention modules while images pass twice: for means, then for what is around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from posenc.analysis.logit_pairs import measure_pairs, without_rotations
from posenc.analysis.logit_parts import PARTS, Means, centered, fixed_sides, part_variances
from posenc.attention.call import AttentionCall
from posenc.attention.lower import lower
from posenc.layout import TokenLayout
from posenc.memo import is_transformed
from posenc.patching.select import Blocks, choose
from posenc.terms import Mixture


class Passes:
    """What all watchers share: which pass runs, and on which group of images."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.group = 0
        self.num_images = 0
        self.measure = False
        self.watchers: dict[str, Watcher] = {}

    def watch(self, name: str) -> Watcher:
        """A new watcher of a module."""
        self.watchers[name] = Watcher(name, self)
        return self.watchers[name]

    def select(self, model: nn.Module, blocks: Blocks) -> None:
        """Switches off the watchers that `blocks` does not select."""
        order = {name: index for index, (name, _) in enumerate(model.named_modules())}
        names = sorted(self.watchers, key=lambda name: order.get(name, 0))
        chosen = choose(names, blocks)
        if not chosen:
            raise ValueError(
                f"split_logits: blocks={blocks!r} selects none of the {len(names)} attention "
                f"modules: {', '.join(names[:1] + names[1:][-1:])}"
            )
        self.watchers = {name: self.watchers[name] for name in names if name in chosen}


class Sums:
    """Sums over images of one attention call.

    Args:
        groups: number of groups of images.
        like: the queries of one image, `[windows, heads, n, D]`.
    """

    def __init__(self, groups: int, like: Tensor) -> None:
        self.query, self.key = like.new_zeros(2, groups, *like.shape)
        self.counts = like.new_zeros(groups, 1, 1, 1, 1)
        self.parts = like.new_zeros(like.shape[1], len(PARTS))
        self.rest: dict[str, Tensor] = {}

    def add(self, group: int, query: Tensor, key: Tensor) -> None:
        """Images of a group, in the first pass: `[B, windows, heads, n, D]`."""
        self.query[group] += query.sum(dim=0)
        self.key[group] += key.sum(dim=0)
        self.counts[group] += len(query)

    def means_without(self, group: int) -> Means:
        """The means of all other groups."""
        others = [g for g in range(len(self.query)) if g != group]
        counts = self.counts[others]
        return Means(self.query[others] / counts, self.key[others] / counts)

    def measure(self, group: int, query: Tensor, key: Tensor, rest: dict[str, Tensor]) -> None:
        """Images of a group, in the second pass, and sums over them of what needs no means."""
        means = self.means_without(group)
        fixed = fixed_sides(means)
        for one_query, one_key in zip(query, key, strict=True):
            self.parts += part_variances(one_query, one_key, means, fixed)
        for name, value in rest.items():
            self.rest[name] = self.rest[name] + value if name in self.rest else value


class Watcher:
    """Follows the calls of one attention module through both passes."""

    def __init__(self, name: str, passes: Passes) -> None:
        self.name, self.passes = name, passes
        self.sums: list[Sums] = []
        self.call_index = 0
        self.layout: TokenLayout | None = None
        self.reason: str | None = None

    def start(self) -> None:
        """A forward begins."""
        self.call_index = 0

    def __call__(self, call: AttentionCall, layout: TokenLayout) -> None:
        """An attention call, as a site tells it."""
        if self.name not in self.passes.watchers:
            return
        if is_transformed(call.query, call.key):
            raise RuntimeError(
                f"split_logits: {self.name} runs under torch.compile, torch.export, a function "
                "transform or dispatch mode, where nothing can be read: pass the model itself, in "
                "plain eager mode"
            )
        self.reason = self.reason or _reason(call, self.passes.num_images)
        if self.reason is not None:
            return
        self.layout = layout
        self._read(call, layout)
        self.call_index += 1

    def _read(self, call: AttentionCall, layout: TokenLayout) -> None:
        count, group = self.passes.num_images, self.passes.group
        query, key = _sides(call, layout, count)
        if self.call_index == len(self.sums):
            self.sums.append(Sums(self.passes.groups, query[0]))
        sums = self.sums[self.call_index]
        if not self.passes.measure:
            sums.add(group, query, key)
            return
        plain = without_rotations(call)
        unturned = None if plain is None else _sides(plain, layout, count)
        sums.measure(group, query, key, measure_pairs(call, layout, (query, key), unturned))

    def variances(self) -> dict[str, Tensor]:
        """Sums over images: name -> `[heads]`, the heads of further calls behind each other."""
        rest = {name: torch.cat([s.rest[name] for s in self.sums]) for name in self.sums[0].rest}
        parts = torch.cat([sums.parts for sums in self.sums])
        return {**dict(zip(PARTS, parts.unbind(-1), strict=True)), **rest}


def _reason(call: AttentionCall, num_images: int) -> str | None:
    """Why a call has no logits that can be split, None where it has."""
    if any(isinstance(term, Mixture) for term in call.terms):
        return "it mixes two attentions, so that there is no one logit"
    if call.is_causal:
        return "its attention is causal"
    if call.query.shape[:3] != call.key.shape[:3]:
        return f"its queries {list(call.query.shape)} and keys {list(call.key.shape)} differ"
    if call.query.shape[0] % num_images:
        return f"its batch of {call.query.shape[0]} is no multiple of the {num_images} images"
    return None


def _sides(call: AttentionCall, layout: TokenLayout, num_images: int) -> tuple[Tensor, Tensor]:
    """Queries, scaled, and keys, centered, of the patches: `[B, windows, heads, n, D]`."""
    lowered = lower(call)[0].call
    query = lowered.query.to(call.dtype) * lowered.scale
    sides = (query, lowered.key.to(call.dtype))
    query, key = (x[..., layout.prefix :, :].unflatten(0, (num_images, -1)) for x in sides)
    return query, centered(key)
