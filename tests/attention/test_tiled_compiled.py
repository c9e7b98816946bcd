"""Tiles inside torch.compile: one operator, with the results and gradients of the definition."""

import oracles
import pytest
import torch
from torch.utils._pytree import tree_map

import posenc
from posenc import TokenLayout, attend
from posenc.attention.backends import tiled, tiled_op
from posenc.terms import DenseBias

pytestmark = pytest.mark.slow

BATCH, HEADS, DIM = 3, 4, 5
CASES = {
    "irpe on=qkv": {"on": "qkv"},
    "irpe method=cross on=qkv": {"on": "qkv", "method": "cross", "share_heads": False},
    "swin": {},
    "quadratic": {},
}
OPERATOR = tiled_op.tiled_attention._opoverload


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiled, "CPU_SCORES", 60 / torch.get_num_threads())


@pytest.fixture
def graphs():
    """What the backend below was given."""
    return []


@pytest.fixture
def record(graphs):
    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    return backend


def build(case, layout, dtype=torch.float64):
    encoding = posenc.create_encoding(
        case.split()[0], layout=layout, num_heads=HEADS, head_dim=DIM, dtype=dtype, **CASES[case]
    )
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return encoding


def packed_tokens(layout, batch=BATCH, dtype=torch.float64):
    shape = (batch, layout.num_tokens, 3, HEADS, DIM)
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def attention(encoding, layout, backend, mask=None):
    def function(packed):
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        return attend(q, k, v, encoding(q, k, layout), attn_mask=mask, backend=backend)

    return function


def gradients(out, leaves):
    return [out, *torch.autograd.grad(out.sin().sum(), leaves)]


def assert_same(found, expected, **tolerance):
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-6
        torch.testing.assert_close(one, other, **tolerance)


def as_leaf(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def uses_operator(graphs):
    return any(node.target is OPERATOR for graph in graphs for node in graph.graph.nodes)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("case", "size", "mask", "keeps"),
    [
        ("irpe on=qkv", (3, 5, 0), None, True),
        ("irpe on=qkv", (2, 5, 2), torch.bool, False),
        ("irpe method=cross on=qkv", (7, 2, 1), torch.float64, True),
        ("irpe method=cross on=qkv", (3, 3, 5), None, False),
        ("swin", (7, 2, 1), torch.bool, True),
        ("swin", (3, 5, 0), None, False),
        ("quadratic", (2, 5, 5), None, True),
    ],
    ids=str,
)
def test_equals_the_reference(case, size, mask, keeps, monkeypatch):
    """Of attention that is kept for backward, or computed again."""
    if not keeps:
        monkeypatch.setattr(tiled, "KEPT_TOKENS", 0)
    layout = TokenLayout(*size)
    encoding, packed = build(case, layout), packed_tokens(layout)
    leaves = [packed, *encoding.parameters()]
    given = None
    if mask is not None:
        given = torch.randn(BATCH, 1, layout.num_tokens, layout.num_tokens, dtype=torch.float64)
        given = given > -1 if mask == torch.bool else given.requires_grad_()
        with torch.no_grad():
            given[:, :, 3] = False if mask == torch.bool else -torch.inf  # no key for this query
        leaves += [given] if given.requires_grad else []
    compiled = torch.compile(
        attention(encoding, layout, "tiled", given), fullgraph=True, backend="aot_eager"
    )
    truth = attention(encoding, layout, "reference", given)
    found, expected = (gradients(f(packed), leaves) for f in (compiled, truth))
    assert_same(found, expected, atol=1e-10, rtol=1e-10)


def test_dense_and_low_rank_biases():
    q, k, v = (torch.randn(2, HEADS, 7, DIM, requires_grad=True) for _ in range(3))
    bias = torch.randn(1, HEADS, 7, 7, requires_grad=True)
    left, right = (torch.randn(2, 1, 7, 3, requires_grad=True) for _ in range(2))

    def function(backend):
        terms = (DenseBias(bias), posenc.terms.LowRankBias(left, right))
        return attend(q, k, v, terms, backend=backend)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    leaves = [q, k, v, bias, left, right]
    found, expected = gradients(compiled("tiled"), leaves), gradients(function("reference"), leaves)
    assert_same(found, expected, atol=1e-4, rtol=1e-4)


def test_by_the_default_compiler():
    layout = TokenLayout(3, 5, 1)
    encoding = build("irpe on=qkv", layout, torch.float32)
    packed = packed_tokens(layout, dtype=torch.float32)
    leaves = [packed, *encoding.parameters()]
    compiled = torch.compile(attention(encoding, layout, "tiled"), fullgraph=True)
    truth = attention(encoding, layout, "reference")
    assert_same(gradients(compiled(packed), leaves), gradients(truth(packed), leaves))


def test_in_16_bit():
    layout = TokenLayout(3, 5, 1)
    encoding = build("irpe on=qkv", layout, torch.float32)
    packed = packed_tokens(layout, dtype=torch.bfloat16)
    leaves = [packed, *encoding.parameters()]
    function = attention(encoding, layout, "tiled")
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, expected = (gradients(f(packed), leaves) for f in (compiled, function))
    assert found[0].dtype == torch.bfloat16
    assert_same(found, expected, atol=1e-6, rtol=1e-6)


