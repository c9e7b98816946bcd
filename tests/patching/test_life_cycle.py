"""What happens to a patched model in a training script: optimizers, averages, files, copies."""

import copy
import json
import pickle
import subprocess
import sys

import oracles
import pytest
import timm
import torch
from patched_vit import (
    CASES,
    adamw,
    assert_same,
    each_case,
    encoding_names,
    patched,
    randomise_encodings,
    some_cases,
    train_step,
    values,
)
from safetensors.torch import load_file, load_model, save_model
from timm.models import load_checkpoint, resume_checkpoint
from timm.models._features import FeatureGetterNet
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from timm.utils import CheckpointSaver, ModelEma, ModelEmaV2, ModelEmaV3, get_state_dict
from tiny_vit import images, snapshot, vit
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

import posenc
from posenc import encoding_parameters, patch_model, patched_encodings, unpatch_model

# Old keys and parameters


@each_case
def test_an_optimizer_from_before_the_patch_goes_on(case):
    model = vit().train()
    keys, old = list(model.state_dict()), dict(model.named_parameters())
    optimizer = adamw(model)
    train_step(model, optimizer)
    state = optimizer.state_dict()
    patched(case, model)
    assert [key for key in model.state_dict() if ".posenc." not in f".{key}"] == keys
    after = dict(model.named_parameters())
    assert [name for name in after if name in old] == list(old)
    assert all(after[name] is parameter for name, parameter in old.items())
    ours, weight = values(model), model.blocks[0].attn.qkv.weight.clone()
    train_step(model, optimizer)
    assert not torch.equal(model.blocks[0].attn.qkv.weight, weight)
    assert all(torch.equal(after[name], ours[name]) for name in encoding_names(model))
    adamw(unpatch_model(model)).load_state_dict(state)


@each_case
def test_unpatch_after_training_is_bit_exact(case):
    model = vit()
    before = {**snapshot(model), "values": None}
    patched(case, model).train()
    optimizer = adamw(model)
    for seed in range(2):
        train_step(model, optimizer, seed)
    weights = values(model)
    unpatch_model(model.eval())
    assert {**snapshot(model), "values": None} == before
    assert_same(model.state_dict(), {key: weights[key] for key in model.state_dict()})
    twin = vit(seed=5)
    twin.load_state_dict(model.state_dict())
    x = images(model)
    assert torch.equal(model(x), twin(x))
    optimizers = [adamw(each) for each in (model, twin)]
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        train_step(each.train(), optimizer)
    assert_same(model.state_dict(), twin.state_dict())


# Freezing


FROZEN = {
    "nothing": lambda name: False,
    "everything": lambda name: True,
    "first block": lambda name: name.startswith("blocks.0."),
    "table": lambda name: name == "pos_embed",
}


