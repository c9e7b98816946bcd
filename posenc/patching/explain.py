"""Which backend computes each attention module of a model, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn

from posenc import attention
from posenc.attention import Explanation
from posenc.attention.api import explain_call
from posenc.attention.call import AttentionCall
from posenc.layout import TokenLayout
from posenc.patching.observe import observe_attention
from posenc.patching.patch import named_backbone, site_modules
from posenc.patching.sites.explained import explain_site


@dataclass(frozen=True)
class ModelExplanation:
    """What `attend` does at each attention site of a model.

    Args:
        inference: name of the site -> what it does in eval, without gradients.
        training: name of the site -> what it would do in training, with gradients of all
            parameters that require them, and with the module's dropout.
    """

    inference: dict[str, Explanation] = field(default_factory=dict)
    training: dict[str, Explanation] = field(default_factory=dict)

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {}
        for name, inference in self.inference.items():
            lines = [f"  {mode}: {_words(each)}" for mode, each in self._modes(name, inference)]
            groups.setdefault("\n".join(lines), []).append(name)
        return "\n".join(f"{_span(names)}\n{text}" for text, names in groups.items())

    def _modes(self, name: str, inference: Explanation) -> list[tuple[str, Explanation]]:
        return [("inference", inference), ("training ", self.training[name])]


def _words(explanation: Explanation) -> str:
    return str(explanation).splitlines()[0].removeprefix("choice: ")


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)})"


@overload
def explain(model: nn.Module, images: Tensor, /) -> ModelExplanation: ...


@overload
def explain(q: Tensor, k: Tensor, v: Tensor, terms: Any = (), **options: Any) -> Explanation: ...


def explain(*arguments: Any, **options: Any) -> ModelExplanation | Explanation:
    """Says which backend computes attention, and why, without changing anything.

    `explain(model, images)` runs a patched model once, in eval and without gradients, and tells
    each attention site in inference and in training (for which nothing is trained: the calls are
    only asked about). `explain(q, k, v, terms, ...)` takes the arguments of `posenc.attend` and
    does not compute it.

    Args:
        *arguments: a patched model and what it is called with, such as images of your size and
            batch; or queries, keys, values and terms as for `posenc.attend`.
        **options: the other arguments of `posenc.attend`.

    Raises:
        ValueError: the model is not patched, or has no encoding inside attention; or as `attend`.
        TypeError: neither a model nor tensors; or as `attend`.

    Returns:
        A `ModelExplanation`, or an `Explanation`.

    >>> import timm, posenc
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2)
    >>> model = posenc.patch_model(vit, "swin")
    >>> report = explain(model, torch.zeros(1, 3, 32, 48))
    >>> {name: each.choice for name, each in report.training.items()}
    {'blocks.0.attn': 'reference', 'blocks.1.attn': 'reference'}
    """
    if arguments and isinstance(arguments[0], nn.Module):
        return _explain_model(*arguments, **options)
    if len(arguments) < 3 and not {"q", "k", "v"} <= set(options):
        raise TypeError(
            "explain takes a patched model and its input, explain(model, images), or what attend "
            f"takes, explain(q, k, v, terms); got {[type(a).__name__ for a in arguments]}"
        )
    return attention.explain(*arguments, **options)


def _explain_model(model: nn.Module, images: Tensor) -> ModelExplanation:
    prefix, backbone = named_backbone(model)
    sites = {
        ".".join(filter(None, [prefix, name])) or module._posenc.name: module
        for name, module in site_modules(backbone).items()
        if module._posenc.attention
    }
    if not sites:
        raise ValueError(
            "explain: no encoding of the model acts inside attention, so posenc does not compute "
            "its attention"
        )
    result = ModelExplanation()

    def note(name: str) -> _Note:
        return _Note(name, sites.get(name), result)

    with _eval_mode(model), torch.no_grad(), observe_attention(model, None, note, "explain"):
        model(images)
    return result


class _Note:
    """Explains the calls of one module."""

    def __init__(self, name: str, module: Any, result: ModelExplanation) -> None:
        self.name, self.module, self.result = name, module, result

    def start(self) -> None:
        """Nothing to prepare."""

    def __call__(self, call: AttentionCall, layout: TokenLayout) -> None:
        """Notes both explanations; a module that is not patched is computed by PyTorch alone."""
        if self.module is None:
            return
        site = self.module._posenc
        self.result.inference[self.name] = explain_call(call, site.backend)
        self.result.training[self.name] = explain_site(
            self.module,
            site,
            site.encodings(self.module, site.attention),
            training=True,
            batch=call.query.shape[0],
            dtype=call.query.dtype,
        )


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:  # some override train(): the flags alone are put back
            module.training = mode
