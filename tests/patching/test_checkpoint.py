import json

import oracles
import pytest
import tiny_vit
import torch
from new_process import run_python
from patched_vit import values
from random_encodings import randomize_encodings
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_vit import images, snapshot, vit

import posenc
from posenc import TokenLayout, load_encodings, patch_model, patched_encodings, save_encodings


def patched(names="peg+irpe+learned", *, seed=0, build=vit, **options):
    return randomize_encodings(patch_model(build(), names, **options), seed=seed)


def same(one, other):
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


# state_dict


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("case", ["reg4", "parallel_scaling", "parallel_things"])
def test_a_patched_checkpoint_reloads_strictly(share, case):
    options = tiny_vit.MODELS[case][0]
    source = patched("peg+irpe+swin+learned", share=share, build=lambda: vit(**options))
    target = patch_model(vit(**options, seed=5), "peg+irpe+swin+learned", share=share)
    assert str(target.load_state_dict(source.state_dict(), strict=True)) == (
        "<All keys matched successfully>"
    )
    x = images(source)
    assert torch.equal(source(x), target(x))
    assert same(source.state_dict(), target.state_dict())


@pytest.mark.parametrize("share", [False, True])
def test_an_unpatched_checkpoint_lacks_only_our_keys(share):
    source = vit(seed=5)
    target = patched(share=share)
    before = posenc.encoding_state_dict(target)
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    assert unexpected == []
    assert missing == list(before)
    assert all("posenc" in key.split(".") for key in missing)
    posenc.unpatch_model(target)
    assert same(source.state_dict(), target.state_dict())


def test_a_patched_checkpoint_in_an_unpatched_model_names_our_keys():
    source = patched()
    missing, unexpected = vit().load_state_dict(source.state_dict(), strict=False)
    assert missing == []
    assert set(unexpected) == set(posenc.encoding_state_dict(source))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("names", ["irpe", "peg", "learned", "swin", "human_part"])
@pytest.mark.parametrize("strict", [True, False])
def test_non_finite_tables_are_not_loaded(bad, names, strict):
    """Nor is anything else of that checkpoint."""
    model = patched(names)
    kept = values(model)
    state = {key: value + 1 for key, value in kept.items()}
    key = next(iter(posenc.encoding_state_dict(model)))
    state[key].view(-1)[-1] = bad
    with pytest.raises(ValueError, match=f"{key} has non-finite values; nothing was loaded"):
        model.load_state_dict(state, strict=strict)
    for name, value in model.state_dict().items():
        assert torch.equal(value, kept[name]), name
    posenc.unpatch_model(model)
    assert not model._load_state_dict_pre_hooks


@pytest.mark.parametrize("names", ["swin", "learned"])
def test_a_table_of_another_grid_with_as_many_entries_is_refused(names):
    tall = patch_model(vit(img_size=(20, 12), pos_embed="none"), names)
    wide = patch_model(vit(img_size=(12, 20), pos_embed="none"), names)
    with pytest.raises(RuntimeError, match=r"made for a 5x3 grid, this model's .* for 3x5"):
        wide.load_state_dict(tall.state_dict())
    tall.load_state_dict(patch_model(vit(img_size=(20, 12), pos_embed="none"), names).state_dict())


def test_encoding_state_dict_is_part_of_the_state_dict():
    model = patched()
    state = model.state_dict()
    ours = posenc.encoding_state_dict(model)
    assert list(ours) == [key for key in state if "posenc" in key.split(".")]
    assert all(ours[key].data_ptr() == state[key].data_ptr() for key in ours)
    with pytest.raises(ValueError, match="is not patched"):
        posenc.encoding_state_dict(vit())


# save_encodings, load_encodings

CASES = {
    "irpe": {"names": "irpe"},
    "options": {"names": "irpe", "mode": "bias", "method": "cross", "on": "qk"},
    "three": {"names": "peg+irpe+learned", "irpe": {"on": "kv"}, "after": (1,)},
    "shared": {"names": "peg+swin", "share": True},
    "blocks": {"names": "swin", "blocks": [1]},
    "peg only": {"names": "peg", "kernel_size": 5},
    "removed": {"names": "learned", "absolute": "hide"},
    "backend": {"names": "human_part", "backend": "reference"},
    "class": {"names": posenc.IRPE},
}


