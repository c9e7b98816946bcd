"""Models that were quantized before the patch, or wrapped or cut after it."""

import pytest
import torch
from patched_vit import patched
from tiny_vit import images, vit
from torch import nn

import posenc
from posenc import patch_model, unpatch_model


@pytest.mark.filterwarnings("ignore")  # torch deprecates this way of quantizing
def test_a_quantized_model_is_refused():
    quantized = torch.ao.quantization.quantize_dynamic(vit(dtype=torch.float32), {nn.Linear})
    assert "no floating point parameters (quantized?)" in posenc.supports(quantized).reason
    with pytest.raises(ValueError, match=r"blocks.0.attn cannot be patched: .*then quantize it"):
        patch_model(quantized)
    assert not posenc.is_patched(quantized)


def wrap_blocks(model):
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    apply_activation_checkpointing(model, check_fn=lambda m: m in list(model.blocks))


def drop_first_block(model):
    model.blocks = nn.Sequential(*model.blocks[1:])


@pytest.mark.parametrize("change", [wrap_blocks, drop_first_block])
def test_sites_are_found_where_they_are_now(change, tmp_path):
    model, plain = patched("swin", vit(depth=3)), vit(depth=3)
    change(model)
    change(plain)
    assert posenc.summary(model).sites
    with pytest.raises(ValueError, match="wrapped or moved since the patch"):
        posenc.save_encodings(model, tmp_path / "encodings.safetensors")
    unpatch_model(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(model(images(model)), plain(images(plain)))