@pytest.mark.parametrize("frozen", FROZEN)
@each_case
def test_requires_grad_survives_patch_and_unpatch(frozen, case):
    model = vit()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not FROZEN[frozen](name))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    patched(case, model)
    hidden = {"pos_embed": False} if case == "removed" else {}
    now = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {name: now[name] for name in flags} == {**flags, **hidden}
    assert all(now[name] for name in encoding_names(model))
    unpatch_model(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@each_case
def test_a_step_with_a_frozen_backbone_changes_every_encoding_and_nothing_else(case):
    model = patched(case).train()
    model.requires_grad_(False)
    for _, parameter in encoding_parameters(model):
        parameter.requires_grad_(True)
    before, optimizer = values(model), adamw(model)
    train_step(model, optimizer)
    changed = [key for key, value in model.state_dict().items() if not value.equal(before[key])]
    assert changed == encoding_names(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(changed)


@some_cases
def test_a_step_with_frozen_encodings_leaves_them(case):
    model = patched(case).train()
    for _, parameter in encoding_parameters(model):
        parameter.requires_grad_(False)
    before, optimizer = values(model), adamw(model)
    train_step(model, optimizer)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in encoding_names(model))
    assert not torch.equal(after["blocks.0.mlp.fc1.weight"], before["blocks.0.mlp.fc1.weight"])


# Moving averages


EMAS = {"ModelEma": ModelEma, "ModelEmaV2": ModelEmaV2, "ModelEmaV3": ModelEmaV3}


def averaged(ema):
    return ema.ema if isinstance(ema, ModelEma) else ema.module


@pytest.mark.parametrize("kind", EMAS)
@each_case
def test_every_encoding_is_averaged_once_per_step(case, kind):
    model = patched(case).train()
    ema, optimizer = EMAS[kind](model, decay=0.75), adamw(model, lr=0.1)
    expected, x = values(model), images(model)
    for seed in range(3):
        with torch.no_grad():
            averaged(ema)(x)  # its remembered terms must not outlive the update
        train_step(model, optimizer, seed)
        ema.update(model)
        state = model.state_dict()
        expected = {key: 0.75 * value + 0.25 * state[key] for key, value in expected.items()}
    for key, value in averaged(ema).state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)
    for name, parameter in encoding_parameters(model):
        assert (expected[name] - parameter).abs().max() > 1e-3, name
    twin = patched(case, seed=9)
    twin.load_state_dict(expected)
    with torch.no_grad():
        torch.testing.assert_close(averaged(ema)(x), twin(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", EMAS)
@some_cases
def test_an_average_has_its_own_layout_and_life(case, kind):
    model = patched(case)
    average = averaged(EMAS[kind](model))
    x = images(model)
    expected = average(x)
    model.set_input_size(img_size=(20, 12))
    assert torch.equal(average(x), expected)
    unpatch_model(model)
    assert torch.equal(average(x), expected)
    assert torch.equal(unpatch_model(average)(x), vit()(x))


# timm's checkpoints


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


def created(**options):
    """As in a training script, but tiny."""
    sizes = {"img_size": (48, 80), "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@some_cases
def test_an_unpatched_checkpoint_of_timm(case, suffix, tmp_path):
    """Loaded before the patch, or after it."""
    source = oracles.randomise(created(), 2, scale=0.1)
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


# timm's methods of a patched model


@some_cases
def test_flag_of_checkpointing_survives(case):
    model = vit()
    model.set_grad_checkpointing()
    patched(case, model)
    assert model.grad_checkpointing
    unpatch_model(model)
    assert model.grad_checkpointing
    patched(case, model).set_grad_checkpointing(False)
    assert not unpatch_model(model).grad_checkpointing


@some_cases
def test_reset_classifier(case, tmp_path):
    model = patched(case)
    x = images(model)
    features = model.forward_features(x)
    names, config = encoding_names(model), posenc.encoding_config(model)
    model.reset_classifier(7, global_pool="avg")
    assert model(x).shape == (2, 7)
    assert torch.equal(model.forward_features(x), features)
    assert (encoding_names(model), posenc.encoding_config(model)) == (names, config)
    posenc.save_encodings(model, tmp_path / "encodings.safetensors")
    other = posenc.load_encodings(vit(), tmp_path / "encodings.safetensors")
    assert torch.equal(other.forward_features(x), features)
    head = model.head
    assert unpatch_model(model).head is head
    assert model(x).shape == (2, 7)


def block_outputs(model, x):
    """What each block returns in the usual forward."""
    outputs = []
    hooks = [
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for block in model.blocks
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return outputs


def as_maps(tokens):
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 5))


@each_case
def test_forward_intermediates(case):
    model = patched(case)
    x = images(model)
    expected = block_outputs(model, x)
    final, intermediates = model.forward_intermediates(x)
    assert len(intermediates) == len(expected) == 2
    assert all(
        torch.equal(got, as_maps(tokens))
        for got, tokens in zip(intermediates, expected, strict=True)
    )
    assert torch.equal(final, model.forward_features(x))
    (first,) = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert torch.equal(first, intermediates[0])


@each_case
def test_a_feature_extractor_around_a_patched_model(case):
    model = patched(case, vit(depth=3))
    model.feature_info = [
        {"module": f"blocks.{index}", "num_chs": 16, "reduction": 4} for index in range(3)
    ]
    twin = copy.deepcopy(model)
    x = images(model)
    net = FeatureGetterNet(model, out_indices=[0, 1])
    assert len(model.blocks) == 2
    expected = [as_maps(tokens) for tokens in block_outputs(twin, x)[:2]]
    assert all(torch.equal(a, b) for a, b in zip(net(x), expected, strict=True))
    assert all(name.startswith("model.") for name in encoding_names(net))
    clone = pickle.loads(pickle.dumps(net))
    assert all(torch.equal(a, b) for a, b in zip(clone(x), expected, strict=True))
    unpatch_model(net)
    assert not posenc.is_patched(net)
    assert type(model) is VisionTransformer
    plain = FeatureGetterNet(unpatch_model(twin), out_indices=[0, 1])
    assert all(torch.equal(a, b) for a, b in zip(net(x), plain(x), strict=True))


@some_cases
def test_a_feature_extractor_of_timm_can_be_patched(case):
    net = created(features_only=True, out_indices=[0, 1]).double()
    oracles.randomise(net, 2, scale=0.1)
    x = images(net.model)
    before = net(x)
    assert patch_model(net, **CASES[case]) is net
    for got, expected in zip(net(x), before, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    randomise_encodings(net)
    assert not torch.allclose(net(x)[1], before[1], rtol=1e-3)
    expected = [as_maps(tokens) for tokens in block_outputs(net.model, x)]
    assert all(torch.equal(a, b) for a, b in zip(net(x), expected, strict=True))
    unpatch_model(net)
    assert all(torch.equal(a, b) for a, b in zip(net(x), before, strict=True))


@pytest.mark.parametrize(
    "build", [vit, lambda: patched("swin", seed=9)], ids=["unpatched", "patched"]
)
def test_encodings_of_a_pruned_model_load_into_one_like_it(build, tmp_path):
    source = patched("swin", vit(depth=3))
    source.prune_intermediate_layers([1], prune_norm=False)
    posenc.save_encodings(source, tmp_path / "encodings.safetensors")
    target = posenc.load_encodings(build(), tmp_path / "encodings.safetensors")
    assert_same(posenc.encoding_state_dict(target), posenc.encoding_state_dict(source))


# Parametrisations


class Double(nn.Module):
    def forward(self, value):
        return 2 * value


SITES = {"": "learned", "blocks.0": "peg", "blocks.0.attn": "irpe"}


def with_extra(site):
    """A model with one more parameter, which nothing reads, right on a site."""
    model = vit()
    model.get_submodule(site).register_parameter("extra", nn.Parameter(torch.ones(3)))
    return model


@pytest.mark.parametrize("site", SITES)
def test_unpatch_refuses_a_site_that_was_parametrised_since(site):
    model = with_extra(site)
    before = snapshot(model)
    randomise_encodings(patch_model(model, SITES[site]))
    x = images(model)
    expected = model(x)
    module = model.get_submodule(site)
    register_parametrization(module, "extra", Double())
    assert torch.equal(model(x), expected)
    wrapped = snapshot(model)
    with pytest.raises(ValueError, match=r"is a Parametrized\w+, not the class .* undo what wrap"):
        unpatch_model(model)
    assert snapshot(model) == wrapped
    remove_parametrizations(module, "extra", leave_parametrized=False)
    assert torch.equal(model(x), expected)
    assert snapshot(unpatch_model(model)) == before


@pytest.mark.parametrize("site", SITES)
def test_a_site_that_was_parametrised_before(site):
    model = with_extra(site)
    x = images(model)
    module = model.get_submodule(site)
    register_parametrization(module, "extra", Double())
    expected, before = model(x), snapshot(model)
    patch_model(model, SITES[site])
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(module.extra, 2 * torch.ones(3))
    randomise_encodings(model)
    assert not torch.allclose(model(x), expected, rtol=1e-3)
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert snapshot(unpatch_model(model)) == before
    assert torch.equal(model(x), expected)


@some_cases
def test_weight_norm_inside_a_site_does_not_disturb(case):
    model = vit()
    parametrizations.weight_norm(model.blocks[0].attn.qkv)
    x = images(model)
    expected, before = model(x), snapshot(model)
    patched(case, model)
    parametrizations.weight_norm(model.blocks[1].attn.proj)
    train_step(model.train(), torch.optim.SGD(model.parameters(), lr=0.0))
    unpatch_model(model.eval())
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    remove_parametrizations(model.blocks[1].attn.proj, "weight")
    assert snapshot(model)["classes"] == before["classes"]


def test_weight_norm_on_an_encoding():
    model = patched("peg+learned")
    x = images(model)
    expected = model(x)
    parametrizations.weight_norm(patched_encodings(model)["blocks.0.peg"], "weight")
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    names = encoding_names(model)
    assert any(name.endswith("parametrizations.weight.original1") for name in names)
    assert set(names) <= set(model.no_weight_decay())
    before = values(model)
    train_step(model.train(), adamw(model))
    assert not any(torch.equal(model.state_dict()[name], before[name]) for name in names)
    assert type(unpatch_model(model)) is VisionTransformer


# Another process


CHILD = """
import json, pathlib, pickle, sys
import torch

torch.set_num_threads(1)
folder = pathlib.Path(sys.argv[1])
with open(folder / "models.pickle", "rb") as file:
    models = {"pickle": pickle.load(file)}
models["torch.save"] = torch.load(folder / "models.pt", weights_only=False)
fresh, x, expected, unpatched = torch.load(folder / "rest.pt", weights_only=False)

import posenc

models["load_encodings"] = {
    case: posenc.load_encodings(model, folder / f"{case}.safetensors")
    for case, model in fresh["models"].items()
}


def report(case, model):
    found = {"outputs": torch.equal(model(x), expected[case])}
    with torch.no_grad():
        found["remembered"] = torch.allclose(model(x), expected[case], rtol=1e-10)
    found["keys"] = list(model.state_dict())
    found["names"] = [name for name, _ in posenc.encoding_parameters(model)]
    found["config"] = posenc.encoding_config(model)
    found["no_weight_decay"] = sorted(model.no_weight_decay())
    model(x).square().sum().backward()
    found["gradients"] = all(p.grad is not None for _, p in posenc.encoding_parameters(model))
    posenc.unpatch_model(model)
    found["unpatched"] = torch.equal(model(x), unpatched)
    found["classes"] = sorted({type(m).__name__ for m in model.modules()})
    found["hooks"] = len(model._load_state_dict_pre_hooks)
    return found


def message(case):
    try:
        posenc.load_encodings(fresh["misfits"][case], folder / "swin.safetensors")
    except ValueError as error:
        return str(error)


reports = {how: {c: report(c, m) for c, m in found.items()} for how, found in models.items()}
errors = {case: message(case) for case in fresh["misfits"]}
print(json.dumps({"reports": reports, "errors": errors}))
"""


def run_python(code, *arguments):
    """Standard output of a new process."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def another_process(tmp_path_factory):
    """What a new process found in the files of all models."""
    folder = tmp_path_factory.mktemp("models")
    models = {case: patched(case) for case in CASES}
    for case, model in {**models, "swin": patched("swin")}.items():
        posenc.save_encodings(model, folder / f"{case}.safetensors")
    misfits = {
        "encoding": patched("irpe"),
        "layout": vit(img_size=(20, 12)),
        "heads": vit(num_heads=4),
    }
    fresh = {"models": {case: vit() for case in CASES}, "misfits": misfits}
    x = images(vit())
    expected = {case: model(x).detach() for case, model in models.items()}
    (folder / "models.pickle").write_bytes(pickle.dumps(models))
    torch.save(models, folder / "models.pt")
    torch.save((fresh, x, expected, vit()(x).detach()), folder / "rest.pt")
    return json.loads(run_python(CHILD, folder))


@pytest.mark.parametrize("how", ["pickle", "torch.save", "load_encodings"])
@each_case
def test_a_model_in_a_new_process(case, how, another_process):
    found = another_process["reports"][how][case]
    model = patched(case)
    assert (found["outputs"], found["remembered"], found["gradients"]) == (True, True, True)
    assert found["keys"] == list(model.state_dict())
    assert found["names"] == encoding_names(model)
    assert found["config"] == posenc.encoding_config(model)
    assert (found["unpatched"], found["hooks"]) == (True, 0)
    assert found["classes"] == sorted({type(module).__name__ for module in vit().modules()})


@pytest.mark.parametrize("how", ["pickle", "torch.save", "load_encodings"])
@each_case
def test_no_weight_decay_in_a_new_process(case, how, another_process):
    found = another_process["reports"][how][case]
    model = patched(case)
    assert set(found["no_weight_decay"]) == vit().no_weight_decay() | set(encoding_names(model))


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("encoding", ["encodings: ", "'swin'", "'irpe'"]),
        ("layout", ["layout: ", "'height': 3", "'height': 5"]),
        ("heads", ["heads of blocks.0.attn: ", "[2, 8]", "[4, 4]"]),
    ],
)
def test_errors_in_a_new_process_name_the_first_mismatch(case, words, another_process):
    message = another_process["errors"][case]
    assert [word for word in words if word not in message] == []


# torch.fx and quantisation


def test_fx_feature_extraction_keeps_sites_as_leaves():
    from timm.layers import create_feature_extractor

    model = patched("irpe+peg")
    x = images(model)
    extractor = create_feature_extractor(model, {"blocks.1": "tokens"})
    with torch.no_grad():
        tokens = model.norm(extractor(x)["tokens"])
        torch.testing.assert_close(tokens, model.forward_features(x), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # torch deprecates this way of quantising
def test_a_quantised_model_is_refused():
    quantised = torch.ao.quantization.quantize_dynamic(vit(dtype=torch.float32), {nn.Linear})
    assert "no floating point parameters (quantised?)" in posenc.supports(quantised).reason
    with pytest.raises(ValueError, match=r"blocks.0.attn cannot be patched: .*then quantise it"):
        patch_model(quantised)
    assert not posenc.is_patched(quantised)


# Blocks that were wrapped or moved after the patch


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


def test_unpatch_does_not_unfreeze_a_hidden_table():
    model = patched("removed")
    model.requires_grad_(False)
    unpatch_model(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
