"""Checks that every encoding must pass: what `posenc.testing.check_encoding` promises its users.

They hold for the encodings of posenc and for those of users alike; no encoding is known by name
here. Parameters are randomised before two computations are compared, because tables that start at
zero hide mistakes, and grids are not square, because squares hide exchanged rows and columns.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from posenc.analysis import capture_attention
from posenc.attention import attend, explain
from posenc.attention.api import BACKENDS
from posenc.encodings.base import AttentionEncoding
from posenc.layout import TokenLayout
from posenc.patching import (
    encoding_parameters,
    fold_biases,
    patch_model,
    patched_encodings,
    unpatch_model,
)
from posenc.patching.spec import parse_specs
from posenc.terms import BiasTerm

LAYOUTS = tuple(
    TokenLayout(*sizes) for sizes in [(2, 5, 0), (4, 3, 1), (1, 6, 2), (3, 2, 5), (1, 1, 1)]
)
BATCH = 2
IMAGE = (32, 48)  # 2x3 patches of 16 pixels

Check = Callable[[], None]


def check_encoding(encoding: Any, *, num_heads: int = 2, head_dim: int = 8, **options: Any) -> None:
    """Raises unless an encoding keeps all promises of posenc, for both kinds of encodings.

    An attention encoding is compared on every backend that computes it with the reference, forward
    and all gradients; a token encoding is compared image by image. Both are checked for their
    stated effect at start, other grids than their own, dtypes, autocast, copies and state dicts,
    one graph under `torch.compile`, and inside a patched model (keys, gradients, capture, folding,
    export, unpatching). It takes some seconds, on the CPU, and no images.

    Args:
        encoding: as for `patch_model`: a registered name, a class or a callable.
        num_heads: heads to build it with.
        head_dim: width of a head to build it with; tokens have `num_heads * head_dim` channels.
        **options: of the encoding.

    Raises:
        AssertionError: the first promise that is not kept, named, with the reason.
        ValueError: an unknown name or option.

    >>> check_encoding("swin")
    """
    for name, check in checks_of(encoding, num_heads=num_heads, head_dim=head_dim, **options):
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{encoding!r}: {name}: {error}") from error


def checks_of(
    encoding: Any, *, num_heads: int = 2, head_dim: int = 8, **options: Any
) -> Iterator[tuple[str, Check]]:
    """Name and function of each check, for test runners: arguments as of `check_encoding`.

    >>> [name for name, _ in checks_of("peg")][:2]
    ['States its effect at start', 'Accepts other grids']
    """
    subject = _Subject(encoding, num_heads, head_dim, options)
    kinds: list[Any] = [_ATTENTION if subject.acts_in_attention else _TOKENS, _PATCHED]
    for checks in kinds:
        for check in checks:
            doc = (inspect.getdoc(check) or "").splitlines()[0].rstrip(".")
            yield doc, _bound(check, subject)


def check_backend(
    encoding: Any,
    backend: str,
    *,
    dtype: torch.dtype = torch.float64,
    num_heads: int = 2,
    head_dim: int = 8,
    **options: Any,
) -> int:
    """Compares one backend with the reference, forward and all gradients, on every layout.

    Args:
        encoding: of the attention, as for `check_encoding`.
        backend: its name.
        dtype: of queries, keys and values.
        num_heads: as for `check_encoding`.
        head_dim: as for `check_encoding`.
        **options: of the encoding.

    Raises:
        AssertionError: results that differ by more than rounding.

    Returns:
        Number of layouts on which the backend computes the call; it may refuse all.
    """
    subject = _Subject(encoding, num_heads, head_dim, options)
    return sum(_compare_backend(subject, layout, backend, dtype) for layout in LAYOUTS)


@dataclass
class _Subject:
    """An encoding that can be built for any layout."""

    encoding: Any
    num_heads: int
    head_dim: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def embed_dim(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def acts_in_attention(self) -> bool:
        return isinstance(self.build(LAYOUTS[0]), AttentionEncoding)

    def build(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> Any:
        (spec,) = parse_specs(self.encoding, dict(self.options))
        sizes: dict[str, int | None] = {
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "embed_dim": self.embed_dim,
            "block": 0,
            "num_blocks": 2,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return spec.create(layout, sizes, torch.device("cpu"), dtype)

    def random(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> Any:
        return randomise(self.build(layout, dtype))

    def qkv(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        shape = (BATCH, self.num_heads, layout.num_tokens, self.head_dim)
        return [_random(shape, seed, dtype).requires_grad_() for seed in (1, 2, 3)]

    def tokens(self, layout: TokenLayout, dtype: torch.dtype = torch.float64) -> Tensor:
        shape = (BATCH, layout.num_tokens, self.embed_dim)
        return _random(shape, 1, dtype).requires_grad_()

    def run(self, encoding: Any, layout: TokenLayout, dtype: Any = torch.float64) -> Tensor:
        """What it makes of the same random input each time."""
        if isinstance(encoding, AttentionEncoding):
            q, k, v = self.qkv(layout, dtype)
            return attend(q, k, v, encoding(q, k, layout))
        return encoding(self.tokens(layout, dtype), layout)

    def without(self, layout: TokenLayout) -> Tensor:
        """What no encoding makes of it."""
        if not self.acts_in_attention:
            return self.tokens(layout)
        q, k, v = self.qkv(layout)
        return attend(q, k, v)


def randomise(module: nn.Module, scale: float = 0.4) -> nn.Module:
    """Moves every parameter away from its start, by the same noise each time."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            noise = _random(tuple(parameter.shape), seed, torch.float64)
            parameter.add_((scale * noise).to(parameter.device))
    return module


