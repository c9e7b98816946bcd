"""Ways in which positions were once wrong without a word; each is now right or refused."""

import functools

import pytest
import torch
from tiny_vit import images, snapshot, vit
from torch import nn

import posenc
from posenc import TokenLayout, attend, explain, patch_model


class Double(nn.Module):
    def forward(self, table):
        return 2 * table


@pytest.mark.parametrize(
    ("encoding", "method"), [("peg", "forward"), ("sinusoidal", "_pos_embed"), ("irpe", "forward")]
)
def test_a_method_replaced_on_the_instance_is_refused(encoding, method):
    model = vit()
    module = {"peg": model.blocks[0], "sinusoidal": model, "irpe": model.blocks[0].attn}[encoding]
    setattr(module, method, functools.partial(getattr(type(module), method), module))
    with pytest.raises(ValueError, match=r"was replaced on the instance"):
        patch_model(model, encoding)
    assert not posenc.is_patched(model)


def test_another_embedding_is_followed():
    model = patch_model(vit(img_size=(12, 20)), "irpe")
    model.patch_embed = vit(img_size=(20, 12)).patch_embed
    assert posenc.summary(model).layout.grid == (5, 3)


def test_several_patched_models_are_named():
    both = nn.ModuleDict({"a": patch_model(vit(), "irpe"), "b": patch_model(vit(), "swin")})
    for function in (posenc.unpatch_model, posenc.summary, posenc.encoding_config):
        with pytest.raises(ValueError, match=r"2 patched models are in it \(a, b\)"):
            function(both)


def test_a_callable_must_return_a_new_module_each_time():
    one = posenc.SwinBias(TokenLayout(3, 5, 1), 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="returned the same module for two sites"):
        patch_model(vit(), lambda *sizes: one)


@pytest.mark.parametrize("name", posenc.list_encodings())
def test_the_default_device_is_followed(name):
    with torch.device("meta"):
        encoding = posenc.create_encoding(
            name, layout=TokenLayout(2, 3, 1), num_heads=2, head_dim=4, embed_dim=8
        )
    assert {p.device.type for p in encoding.parameters()} <= {"meta"}


def swin():
    layout = TokenLayout(2, 3)
    encoding = posenc.SwinBias(layout, 2).eval()
    nn.init.normal_(encoding.table)
    return encoding, layout, torch.randn(1, 2, 6, 4)


@torch.no_grad()
def test_a_parametrisation_reaches_the_cache():
    encoding, layout, q = swin()
    before = encoding(q, q, layout)[0].dense()
    torch.nn.utils.parametrize.register_parametrization(encoding, "table", Double())
    torch.testing.assert_close(encoding(q, q, layout)[0].dense(), 2 * before)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_held_terms_keep_their_values(backend):
    encoding, layout, q = swin()
    terms = encoding(q, q, layout)
    before = attend(q, q, q, terms, backend=backend)
    encoding.table.data.mul_(-3)
    assert torch.equal(attend(q, q, q, terms, backend=backend), before)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch about torch.jit
# Some versions of torch script their own formulas at the first use, and warn of it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
def test_forward_gradients_and_vmap_see_the_parameters():
    encoding, layout, q = swin()

    def bias(table):
        return torch.func.functional_call(encoding, {"table": table}, (q, q, layout))[0].dense()

    encoding(q, q, layout)
    table = encoding.table.detach()
    _, tangent = torch.func.jvp(bias, (table,), (torch.ones_like(table),))
    assert torch.equal(tangent, torch.ones_like(tangent))
    both = torch.func.vmap(bias)(torch.stack([table, 2 * table]))
    torch.testing.assert_close(both[1], 2 * both[0])
    torch.testing.assert_close(encoding(q, q, layout)[0].dense(), both[0])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # tracing warns of every shape check
def test_a_trace_keeps_the_table():
    encoding, layout, q = swin()
    encoding(q, q, layout)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoding = encoding

        def forward(self, q):
            return attend(q, q, q, self.encoding(q, q, layout))

    traced = torch.jit.trace(Own().eval(), (q,))
    encoding.table.zero_()
    torch.testing.assert_close(traced(q), attend(q, q, q))


def test_auto_trains_wide_biases_precisely():
    """Above 600 tokens: the gradient of alpha in float32 against float64."""
    layout = TokenLayout(26, 26, 1)
    encoding = posenc.Quadratic(layout, 2, alpha=10.0)
    q = torch.randn(1, 2, layout.num_tokens, 8)
    assert explain(q, q, q, encoding(q, q, layout)).choice == "tiled"
    grads = []
    for dtype in (torch.float32, torch.float64):
        exact = encoding.to(dtype)
        q = q.to(dtype)
        out = attend(q, q, q, exact(q, q, layout))
        grads.append(torch.autograd.grad(out.square().sum(), exact.alpha)[0].double())
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[1].norm()  # low rank: 4e-1


def test_a_scale_of_zero_is_finite():
    layout = TokenLayout(25, 26)
    encoding = posenc.HumanPart(layout, 2, strength=1.0)
    q = torch.randn(1, 2, layout.num_tokens, 8)
    assert attend(q, q, q, encoding(q, q, layout), scale=0.0).isfinite().all()
    with pytest.raises(ValueError, match=r"scale=0\.0, which is too small"):
        attend(q, q, q, encoding(q, q, layout), scale=0.0, backend="lowrank")


def test_summary_says_that_a_hidden_table_changes_the_model():
    with pytest.warns(UserWarning, match="position table is hidden"):
        model = patch_model(vit(), "irpe", absolute="hide")
    assert "position table is hidden" in str(posenc.summary(model))
    assert model(images(model)).isfinite().all()


@pytest.mark.parametrize("inside", [False, True])
def test_half_loaded_tables_are_refused_even_when_not_strict(inside):
    model = patch_model(vit(), "irpe")
    state = {key: value.clone() + 1 for key, value in model.state_dict().items()}
    del state["blocks.1.attn.posenc.irpe.table_k"]
    if inside:
        model = nn.ModuleDict({"vit": model})
        state = {f"vit.{key}": value for key, value in state.items()}
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"1 of the model's 2 encoding tables .*1.attn.* nothing"):
        model.load_state_dict(state, strict=False)
    assert snapshot(model) == before


def test_tables_of_another_encoding_are_refused_even_when_not_strict():
    model = patch_model(vit(), "swin")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"0 of the model's 2 .*irpe.table_k is missing in the mo"):
        model.load_state_dict(patch_model(vit(), "irpe").state_dict(), strict=False)
    assert snapshot(model) == before
    model.load_state_dict(vit(seed=5).state_dict(), strict=False)  # an unpatched checkpoint
    assert snapshot(model) != before
