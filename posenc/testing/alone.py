"""Checks of an encoding by itself, of either kind."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from posenc.attention import attend
from posenc.layout import TokenLayout
from posenc.testing.subject import LAYOUTS, Subject


def effect_at_start(subject: Subject) -> None:
    """States its effect at start."""
    differs = False
    for layout in LAYOUTS:
        encoding = subject.build(layout)
        out, plain = subject.run(encoding, layout), subject.without(layout)
        stated = encoding.changes_at_start()
        if stated is False:
            assert_close(out, plain, rtol=0, atol=1e-12)
        differs = differs or bool((out - plain).abs().max() > 1e-9)
    assert stated is not True or differs, "changes_at_start() is True, and nothing changes"


def other_grids(subject: Subject) -> None:
    """Accepts other grids."""
    for layout in LAYOUTS:
        other = TokenLayout(layout.width + 1, layout.height, layout.prefix)
        out = subject.run(subject.random(layout), other)
        assert out.shape == subject.without(other).shape
        assert bool(torch.isfinite(out).all()), f"built for {layout}, not finite on {other}"


def states_of_other_grids(subject: Subject) -> None:
    """Loads a state of another grid only where it means the same."""
    layout = LAYOUTS[1]
    source = subject.random(layout)
    for other in (TokenLayout(layout.width, layout.height, layout.prefix), TokenLayout(5, 2, 1)):
        target = subject.build(other)
        try:
            target.load_state_dict(source.state_dict())
        except RuntimeError:
            continue
        for at in (layout, other):
            same = torch.allclose(subject.run(target, at), subject.run(source, at))
            assert same, f"a state of {layout} was loaded for {other}: is_sized_by_grid = True"


def gradients_reach_parameters(subject: Subject) -> None:
    """Trains every parameter."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout)
    subject.run(encoding, layout).square().sum().backward()
    without = [n for n, p in encoding.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}, which stops distributed training"


def images_apart(subject: Subject) -> None:
    """Treats each image of a batch by itself."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout)
    if subject.acts_in_attention:
        q, k, v = subject.qkv(layout)
        out = attend(q, k, v, encoding(q, k, layout))
        one = attend(q[:1], k[:1], v[:1], encoding(q[:1], k[:1], layout))
    else:
        x = subject.tokens(layout)
        out, one = encoding(x, layout), encoding(x[:1], layout)
    assert_close(out[:1], one, rtol=1e-10, atol=1e-10)


def random_state(subject: Subject) -> None:
    """Leaves random numbers alone in eval."""
    encoding = subject.random(LAYOUTS[0]).eval()
    before = torch.random.get_rng_state()
    subject.run(encoding, LAYOUTS[0])
    assert torch.equal(torch.random.get_rng_state(), before), "random numbers were drawn"


def remembers_nothing_stale(subject: Subject) -> None:
    """Follows its parameters in eval."""
    layout = LAYOUTS[3]
    encoding = subject.random(layout).eval()
    with torch.no_grad():
        for _ in range(2):
            assert_close(subject.run(encoding, layout), _fresh(subject, encoding, layout))
            for parameter in encoding.parameters():
                parameter.data.mul_(0.5)  # leaves no trace but the values
        other = TokenLayout(layout.width, layout.height, layout.prefix)
        assert_close(subject.run(encoding, other), _fresh(subject, encoding, other))


def _fresh(subject: Subject, encoding: Any, layout: TokenLayout) -> Tensor:
    return subject.run(copy.deepcopy(encoding).train(), layout)


def copies(subject: Subject) -> None:
    """Survives pickle, deepcopy and a strict state dict."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout)
    again = subject.build(layout)
    again.load_state_dict(encoding.state_dict(), strict=True)
    for twin in (copy.deepcopy(encoding), again, _pickled(encoding)):
        assert torch.equal(subject.run(twin, layout), subject.run(encoding, layout))


def _pickled(encoding: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(encoding))


def dtypes(subject: Subject) -> None:
    """Keeps the dtype, and computes positions in at least float32."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout, torch.float32)
    exact = subject.run(copy.deepcopy(encoding).double(), layout, torch.float64)
    single = subject.run(encoding, layout, torch.float32)
    assert single.dtype == torch.float32
    assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)
    half = subject.run(encoding, layout, torch.bfloat16)
    assert half.dtype == torch.bfloat16, f"bfloat16 became {half.dtype}"
    assert_close(half.double(), exact, rtol=0.1, atol=0.1)


def bad_input(subject: Subject) -> None:
    """Refuses tokens that its layout does not have."""
    encoding = subject.build(LAYOUTS[1])
    for wrong, kind in ((LAYOUTS[0], ValueError), (None, TypeError), ((4, 3), TypeError)):
        try:
            if subject.acts_in_attention:
                q, k, _ = subject.qkv(LAYOUTS[1])
                encoding(q, k, wrong)
            else:
                encoding(subject.tokens(LAYOUTS[1]), wrong)
        except kind:
            continue
        raise AssertionError(f"layout={wrong!r} was accepted for tokens of {LAYOUTS[1]}")


def one_graph(subject: Subject) -> None:
    """Compiles as one graph."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout, torch.float32)
    inputs = subject.qkv(layout, torch.float32)
    if not subject.acts_in_attention:
        inputs = [subject.tokens(layout, torch.float32)]

    def function(*inputs: Tensor) -> Tensor:
        if len(inputs) == 1:
            return encoding(inputs[0], layout)
        q, k, v = inputs
        return attend(q, k, v, encoding(q, k, layout))

    torch.compiler.reset()
    compiled: Any = torch.compile(function, fullgraph=True, backend="aot_eager")
    out = compiled(*inputs)
    assert_close(out, subject.run(encoding, layout, torch.float32), rtol=1e-4, atol=1e-5)


CHECKS = (
    effect_at_start,
    other_grids,
    states_of_other_grids,
    gradients_reach_parameters,
    images_apart,
    random_state,
    remembers_nothing_stale,
    copies,
    dtypes,
    bad_input,
    one_graph,
)
