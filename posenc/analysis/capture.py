"""What attention computes, recorded at the calls themselves, also where they are fused."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import nn

from posenc.analysis.recorder import CapturedAttention, Recorder
from posenc.layout import TokenLayout
from posenc.patching.layouts import GivenLayout, LayoutSource, SeenLayout
from posenc.patching.models.examine import Anatomy, check_model
from posenc.patching.models.timm import UnsupportedModelError, adapted_of, family_of
from posenc.patching.observe import (
    around_forward,
    examine_originals,
    follow_images,
    original_class,
    record_aside,
    site_of,
)
from posenc.patching.patch import find_patched, named_backbone, site_modules
from posenc.patching.sites.classes import Site


@contextlib.contextmanager
def capture_attention(
    model: nn.Module, *, layout: TokenLayout | None = None
) -> Iterator[CapturedAttention]:
    """Records the attention of every forward inside the context, fused or not.

    All attention modules whose tokens have a known grid are recorded, patched or not. The outputs
    of the model, its gradients and the random state are bit for bit those without the context,
    and after it, also after an exception, the model is as it was. Each module keeps its latest
    forward; replays of activation checkpointing are not recorded. Copies and pickles that are
    made inside the context do not record.

    It costs the `N x N` matrices that fused attention avoids, and keeps them: `4 B heads N^2`
    bytes a module. Modules that are not patched compute their attention twice. Contexts may be
    nested, and frozen models (`posenc.freeze`) are recorded too; inside the context, the model
    can be neither patched nor unpatched.

    Args:
        model: any model that `posenc.patch_model` could patch, or one that it has patched.
        layout: as for `patch_model`: needed for models outside timm that are not patched.

    Raises:
        ValueError: the model is compiled, or not known and not patched (with the reason).
        RuntimeError: in a forward: it runs under torch.compile, torch.export or a function
            transform, or its tokens are not those of its layout.

    Reference: Abnar and Zuidema 2020, arXiv 2005.00928, and Dosovitskiy et al. 2021, figure 7,
    need these weights.

    >>> import timm, torch
    >>> vit = timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2).eval()
    >>> with capture_attention(vit) as captured:
    ...     logits = vit(torch.zeros(1, 3, 32, 48))
    >>> {name: tuple(weights.shape) for name, weights in captured.attention.items()}
    {'blocks.0.attn': (1, 3, 7, 7), 'blocks.1.attn': (1, 3, 7, 7)}
    """
    _check_recordable(model)
    captured = CapturedAttention()
    with contextlib.ExitStack() as stack:
        find = _find_in_patched if find_patched(model) is not None else _find_in_plain
        find(model, layout, captured, stack)
        yield captured


def _check_recordable(model: Any) -> None:
    if not isinstance(model, nn.Module):
        check_model(model)  # which says what it is
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
            raise ValueError(
                f"capture_attention: {name or 'the model'} is compiled by torch.compile, and "
                "compiled code does not record: pass the model that was compiled (what went into "
                "torch.compile), and call that one, or capture before model.compile()"
            )


def _find_in_patched(
    model: nn.Module,
    layout: TokenLayout | None,
    captured: CapturedAttention,
    stack: contextlib.ExitStack,
) -> None:
    """Observes the sites of a patched model, and records the attention modules that are none."""
    if layout is not None:
        raise ValueError(
            f"capture_attention: layout={layout} was passed, but the model is patched and knows "
            "its layout: leave layout= out, or call posenc.set_layout(model, layout)"
        )
    prefix, backbone = named_backbone(model)
    observed = {n: m for n, m in site_modules(backbone).items() if m._posenc.attention}
    source: LayoutSource | None = backbone._posenc_record.layout
    if family_of(backbone) is None:
        _leave_out(captured, prefix, _unpatched_outside_timm(backbone, observed))
    else:
        given = source.at_rest() if isinstance(source, GivenLayout | SeenLayout) else None
        anatomy = examine_originals(backbone, given)
        there = set(map(id, observed.values()))
        anatomy.attention = [site for site in anatomy.attention if id(site.module) not in there]
        _record_plain(anatomy, source, prefix, captured, stack)
    for name, module in observed.items():
        _observe(module, Recorder(_full_name(prefix, name, module), captured), stack)


def _find_in_plain(
    model: nn.Module,
    layout: TokenLayout | None,
    captured: CapturedAttention,
    stack: contextlib.ExitStack,
) -> None:
    """Records the attention modules of a model that is not patched."""
    anatomy = examine_originals(model, layout)
    anatomy.check_one_place()
    if not anatomy.attention:
        reasons = "; ".join(f"{n}: {why}" for n, why in _reasons(anatomy).items())
        raise UnsupportedModelError(
            f"capture_attention: {type(model).__name__} has no attention that can be recorded "
            f"({reasons or 'none that posenc knows'})"
        )
    _check_not_bypassed(model)
    if isinstance(anatomy.layout, SeenLayout):
        stack.enter_context(follow_images(anatomy, anatomy.layout))
    _record_plain(anatomy, anatomy.layout, anatomy.name, captured, stack)


def _check_not_bypassed(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            raise UnsupportedModelError(
                f"capture_attention: {name or 'the model'} is a {type(module).__name__}, which "
                "does not call its attention module in eval but computes all by itself: patch the "
                "model first (posenc.patch_model, with an encoding that starts without effect)"
            )


def _unpatched_outside_timm(backbone: nn.Module, observed: dict[str, Any]) -> dict[str, str]:
    """Its attention modules may belong to other tokens: their layout is not known."""
    reason = "it is not patched, and the model's layout may not be that of its tokens"
    there = set(map(id, observed.values()))
    return {
        name: reason
        for name, module in backbone.named_modules()
        if adapted_of(module) is not None and id(module) not in there
    }


def _record_plain(
    anatomy: Anatomy,
    layout: LayoutSource | None,
    prefix: str,
    captured: CapturedAttention,
    stack: contextlib.ExitStack,
) -> None:
    """Records attention modules that are not patched; `layout` is that of all tokens."""
    _leave_out(captured, prefix, _reasons(anatomy))
    for found in anatomy.attention:
        recorder = Recorder(_full_name(prefix, found.name, found.module), captured)
        own = layout if found.layout is anatomy.layout else found.layout
        site = site_of(found, own, recorder)
        record = functools.partial(record_aside, site, recorder)
        stack.enter_context(around_forward(found.module, before=record))


def _observe(module: Any, recorder: Recorder, stack: contextlib.ExitStack) -> None:
    site: Site = module._posenc

    def stop() -> None:
        site.observers = tuple(each for each in site.observers if each is not recorder)

    site.observers = (*site.observers, recorder)
    stack.callback(stop)
    stack.enter_context(around_forward(module, before=lambda *_: recorder.start()))


def _leave_out(captured: CapturedAttention, prefix: str, reasons: dict[str, str]) -> None:
    for name, reason in reasons.items():
        captured.left_out[".".join(filter(None, [prefix, name]))] = reason


def _reasons(anatomy: Anatomy) -> dict[str, str]:
    return {**anatomy.refused, **anatomy.left_alone}


def _full_name(prefix: str, name: str, module: nn.Module) -> str:
    return ".".join(filter(None, [prefix, name])) or original_class(module).__name__