def _random(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _bound(check: Any, subject: _Subject) -> Check:
    return lambda: check(subject)


# Checks of either kind


def _effect_at_start(subject: _Subject) -> None:
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


def _other_grids(subject: _Subject) -> None:
    """Accepts other grids."""
    for layout in LAYOUTS:
        other = TokenLayout(layout.width + 1, layout.height, layout.prefix)
        out = subject.run(subject.random(layout), other)
        assert out.shape == subject.without(other).shape
        assert bool(torch.isfinite(out).all()), f"built for {layout}, not finite on {other}"


def _gradients_reach_parameters(subject: _Subject) -> None:
    """Trains every parameter."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout)
    subject.run(encoding, layout).square().sum().backward()
    without = [n for n, p in encoding.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}, which stops distributed training"


def _images_apart(subject: _Subject) -> None:
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


def _random_state(subject: _Subject) -> None:
    """Leaves random numbers alone in eval."""
    encoding = subject.random(LAYOUTS[0]).eval()
    before = torch.random.get_rng_state()
    subject.run(encoding, LAYOUTS[0])
    assert torch.equal(torch.random.get_rng_state(), before), "random numbers were drawn"


def _remembers_nothing_stale(subject: _Subject) -> None:
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


def _fresh(subject: _Subject, encoding: Any, layout: TokenLayout) -> Tensor:
    return subject.run(copy.deepcopy(encoding).train(), layout)


def _copies(subject: _Subject) -> None:
    """Survives pickle, deepcopy and a strict state dict."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout)
    again = subject.build(layout)
    again.load_state_dict(encoding.state_dict(), strict=True)
    for twin in (copy.deepcopy(encoding), again, _pickled(encoding)):
        assert torch.equal(subject.run(twin, layout), subject.run(encoding, layout))


def _pickled(encoding: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(encoding))


def _dtypes(subject: _Subject) -> None:
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


def _bad_input(subject: _Subject) -> None:
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


def _one_graph(subject: _Subject) -> None:
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


# Checks of attention encodings


def _backends_agree(subject: _Subject) -> None:
    """Equals the reference on every backend, forward and all gradients."""
    for layout in LAYOUTS:
        for backend in BACKENDS:
            _compare_backend(subject, layout, backend, torch.float64)


def _compare_backend(
    subject: _Subject, layout: TokenLayout, backend: str, dtype: torch.dtype
) -> bool:
    encoding = subject.random(layout)
    q, k, v = subject.qkv(layout, dtype)
    terms = encoding(q, k, layout)
    if explain(q, k, v, terms).reasons[backend] is not None:
        return False
    got = _with_gradients(encoding, (q, k, v), layout, backend)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    want = _with_gradients(encoding, tuple(exact), layout, "reference")
    # Gradients of parameters are sums over all pairs of some hundred rounded products.
    close = 1e-8 if dtype == torch.float64 else 100 * torch.finfo(dtype).eps
    if any(isinstance(term, BiasTerm) and term.is_wide for term in terms):
        close *= 100  # wide factors say of themselves that sums of them lose digits
    for mine, theirs in zip(got, want, strict=True):
        mine = torch.zeros_like(theirs) if mine is None else mine
        scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
        assert_close(mine.to(theirs.dtype), theirs, rtol=0, atol=close * scale)
    return True


def _with_gradients(
    encoding: Any, qkv: tuple[Tensor, ...], layout: TokenLayout, backend: str
) -> list[Any]:
    q, k, v = qkv
    out = attend(q, k, v, encoding(q, k, layout), backend=backend)
    leaves = [q, k, v, *(p for p in encoding.parameters() if p.requires_grad)]
    cotangent = _random(tuple(out.shape), 9, out.dtype)
    grads = torch.autograd.grad(out, leaves, cotangent, materialize_grads=True)
    return [out, *grads]


def _precision(subject: _Subject) -> None:
    """Gives terms in at least float32, also under autocast."""
    layout = LAYOUTS[1]
    encoding = subject.random(layout, torch.float32)
    q, k, _ = subject.qkv(layout, torch.bfloat16)
    for context in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=context):
            terms = encoding(q, k, layout)
        for term in terms:
            for name, tensor in term.tensors().items():
                assert tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"