def test_under_autocast():
    layout = TokenLayout(3, 5, 1)
    encoding = build("irpe on=qkv", layout, torch.float32)
    packed = packed_tokens(layout, dtype=torch.float32)
    leaves = [packed, *encoding.parameters()]

    def function(packed):
        with torch.autocast("cpu", torch.bfloat16):
            return attention(encoding, layout, "tiled")(packed)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found, expected = (gradients(f(packed), leaves) for f in (compiled, function))
    assert found[0].dtype == torch.bfloat16
    assert_same(found, expected, atol=1e-2, rtol=1e-2)


@pytest.mark.usefixtures("small_tiles")
def test_forward_decides_the_tiles_of_backward(monkeypatch):
    """The number of threads may have changed in between, and with it the size of a tile."""
    layout = TokenLayout(3, 5, 1)
    encoding, packed = build("swin", layout), packed_tokens(layout)
    leaves = [packed, *encoding.parameters()]
    compiled = torch.compile(
        attention(encoding, layout, "tiled"), fullgraph=True, backend="aot_eager"
    )
    out = compiled(packed)
    monkeypatch.setattr(tiled, "CPU_SCORES", 10**6)
    expected = gradients(attention(encoding, layout, "reference")(packed), leaves)
    assert_same(gradients(out, leaves), expected, atol=1e-10, rtol=1e-10)


def test_one_graph_for_all_batches(record, graphs):
    layout = TokenLayout(3, 5, 1)
    encoding = build("swin", layout)
    compiled = torch.compile(attention(encoding, layout, "tiled"), fullgraph=True, backend=record)
    for batch in (2, 3, 5, 7):
        packed = packed_tokens(layout, batch)
        torch._dynamo.maybe_mark_dynamic(packed, 0)
        leaves = [packed, *encoding.parameters()]
        expected = gradients(attention(encoding, layout, "reference")(packed), leaves)
        assert_same(gradients(compiled(packed), leaves), expected, atol=1e-10, rtol=1e-10)
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["irpe", "deberta"])
@pytest.mark.parametrize("trains", [False, True])
def test_a_batch_that_has_no_size_yet(name, trains):
    """Of biases that differ between images: no choice depends on it."""
    layout = TokenLayout(2, 3, 1)
    encoding = posenc.create_encoding(name, layout=layout, num_heads=HEADS, head_dim=DIM)
    oracles.randomize(encoding)
    x = torch.randn(2, HEADS, 7, DIM)
    torch._dynamo.decorators.mark_unbacked(x, 0)

    def function(x):
        return attend(x, x, x, encoding(x, x, layout))

    with torch.set_grad_enabled(trains):
        found = torch.compile(function, fullgraph=True, backend="eager")(x)
        torch.testing.assert_close(found, function(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # its own
def test_fakes_and_gradients_as_torch_wants_them():
    layout = TokenLayout(2, 3, 1)
    encoding, packed = build("irpe on=qkv", layout), packed_tokens(layout)
    checked = []

    class Checking(torch.fx.Interpreter):
        def call_function(self, target, args, kwargs):
            if target is OPERATOR:
                checked.append(torch.library.opcheck(target, tree_map(as_leaf, args), kwargs))
            return super().call_function(target, args, kwargs)

    def check(module, inputs):
        return lambda *args: Checking(module).run(*args)

    torch.compile(attention(encoding, layout, "tiled"), fullgraph=True, backend=check)(packed)
    assert len(checked) == 1


LONG = TokenLayout(35, 20, 1)
MIDDLE = TokenLayout(30, 15, 1)
SHORT = TokenLayout(20, 10, 1)


@pytest.mark.parametrize(
    ("case", "layout", "trains", "expected"),
    [
        ("swin", MIDDLE, True, True),
        ("swin", SHORT, True, False),
        ("swin", MIDDLE, False, False),
        ("irpe on=k", MIDDLE, True, False),
        ("irpe on=k", LONG, True, True),
        ("irpe on=k", LONG, False, False),
        ("irpe on=qkv", MIDDLE, True, False),
        ("irpe on=qkv", SHORT, False, True),
    ],
    ids=str,
)
def test_auto_takes_it_where_it_is_faster(case, layout, trains, expected, record, graphs):
    options = {"on": case.split("=")[1]} if "=" in case else {}
    encoding = posenc.create_encoding(
        case.split()[0], layout=layout, num_heads=1, head_dim=2, **options
    )
    q, k, v = (torch.randn(2, 1, layout.num_tokens, 2, requires_grad=True) for _ in range(3))

    def function(q, k, v):
        return attend(q, k, v, encoding(q, k, layout))

    with torch.set_grad_enabled(trains):
        torch.compile(function, fullgraph=True, backend=record)(q, k, v)
    assert uses_operator(graphs) == expected


def test_an_exported_program_has_stock_operations_only():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoding = posenc.create_encoding("swin", layout=SHORT, num_heads=1, head_dim=2)

        def forward(self, q, k, v):
            return attend(q, k, v, self.encoding(q, k, SHORT))

    inputs = tuple(torch.randn(2, 1, SHORT.num_tokens, 2) for _ in range(3))
    program = torch.export.export(Model().train(), inputs, strict=True)
    names = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert names
    assert not any(name.startswith("posenc.") for name in names)


def test_is_refused_where_a_transform_is_compiled():
    q = torch.randn(2, 1, 1, 4, 3)
    bias = DenseBias(torch.randn(1, 1, 4, 4))

    def function(q):
        return torch.vmap(lambda x: attend(x, x, x, bias, backend="tiled"))(q)

    with pytest.raises(Exception, match="a function transform cannot see through"):
        torch.compile(function, fullgraph=True, backend="eager")(q)
