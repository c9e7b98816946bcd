"""Patched models in another process."""

import json
import pickle

import pytest
import torch
from new_process import run_python
from patched_vit import CASES, each_case, encoding_names, patched
from tiny_vit import images, vit

import posenc

pytestmark = pytest.mark.slow

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
