"""What is saved, and what could not be loaded again."""

import pytest
import torch
from encoding_files import patched
from tiny_vit import vit
from torch import nn

import posenc


def first(model):
    return next(iter(posenc.patched_encodings(model).values()))


def weight_norm(model):
    nn.utils.parametrizations.weight_norm(first(model), "table")


def old_weight_norm(model):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(first(model), "table")


def prune(model):
    import torch.nn.utils.prune

    torch.nn.utils.prune.l1_unstructured(first(model), "table", 3)


def parametrize(model):
    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    nn.utils.parametrize.register_parametrization(first(model), "table", Twice())


def reshape(model):
    first(model).table = nn.Parameter(torch.zeros(2, 7))


CHANGES = [weight_norm, old_weight_norm, prune, parametrize, reshape]


@pytest.mark.parametrize("change", CHANGES)
def test_what_could_not_be_loaded_is_not_saved(change, path):
    model = patched()
    change(model)
    message = r"not be loaded again: .* blocks.0.attn.posenc.swin.* where a fresh one has blocks.0"
    with pytest.raises(ValueError, match=message):
        posenc.save_encodings(model, path)
    assert not path.exists()


def test_a_parametrization_made_permanent_is_saved(path):
    model = patched()
    parametrize(model)
    expected = first(model).table.detach().clone()
    nn.utils.parametrize.remove_parametrizations(first(model), "table")
    posenc.save_encodings(model, path)
    assert torch.equal(first(posenc.load_encodings(vit(), path)).table, expected)


def test_an_encoding_that_asks_where_it_stands_is_saved(path, monkeypatch):
    monkeypatch.setattr(posenc.registry, "_ENCODINGS", dict(posenc.registry._ENCODINGS))

    class Deep(posenc.AttentionEncoding):
        def __init__(self, layout, num_heads, head_dim, block, num_blocks, *, device=None):
            super().__init__(layout, num_heads, head_dim)
            self.slope = nn.Parameter(torch.ones(block + 1, num_blocks, device=device))

        def terms(self, q, k, layout, scale):
            return ()

        def changes_at_start(self):
            return False

    posenc.register_encoding("deep", Deep)
    model = posenc.patch_model(vit(), "deep")
    posenc.save_encodings(model, path)
    fresh = posenc.encoding_state_dict(posenc.load_encodings(vit(), path))
    assert [list(value.shape) for value in fresh.values()] == [[1, 2], [2, 2]]


def test_a_function_under_the_name_of_an_encoding_is_not_saved(path):
    """A file would name the class of the registry, with other options."""

    def swin(layout, num_heads, head_dim, embed_dim):
        return posenc.SwinBias(layout, num_heads, init="paper")

    with pytest.warns(UserWarning, match="SwinBias has an effect from the start"):
        model = posenc.patch_model(vit(), swin)
    with pytest.raises(
        ValueError, match=r"something else than the 'swin' of the registry: swin lac"
    ):
        posenc.save_encodings(model, path)


def test_saving_into_a_missing_folder(tmp_path):
    path = tmp_path / "none" / "encodings.safetensors"
    with pytest.raises(
        FileNotFoundError, match=rf"the folder {path.parent} does not exist: create"
    ):
        posenc.save_encodings(patched(), path)


def test_saving_beside_the_program(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    posenc.save_encodings(patched(), path.name)
    assert path.exists()
