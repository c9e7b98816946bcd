"""Forwards rewritten so that their attention call is another."""

import contextlib
import functools
import inspect
import traceback

import pytest
import tiny_vit
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import posenc
from posenc.intercept import CannotRewrite, generate_class, rewritten_forward

Q = torch.arange(12.0).reshape(1, 1, 4, 3) / 10


class Plain(nn.Module):
    def forward(self, q, k=None, *, factor: float = 2.0, shift=0.0):
        """The docstring."""
        k = q if k is None else k
        return factor * F.scaled_dot_product_attention(q, k, q) + shift


class Branches(nn.Module):
    def forward(self, q, way):  # noqa: RET503
        if way == "early":
            return F.scaled_dot_product_attention(q, q, q)
        if way == "never":
            return q
        for _ in range(2):
            if way == "loop":
                q = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        if way == "raise":
            raise ValueError("in the forward")
        if way == "none":
            return  # noqa: RET502, as forwards may
        if way != "end":
            return scaled_dot_product_attention(query=q, key=q, value=q, scale=0.5)


class Twice(nn.Module):
    def forward(this, q):  # noqa: N805, another name than self
        first = F.scaled_dot_product_attention(q, q, q)
        second = F.scaled_dot_product_attention(q, q, 2 * q)
        return first + F.scaled_dot_product_attention(q, q, second, None, 0.0, False)


def patched(original, attend=None):
    """An instance whose SDPA call is `attend`, with the calls that it saw."""
    calls = []

    def _attend(self, *arguments, **options):
        calls.append((arguments, options))
        return (attend or F.scaled_dot_product_attention)(*arguments, **options)

    def _no_attention_ran(self):
        raise RuntimeError("no attention call ran")

    members = {"_attend": _attend, "_no_attention_ran": _no_attention_ran}
    members["forward"] = rewritten_forward(original)
    return generate_class(original, members)(), calls


def test_replaces_the_call_and_passes_its_arguments():
    module, calls = patched(Plain, lambda q, k, v: torch.ones_like(v))
    assert torch.equal(module(Q, factor=3.0), 3 * torch.ones_like(Q))
    assert len(calls) == 1
    assert all(argument is Q for argument in calls[0][0])


def test_keeps_defaults_names_and_docstring():
    ours, theirs = rewritten_forward(Plain), Plain.forward
    assert inspect.signature(ours) == inspect.signature(theirs)
    assert (ours.__defaults__, ours.__kwdefaults__) == ((None,), {"factor": 2.0, "shift": 0.0})
    assert ours.__defaults__ is theirs.__defaults__
    assert (ours.__doc__, ours.__qualname__) == ("The docstring.", "Plain.forward")
    assert ours.__globals__ is theirs.__globals__
    assert ours.__code__.co_filename == theirs.__code__.co_filename == __file__
    module, _ = patched(Plain)
    assert torch.equal(module(Q), Plain()(Q))


def test_is_rewritten_once():
    assert rewritten_forward(Plain) is rewritten_forward(Plain)


@pytest.mark.parametrize("original", [Plain, Attention])
def test_tracebacks_point_to_the_original_line(original):
    def fail(*arguments, **options):
        raise ValueError("inside attention")

    module, _ = patched(Plain, fail)
    argument = Q
    if original is Attention:
        model = posenc.patch_model(tiny_vit.vit())
        module, argument = model.blocks[0].attn, torch.zeros(1, 16, 16, dtype=torch.float64)
        type(module)._attend, kept = fail, type(module)._attend
    try:
        with pytest.raises(ValueError, match="inside attention") as error:
            module(argument)
    finally:
        if original is Attention:
            type(module)._attend = kept
    frames = traceback.extract_tb(error.value.__traceback__)
    frame = next(frame for frame in frames if frame.name == "forward")
    lines, first = inspect.getsourcelines(original.forward)
    assert frame.filename == inspect.getsourcefile(original)
    assert "F.scaled_dot_product_attention(" in lines[frame.lineno - first]


def test_line_of_an_error_elsewhere_in_the_forward():
    module, _ = patched(Branches)
    with pytest.raises(ValueError, match="in the forward") as error:
        module(Q, "raise")
    frame = traceback.extract_tb(error.value.__traceback__)[-1]
    lines, first = inspect.getsourcelines(Branches.forward)
    assert 'raise ValueError("in the forward")' in lines[frame.lineno - first]


@pytest.mark.parametrize(("way", "count"), [("early", 1), ("loop", 3), ("other", 1)])
def test_returns_inside_branches(way, count):
    module, calls = patched(Branches)
    assert torch.equal(module(Q, way), Branches()(Q, way))
    assert len(calls) == count