# Checks inside a model


def _model(subject: _Subject) -> Any:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(
            "vit_tiny_patch16_224",
            img_size=IMAGE,
            depth=2,
            embed_dim=subject.embed_dim,
            num_heads=subject.num_heads,
            num_classes=5,
        )
    return randomise(model.double(), 0.05).eval()


def _patch(subject: _Subject, model: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of effects at start, which are checked elsewhere
        return patch_model(model, subject.encoding, **subject.options)


def _images() -> Tensor:
    return _random((BATCH, 3, *IMAGE), 5, torch.float64)


def _patched_and_back(subject: _Subject) -> None:
    """Keeps a model's keys, and gives it back bit for bit."""
    model, images = _model(subject), _images()
    before, keys = model(images), list(model.state_dict())
    _patch(subject, model)
    assert [key for key in model.state_dict() if ".posenc." not in f".{key}"] == keys
    encodings: Any = list(patched_encodings(model).values())
    if all(encoding.changes_at_start() is False for encoding in encodings):
        assert_close(model(images), before, rtol=0, atol=1e-10)
    for encoding in encodings:
        randomise(encoding)
    has_parameters = any(True for _ in encoding_parameters(model))
    assert not has_parameters or not torch.equal(model(images), before), "nothing changed"
    assert torch.equal(_pickled(model)(images), model(images))
    unpatch_model(model)
    assert torch.equal(model(images), before)


def _trained_in_a_model(subject: _Subject) -> None:
    """Trains inside a model."""
    model = _patch(subject, _model(subject)).train()
    model(_images()).square().sum().backward()
    without = [n for n, p in encoding_parameters(model) if p.requires_grad and p.grad is None]
    assert not without, f"no gradient reaches {without}"


def _captured(subject: _Subject) -> None:
    """Is seen by capture_attention as it is computed."""
    model = _patch(subject, _model(subject))
    for encoding in patched_encodings(model).values():
        randomise(encoding)
    images = _images()
    with torch.no_grad():
        expected = model(images)
        with capture_attention(model) as captured:
            assert torch.equal(model(images), expected)
    for weights in captured.attention.values():
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def _folded(subject: _Subject) -> None:
    """Gives the same after fold_biases, if it is static."""
    model = _patch(subject, _model(subject))
    encodings: Any = list(patched_encodings(model).values())
    for encoding in encodings:
        randomise(encoding)
    if not all(getattr(encoding, "is_static", False) for encoding in encodings):
        return
    with torch.no_grad():
        expected = model(_images())
        assert_close(fold_biases(model)(_images()), expected, rtol=1e-10, atol=1e-10)


def _exported(subject: _Subject) -> None:
    """Exports with torch.export."""
    model = _patch(subject, _model(subject)).float()
    for encoding in patched_encodings(model).values():
        randomise(encoding)
    images = _images().float()
    with torch.no_grad():
        expected = model(images)
        program = torch.export.export(model, (images,))
        assert_close(program.module()(images), expected, rtol=1e-4, atol=1e-5)


_EITHER = (
    _effect_at_start,
    _other_grids,
    _gradients_reach_parameters,
    _images_apart,
    _random_state,
    _remembers_nothing_stale,
    _copies,
    _dtypes,
    _bad_input,
    _one_graph,
)
_ATTENTION = (*_EITHER, _backends_agree, _precision)
_TOKENS = _EITHER
_PATCHED = (_patched_and_back, _trained_in_a_model, _captured, _folded, _exported)