@pytest.mark.parametrize("case", CASES)
def test_round_trip_into_a_fresh_model(case, tmp_path):
    source = patched(**CASES[case])
    save_encodings(source, tmp_path / "encodings.safetensors")
    target = vit()
    assert load_encodings(target, str(tmp_path / "encodings.safetensors")) is target
    x = images(source)
    assert torch.equal(target(x), source(x))
    assert same(source.state_dict(), target.state_dict())
    assert posenc.encoding_config(target) == posenc.encoding_config(source)
    assert [p.requires_grad for p in target.parameters()] == [
        p.requires_grad for p in source.parameters()
    ]


@pytest.mark.parametrize("case", CASES)
def test_round_trip_into_a_patched_model(case, tmp_path):
    source = patched(**CASES[case])
    save_encodings(source, tmp_path / "encodings.safetensors")
    target = patched(**CASES[case], seed=7)
    assert not same(source.state_dict(), target.state_dict())
    load_encodings(target, tmp_path / "encodings.safetensors")
    assert same(source.state_dict(), target.state_dict())


@pytest.mark.slow
def test_round_trip_in_a_new_process(tmp_path):
    source = patched("peg+irpe", irpe={"on": "qk"}, share=True, blocks=[0])
    x = images(source)
    save_encodings(source, tmp_path / "encodings.safetensors")
    posenc_keys = set(posenc.encoding_state_dict(source))
    backbone = {key: value for key, value in values(source).items() if key not in posenc_keys}
    torch.save((backbone, x, source(x)), tmp_path / "rest.pt")
    code = (
        "import sys, torch, posenc\n"
        "from timm.models.vision_transformer import VisionTransformer\n"
        "weights, x, expected = torch.load(sys.argv[1] + '/rest.pt')\n"
        "model = VisionTransformer(img_size=(12, 20), patch_size=4, embed_dim=16, depth=2,\n"
        "                          num_heads=2, mlp_ratio=2.0, num_classes=5).double().eval()\n"
        "model.load_state_dict(weights)\n"
        "assert not torch.allclose(model(x), expected)\n"
        "posenc.load_encodings(model, sys.argv[1] + '/encodings.safetensors')\n"
        "print(torch.equal(model(x), expected))\n"
    )
    assert run_python(code, tmp_path).strip() == "True"


def test_the_file_holds_only_encodings(tmp_path):
    model = patched()
    save_encodings(model, tmp_path / "encodings.safetensors")
    assert same(
        dict(sorted(load_file(tmp_path / "encodings.safetensors").items())),
        dict(sorted(posenc.encoding_state_dict(model).items())),
    )
    with safe_open(tmp_path / "encodings.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["posenc"]) == posenc.encoding_config(model)


def test_dtype_and_mode_of_the_target_stay(tmp_path):
    save_encodings(patched("swin"), tmp_path / "encodings.safetensors")
    target = vit(dtype=torch.bfloat16).train()
    load_encodings(target, tmp_path / "encodings.safetensors")
    assert {p.dtype for p in target.parameters()} == {torch.bfloat16}
    assert all(module.training for module in target.modules())


def test_into_a_wrapper_and_out_of_one(tmp_path):
    source = torch.nn.ModuleDict({"backbone": vit()})
    patch_model(source, "irpe+learned")
    for encoding in patched_encodings(source).values():
        oracles.randomize(encoding, 3)
    save_encodings(source, tmp_path / "encodings.safetensors")
    target = load_encodings(vit(), tmp_path / "encodings.safetensors")
    assert same(source["backbone"].state_dict(), target.state_dict())
    wrapped = torch.nn.ModuleDict({"other": vit()})
    load_encodings(wrapped, tmp_path / "encodings.safetensors")
    assert same(wrapped["other"].state_dict(), target.state_dict())


def test_a_given_layout_comes_back(tmp_path):
    def build():
        model = vit()
        model.patch_embed.grid_size = None
        return model

    source = patched("swin", build=build, layout=TokenLayout(5, 3, 1))
    save_encodings(source, tmp_path / "encodings.safetensors")
    target = load_encodings(build(), tmp_path / "encodings.safetensors")
    x = images(source)
    assert torch.equal(target(x), source(x))


@pytest.mark.filterwarnings("ignore:posenc. the patched model gives other outputs")
def test_encodings_with_an_effect_come_back(tmp_path):
    source = patched("quadratic+sinusoidal", sinusoidal={"convention": "timm"})
    save_encodings(source, tmp_path / "encodings.safetensors")
    target = load_encodings(vit(), tmp_path / "encodings.safetensors")
    x = images(source)
    assert torch.equal(target(x), source(x))


def saved(path, names="swin", **options):
    save_encodings(patched(names, **options), path)


def rewrite(path, change):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, metadata=metadata)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def poison(state):
    state["blocks.1.attn.posenc.swin.table"][0, 3] = float("nan")