@pytest.mark.parametrize("way", ["never", "none", "end"])
def test_a_way_without_the_call_raises(way):
    module, _ = patched(Branches)
    with pytest.raises(RuntimeError, match="no attention call ran"):
        module(Q, way)


def test_several_calls_and_another_name_for_self():
    module, calls = patched(Twice)
    assert torch.equal(module(Q), Twice()(Q))
    assert [len(arguments) for arguments, _ in calls] == [3, 3, 6]


def scale_first(forward):
    @functools.wraps(forward)
    def wrapper(self, q):
        return forward(self, 2 * q)

    return wrapper


def make_closure():
    factor = 2.0

    class Closure(nn.Module):
        def forward(self, q):
            return factor * F.scaled_dot_product_attention(q, q, q)

    return Closure


class WithoutAttention(nn.Module):
    def forward(self, q):
        return q.softmax(-1) @ q.mT


class Delegates(Plain):
    def forward(self, q):
        return super().forward(F.scaled_dot_product_attention(q, q, q))


class Decorated(nn.Module):
    @scale_first
    def forward(self, q):
        return F.scaled_dot_product_attention(q, q, q)


class NoGrad(nn.Module):
    @torch.no_grad()
    def forward(self, q):
        return F.scaled_dot_product_attention(q, q, q)


class InLambda(nn.Module):
    def forward(self, q):
        attend = lambda x: F.scaled_dot_product_attention(x, x, x)  # noqa: E731
        return attend(q)


class InNested(nn.Module):
    def forward(self, q):
        def attend(x):
            return F.scaled_dot_product_attention(x, x, x)

        return attend(q)


class Private(nn.Module):
    __factor = 2.0

    def forward(self, q):
        return self.__factor * F.scaled_dot_product_attention(q, q, q)


class Alias(nn.Module):
    def forward(self, q):
        attend = F.scaled_dot_product_attention
        return attend(q, q, q)


class NotAMethod(nn.Module):
    forward = functools.partial(F.scaled_dot_product_attention, dropout_p=0.0)


class InIterable(nn.Module):
    def forward(self, q):
        return torch.stack([x for x in F.scaled_dot_product_attention(q, q, q)])  # noqa: C416


class NoSelf(nn.Module):
    def forward(*arguments):
        q = arguments[1]
        return F.scaled_dot_product_attention(q, q, q)


class PositionalOnly(nn.Module):
    def forward(self, q, /, *more, **options):
        return F.scaled_dot_product_attention(q, q, *(more or (q,)), **options)


class NamesItsClass(nn.Module):
    def forward(self, q):
        return F.scaled_dot_product_attention(q, q, q) * len(__class__.__name__)


@pytest.mark.parametrize("original", [PositionalOnly, InIterable, NoSelf, NamesItsClass])
def test_unusual_forwards_are_rewritten_or_refused(original):
    """Rewritten right, or refused with a reason; nothing else."""
    with contextlib.suppress(CannotRewrite):
        module, calls = patched(original)
        assert torch.equal(module(Q), original()(Q))
        assert len(calls) == 1
        return
    with pytest.raises(CannotRewrite, match=r"its forward|its attention"):
        rewritten_forward(original)


@pytest.mark.parametrize(
    ("original", "reason"),
    [
        (WithoutAttention, "does not call F.scaled_dot_product_attention"),
        (Delegates, r"delegates to its parent class \(super\)"),
        (make_closure(), "is a closure"),
        (Decorated, "is decorated"),
        (NoGrad, "is decorated"),
        (InLambda, "inside a nested function"),
        (InNested, "inside a nested function"),
        (Private, "uses the private name __factor"),
        (Alias, "does not call F.scaled_dot_product_attention"),
        (NotAMethod, "its forward is partial, not a plain method"),
    ],
)
def test_refuses_with_the_reason(original, reason):
    with pytest.raises(CannotRewrite, match=reason):
        rewritten_forward(original)


def test_refuses_without_source():
    names = {"nn": nn, "F": F}
    code = (
        "class Sourceless(nn.Module):\n"
        "    def forward(self, q):\n"
        "        return F.scaled_dot_product_attention(q, q, q)\n"
    )
    exec(code, names)
    with pytest.raises(CannotRewrite, match="source is not available"):
        rewritten_forward(names["Sourceless"])


class NestedWithout(nn.Module):
    def forward(self, q):
        def double(x):
            return 2 * x

        return double(F.scaled_dot_product_attention(q, q, q))


def test_a_nested_function_without_attention_stays():
    module, _ = patched(NestedWithout)
    assert torch.equal(module(Q), NestedWithout()(Q))
