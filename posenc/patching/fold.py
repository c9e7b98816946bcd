"""Static biases folded into buffers, for deployment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from posenc.encodings.base import AttentionEncoding
from posenc.layout import TokenLayout
from posenc.patching.patch import Model, patched_backbone, site_modules
from posenc.patching.sites.site import Site
from posenc.term_maps import map_biases, map_tensors
from posenc.terms import BiasTerm, DenseBias, LowRankBias, Term


class FoldedBias(AttentionEncoding):
    """The terms that a static encoding had for one layout, as buffers.

    A bias that can be read from a table (`swin`, `irpe`, `quadratic`) becomes dense,
    `[1, heads, N, N]`; others (`human_part`) keep their low-rank factors, and rotations stay so.

    Args:
        encoding: the static encoding.
        layout: the only one that the result accepts.
        like: a query `[1, heads, N, head_dim]`, for device and dtype.
    """

    def __init__(self, encoding: AttentionEncoding, layout: TokenLayout, like: Tensor) -> None:
        super().__init__(layout, encoding.num_heads, encoding.head_dim)
        self.name, self.kind = type(encoding).__name__, encoding.kind
        self._kept: list[Term] = []  # whose tensors are buffers, and here only placeholders
        self._changed = encoding.changes_at_start()
        with torch.no_grad():
            for term in encoding(like, like, layout):
                self._keep(map_biases(term, _folded))

    def _keep(self, term: Term) -> None:
        position = len(self._kept)

        def register(name: str, tensor: Tensor) -> Tensor:
            self.register_buffer(f"{name}_{position}", tensor.detach().clone())
            return tensor.new_empty(0)

        self._kept.append(map_tensors(term, register))

    def terms(self, q: Tensor, k: Tensor, layout: TokenLayout, scale: float) -> tuple[Term, ...]:
        """The buffers."""
        if layout != self.layout:
            raise RuntimeError(
                f"posenc: {self.name} was folded for the layout {self.layout}, got {layout}: "
                "fold a model that has the new size (posenc.unpatch_model, load, set_layout)"
            )
        return tuple(self._filled(position, term) for position, term in enumerate(self._kept))

    def _filled(self, position: int, term: Term) -> Any:
        return map_tensors(term, lambda name, _: self.get_buffer(f"{name}_{position}"))

    def changes_at_start(self) -> bool | None:
        """What the encoding said."""
        return self._changed

    def extra_repr(self) -> str:
        """The encoding that it was."""
        return f"{self.name}, {self.layout}"


def _folded(bias: BiasTerm) -> BiasTerm:
    """Its factors, where it has nothing but these; else the whole matrix."""
    exact = bias.exact_form
    return exact if isinstance(exact, LowRankBias) else DenseBias(exact.dense())


def fold_biases(model: Model) -> Model:
    """Folds the static biases of a patched model into buffers, in place, for deployment.

    Static encodings, those with `is_static`, read neither queries nor keys (`swin`, `beit`, `rope`,
    `irpe` with mode="bias" and more). They become constants of the layout that the model has now:
    no tables are looked up and exported graphs hold the finished bias. Contextual and token
    encodings stay as they are. There is no way back but `unpatch_model`, so save the encodings
    first; the folded model takes one layout and raises for others. The tables can no longer be
    trained, so the model must be in eval mode.

    Raises:
        ValueError: the model is not patched, is in train mode, or nothing in it is static.

    Returns:
        The same model.
    """
    backbone = patched_backbone(model)
    _check_foldable(backbone)
    folded: dict[int, FoldedBias] = {}  # a shared encoding is folded once
    for module in site_modules(backbone).values():
        site: Site = module._posenc
        for name in site.attention:
            (encoding,) = site.encodings(module, [name])
            if not encoding.is_static or isinstance(encoding, FoldedBias):
                continue
            if id(encoding) not in folded:
                folded[id(encoding)] = _fold(module, site, encoding)
            owner = backbone if name in site.shared else module
            owner.posenc[name] = folded[id(encoding)]
            if name in site.shared:
                site.shared[name] = folded[id(encoding)]
    return model


def _check_foldable(backbone: Any) -> None:
    """Raises where there is nothing to fold, or where it is still trained."""
    encodings = [m for m in backbone.modules() if isinstance(m, AttentionEncoding)]
    folded = any(isinstance(encoding, FoldedBias) for encoding in encodings)
    static = [e for e in encodings if e.is_static and not isinstance(e, FoldedBias)]
    if not static and folded:
        raise ValueError("the biases of the model are folded already")
    if not static:
        names = " and ".join(spec["name"] for spec in backbone._posenc_record.config["encodings"])
        raise ValueError(
            "nothing to fold: fold_biases makes constants of biases that read neither queries nor "
            'keys (those with is_static, such as swin, rope, irpe with mode="bias"); this model '
            f"has {names}, which read queries, keys or tokens. Compile, export or save it as it is"
        )
    if backbone.training or any(encoding.training for encoding in static):
        raise ValueError(
            "the model is in train mode, and folding takes the tables of its static encodings out "
            "of training for good: save them with posenc.save_encodings, call model.eval(), then "
            "fold"
        )


def _fold(module: nn.Module, site: Site, encoding: AttentionEncoding) -> FoldedBias:
    layout = site.layout.latest()
    parameter = next(module.parameters())
    like = torch.zeros(
        1,
        site.num_heads,
        layout.num_tokens,
        site.head_dim,
        device=parameter.device,
        dtype=parameter.dtype,
    )
    folded = FoldedBias(encoding, layout, like)
    folded.train(encoding.training)
    return folded