MISFITS = {
    "encoding": (lambda p: saved(p, "irpe"), vit, "swin", "encodings: .*irpe.*swin"),
    "option": (
        lambda p: saved(p, "swin", prefix_pairs="shared"),
        vit,
        "swin",
        "encodings: .*shared",
    ),
    "layout": (saved, lambda: vit(img_size=(20, 12)), None, "layout: .*: 3, .*model: .*: 5"),
    "layout, patched": (saved, lambda: vit(img_size=(20, 12)), "swin", "layout: .*: 3, .*: 5"),
    "prefix": (saved, lambda: vit(5), None, "layout: .*'prefix': 1.*'prefix': 5"),
    "heads": (saved, lambda: vit(num_heads=4), None, r"heads of .*attn: \[2, 8\]; .* \[4, 4\]"),
    "heads, patched": (saved, lambda: vit(num_heads=4), "swin", r"heads .*\[2, 8\]; .* \[4, 4\]"),
    "width": (
        lambda p: saved(p, "irpe"),
        lambda: vit(embed_dim=32),
        None,
        "width: 16; of the model: 32",
    ),
    "depth": (saved, lambda: vit(depth=1), None, "depth: 2; of the model: 1"),
    "depth, patched": (saved, lambda: vit(depth=3), "swin", "depth: 2; of the model: 3"),
    "share": (lambda p: saved(p, share=True), vit, "swin", "share: True; .* False"),
    "truncated": (lambda p: (saved(p), truncate(p)), vit, None, "encodings"),
    "junk": (lambda p: p.write_bytes(b"no safetensors at all" * 9), vit, None, "not written by"),
    "not ours": (
        lambda p: save_file({"table": torch.zeros(2)}, p),
        vit,
        None,
        "was not written by posenc.save_encodings",
    ),
    "not ours, patched": (
        lambda p: save_file({"table": torch.zeros(2)}, p),
        vit,
        "swin",
        "was not written by posenc.save_encodings",
    ),
    "half ours": (
        lambda p: save_file({"table": torch.zeros(2)}, p, metadata={"posenc": "{}"}),
        vit,
        None,
        "not written by|does not fit",
    ),
    "missing key": (
        lambda p: (saved(p), rewrite(p, lambda s: s.pop("blocks.0.attn.posenc.swin.table"))),
        vit,
        None,
        "blocks.0.attn.posenc.swin.table is missing in the file",
    ),
    "extra key": (
        lambda p: (saved(p), rewrite(p, lambda s: s.update(head=torch.zeros(2)))),
        vit,
        "swin",
        "head is missing in the model",
    ),
    "non-finite": (
        lambda p: (saved(p), rewrite(p, poison)),
        vit,
        None,
        "blocks.1.attn.posenc.swin.table has non-finite values; nothing was loaded",
    ),
    "non-finite, patched": (
        lambda p: (saved(p), rewrite(p, poison)),
        vit,
        "swin",
        "non-finite values; nothing was loaded",
    ),
    "no vit": (saved, lambda: torch.nn.Linear(2, 2), None, "found no model that posenc knows"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_file_that_does_not_fit_changes_nothing(case, tmp_path):
    write, build, names, message = MISFITS[case]
    path = tmp_path / "encodings.safetensors"
    write(path)
    model = build() if names is None else patched(names, build=build, seed=9)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        load_encodings(model, path)
    assert snapshot(model) == before
    assert posenc.is_patched(model) == (names is not None)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.safetensors"):
        load_encodings(vit(), tmp_path / "none.safetensors")


def test_saving_needs_a_patched_model_and_names(tmp_path):
    with pytest.raises(ValueError, match="is not patched"):
        save_encodings(vit(), tmp_path / "encodings.safetensors")
    model = patch_model(vit(), lambda layout, heads, *sizes: posenc.SwinBias(layout, heads))
    with pytest.raises(ValueError, match="'custom' is not registered"):
        save_encodings(model, tmp_path / "encodings.safetensors")
    assert list(tmp_path.iterdir()) == []
