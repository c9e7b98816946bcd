"""Which of PyTorch's kernels fused attention may choose, and which it does choose."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

import posenc
from posenc.attention import fused
from posenc.attention.fused import Operands, loses_gradients
from posenc.terms import DenseBias, LowRankBias

H100, H200, B200, A100 = (9, 0), (9, 0), (10, 0), (8, 0)
FAULTY, FIXED = 92400, 92600  # PyTorch 2.14 comes with the first


@pytest.mark.parametrize("keys", [64, 192, 576, 704, 1088])  # 24x24 patches are 576
@pytest.mark.parametrize("cudnn", [91501, FAULTY, 92501])
def test_half_a_tile_of_keys_loses_gradients(keys, cudnn):
    assert loses_gradients(keys, H100, cudnn)


@pytest.mark.parametrize("keys", [1, 63, 65, 128, 196, 197, 256, 577, 640, 768])
def test_other_numbers_of_keys_do_not(keys):
    assert not loses_gradients(keys, H200, FAULTY)


@pytest.mark.parametrize(
    ("capability", "cudnn"),
    [(H100, FIXED), (H100, 93000), (H100, None), (B200, FAULTY), (A100, FAULTY)],
)
def test_other_devices_and_versions_do_not(capability, cudnn):
    assert not loses_gradients(576, capability, cudnn)


# Tensors of a device that this machine may not have.


def on_cuda(tokens=576, mask=True, requires_grad=True):
    query = torch.empty(1, 2, tokens, 64, device="cuda", dtype=torch.bfloat16)
    query.requires_grad_(requires_grad)
    own = torch.empty(tokens, tokens, device="cuda", dtype=torch.bfloat16) if mask else None
    return Operands(query, query, query, own, 0.0)


@pytest.fixture
def h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: H100)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: FAULTY)
    with FakeTensorMode():
        yield


def test_only_where_a_gradient_is_wanted_beside_a_mask(h100):
    assert on_cuda()._loses_gradients()
    assert not on_cuda(requires_grad=False)._loses_gradients()
    assert not on_cuda(mask=False)._loses_gradients()
    assert not on_cuda(tokens=577)._loses_gradients()
    with torch.no_grad():
        assert not on_cuda()._loses_gradients()


def test_a_trained_mask_alone_counts(h100):
    operands = on_cuda(requires_grad=False)
    assert operands._replace(mask=operands.mask.requires_grad_())._loses_gradients()


def test_never_on_the_cpu():
    q = torch.zeros(1, 1, 64, 8, requires_grad=True)
    assert not Operands(q, q, q, torch.zeros(64, 64), 0.0)._loses_gradients()


# What then happens, on any device.


@pytest.fixture
def faulty(monkeypatch):
    monkeypatch.setattr(Operands, "_loses_gradients", lambda self: True)


@pytest.fixture
def enabled(monkeypatch):
    """The kernels that were enabled at each call of PyTorch's attention."""
    seen, sdpa = [], F.scaled_dot_product_attention

    def spy(*args, **options):
        seen.append(kernels())
        return sdpa(*args, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return seen


def kernels():
    cuda = torch.backends.cuda
    enabled = {
        "cudnn": cuda.cudnn_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    return {name for name, on in enabled.items() if on}


def attend(backend):
    q = torch.randn(1, 2, 6, 8, requires_grad=True)
    terms = [LowRankBias(torch.randn(1, 2, 6, 2), torch.randn(1, 2, 6, 2))]
    return posenc.attend(q, q, q, terms, attn_mask=torch.randn(6, 6), backend=backend)


@pytest.mark.parametrize("backend", ["sdpa", "lowrank"])
def test_cudnn_is_not_among_the_kernels(backend, enabled, faulty):
    attend(backend)
    assert enabled == [{"flash", "efficient", "math"}]
    assert kernels() == {"cudnn", "flash", "efficient", "math"}  # as before


@pytest.mark.parametrize("backend", ["sdpa", "lowrank"])
def test_otherwise_all_are(backend, enabled):
    attend(backend)
    assert enabled == [{"cudnn", "flash", "efficient", "math"}]


def test_what_the_user_has_switched_off_stays_off(enabled, faulty):
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH]):
        attend("sdpa")
        assert kernels() == {"cudnn", "math"}
    assert enabled == [{"math"}]


def test_who_allows_cudnn_alone_gets_it(faulty):
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]), fused._without_cudnn():
        assert kernels() == {"cudnn"}


@pytest.mark.filterwarnings("ignore")  # torch's own code warns while it traces
def test_in_one_compiled_graph(faulty):
    torch.compiler.reset()
    q, mask = torch.randn(1, 2, 6, 8, requires_grad=True), torch.randn(6, 6)

    def masked(q):
        return posenc.attend(q, q, q, attn_mask=mask, backend="sdpa")

    compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q), masked(q))
    assert kernels() == {"cudnn", "flash", "efficient", "math"}
    torch.compiler.reset()


# explain


def bias(requires_grad):
    return DenseBias(torch.zeros(1, 2, 6, 6, requires_grad=requires_grad))


@pytest.mark.parametrize(
    ("terms", "options", "kernel"),
    [
        ((), {}, "flash"),
        ((), {"attn_mask": torch.zeros(6, 6)}, "flash"),
        ((), {"attn_mask": torch.zeros(6, 6, requires_grad=True)}, "math"),
        ((), {"dropout_p": 0.5}, "math"),
        (bias(False), {"backend": "sdpa"}, "flash"),
        (bias(True), {"backend": "sdpa"}, "math"),
        (bias(True), {"backend": "reference"}, None),
    ],
)
def test_explain_names_the_kernel(terms, options, kernel):
    q = torch.randn(1, 2, 6, 8)
    explanation = posenc.explain(q, q, q, terms, **options)
    assert explanation.sdpa_kernel == kernel
    named = f"by PyTorch's {kernel} kernel"
    assert (named in str(explanation)) == (kernel is not None)


def test_explain_names_the_kernel_of_low_rank_attention():
    q = torch.randn(1, 2, 6, 8)
    terms = LowRankBias(torch.randn(1, 2, 6, 2), torch.randn(1, 2, 6, 2))
    assert posenc.explain(q, q, q, terms, backend="lowrank").sdpa_kernel == "flash"
    with sdpa_kernel(SDPBackend.MATH):
        assert posenc.explain(q, q, q, terms, backend="lowrank").sdpa_kernel == "math"


def test_explain_builds_no_mask(monkeypatch):
    monkeypatch.setattr(DenseBias, "dense", lambda self: pytest.fail("built"))
    q = torch.randn(1, 2, 6, 8)
    assert posenc.explain(q, q, q, bias(False), backend="sdpa").sdpa_kernel == "flash"
