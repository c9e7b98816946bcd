"""timm's checkpoints of patched models."""

import oracles
import pytest
import torch
from patched_vit import (
    CASES,
    adamw,
    assert_same,
    created,
    each_case,
    patched,
    some_cases,
    train_step,
    values,
)
from safetensors.torch import load_file, load_model, save_model
from timm.models import load_checkpoint, resume_checkpoint
from timm.models.vision_transformer import checkpoint_filter_fn
from timm.utils import CheckpointSaver, ModelEmaV2, get_state_dict
from tiny_vit import images, vit

import posenc
from posenc import patch_model


@some_cases
def test_checkpoint_saver(case, tmp_path):
    model = patched(case).train()
    optimizer, ema = adamw(model), ModelEmaV2(model, decay=0.5)
    train_step(model, optimizer)
    ema.update(model)
    assert_same(get_state_dict(ema), ema.module.state_dict())
    saver = CheckpointSaver(
        model, optimizer, model_ema=ema, checkpoint_dir=tmp_path, recovery_dir=tmp_path
    )
    saver.save_checkpoint(0, metric=1.0)
    for use_ema, source in ((False, model), (True, ema.module)):
        target = patched(case, vit(seed=5), seed=9)
        load_checkpoint(target, str(tmp_path / "checkpoint-0.pth.tar"), use_ema=use_ema)
        assert_same(target.state_dict(), source.state_dict())
        assert torch.equal(target(images(model)), source.eval()(images(model)))


@some_cases
def test_training_resumes_exactly(case, tmp_path):
    model = patched(case).train()
    optimizer = adamw(model)
    train_step(model, optimizer)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=tmp_path, recovery_dir=tmp_path)
    saver.save_checkpoint(0)
    resumed = patched(case, vit(seed=5), seed=9).train()
    resumed_optimizer = adamw(resumed)
    path = str(tmp_path / "checkpoint-0.pth.tar")
    assert resume_checkpoint(resumed, path, resumed_optimizer, log_info=False) == 1
    for seed in (1, 2):
        train_step(model, optimizer, seed)
        train_step(resumed, resumed_optimizer, seed)
    assert_same(model.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@some_cases
def test_an_unpatched_checkpoint_of_timm(case, suffix, tmp_path):
    """Loaded before the patch, or after it."""
    source = oracles.randomize(created(), 2, scale=0.1)
    x = images(source)
    path = str(tmp_path / f"model.{suffix}")
    if suffix == "pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        save_model(source, path)
    before = patch_model(created(checkpoint_path=path), **CASES[case])
    torch.testing.assert_close(before(x), source(x), rtol=1e-4, atol=1e-5)
    after = patched(case, created())
    ours = values(after)
    missing, unexpected = load_checkpoint(after, path, strict=False)
    assert (missing, unexpected) == (list(posenc.encoding_state_dict(after)), [])
    for key, value in after.state_dict().items():
        assert torch.equal(value, ours[key] if key in missing else source.state_dict()[key]), key


@some_cases
def test_timm_s_checkpoint_filter_keeps_encodings(case):
    model = patched(case)
    assert_same(checkpoint_filter_fn(model.state_dict(), model), model.state_dict())


@each_case
def test_safetensors_of_a_whole_model(case, tmp_path):
    source = patched(case)
    save_model(source, tmp_path / "model.safetensors")
    assert sorted(load_file(tmp_path / "model.safetensors")) == sorted(source.state_dict())
    target = patched(case, vit(seed=5), seed=9)
    assert load_model(target, tmp_path / "model.safetensors") == (set(), [])
    assert_same(source.state_dict(), target.state_dict())
    assert torch.equal(source(images(source)), target(images(source)))
