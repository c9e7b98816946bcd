"""What a file of encodings says of the model that it was made for, and files that lie."""

import json
import time

import oracles
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_vit import snapshot, vit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import posenc


def patched(names="swin", build=vit, **options):
    model = posenc.patch_model(build(), names, **options)
    for index, encoding in enumerate(posenc.patched_encodings(model).values()):
        oracles.randomise(encoding, index)
    return model


def config_in(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["posenc"])


def write(path, config, tensors):
    text = config if isinstance(config, str) else json.dumps(config)
    save_file(tensors, path, metadata={"posenc": text})


def assert_refused(model, path, match):
    before = snapshot(model)
    with pytest.raises(ValueError, match=match):
        posenc.load_encodings(model, path)
    assert snapshot(model) == before


@pytest.fixture
def path(tmp_path):
    return tmp_path / "encodings.safetensors"


# Models of another kind, although every tensor has the right shape

SHARED = {"names": "irpe", "share": True}  # one [1, 8, 50] table, whatever the depth and the heads
OTHER_MODELS = {
    "wider, more heads": (
        {"embed_dim": 32, "num_heads": 4},
        "width: 16; of the model: 32",
    ),
    "deeper": ({"depth": 3}, "depth: 2; of the model: 3"),
    "shallower": ({"depth": 1}, "depth: 2; of the model: 1"),
    "patch size": (
        {"img_size": (24, 40), "patch_size": 8},
        r"patch_size: \[4, 4\]; of the model: \[8, 8\]",
    ),
}


@pytest.mark.parametrize("is_patched", [False, True])
@pytest.mark.parametrize("case", OTHER_MODELS)
@pytest.mark.parametrize("names", ["irpe", "peg", "quadratic"])
def test_encodings_of_another_kind_of_model(names, case, is_patched, path):
    options, message = OTHER_MODELS[case]
    extra = {"strength": 0.0} if names == "quadratic" else {}
    posenc.save_encodings(patched(names, share=True, **extra), path)
    model = vit(**options)
    if is_patched:
        posenc.patch_model(model, names, share=True, **extra)
    assert_refused(model, path, message)


def test_other_heads_of_equal_width(path):
    posenc.save_encodings(patched(**SHARED), path)
    model = vit(num_heads=1)
    message = r"heads of blocks.0.attn: \[2, 8\]; of the model: \[1, 16\]"
    assert_refused(model, path, message)
    assert_refused(posenc.patch_model(model, "irpe", share=True), path, message)


def test_other_names_of_blocks(path):
    posenc.save_encodings(patched(**SHARED), path)
    config = config_in(path)
    config["blocks"] = ["layers.0", "layers.1"]
    write(path, config, load_file(path))
    assert_refused(
        vit(), path, r"blocks: \['layers.0', 'layers.1'\]; of .* \['blocks.0', 'blocks.1'\]"
    )


def test_selected_sites_of_a_deeper_model(path):
    """The first block alone was selected, so its keys are in both models."""
    posenc.save_encodings(patched("swin", blocks=[0]), path)
    assert_refused(vit(depth=3), path, "depth: 2; of the model: 3")


def test_the_depth_is_that_of_now(path):
    """Blocks that were pruned after the patch are not asked for."""
    model = patched("swin", build=lambda: vit(depth=3))
    model.prune_intermediate_layers([1], prune_norm=False)
    posenc.save_encodings(model, path)
    assert config_in(path)["depth"] == 2
    assert posenc.is_patched(posenc.load_encodings(vit(), path))


def test_an_unknown_patch_size_is_not_compared(path):
    class Embedding(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.grid_size = inner, inner.grid_size

        def forward(self, x):
            return self.inner(x)

    posenc.save_encodings(patched(), path)
    model = vit()
    model.patch_embed = Embedding(model.patch_embed)
    assert posenc.encoding_config(posenc.load_encodings(model, path))["patch_size"] is None


# Files of someone else, and damaged ones


def changed(key, value):
    return lambda config: {**config, key: value}


def without(key):
    return lambda config: {k: v for k, v in config.items() if k != key}


def with_spec(**spec):
    def change(config):
        return {**config, "encodings": [spec]}

    return change


def with_options(**options):
    def change(config):
        (spec,) = config["encodings"]
        return with_spec(name=spec["name"], options={**spec["options"], **options})(config)

    return change


def with_layout(**sides):
    return lambda config: {**config, "layout": {**config["layout"], **sides}, "layout_given": True}


DEEP = "[" * 100_000 + "]" * 100_000
DAMAGED = {
    "no object": (
        lambda config: [1, 2],
        r"not written by posenc.save_encodings: it holds \[1, 2\]",
    ),
    "null": (lambda config: None, "not written by posenc.save_encodings: it holds None"),
    "empty": (lambda config: "", "not written by posenc.save_encodings, or is damaged"),
    "half JSON": (lambda config: '{"format": 1', "or is damaged .JSONDecodeError"),
    "deep": (lambda config: DEEP, "or is damaged .RecursionError"),
    "deep entry": (lambda config: '{"format": ' + DEEP + "}", "or is damaged .RecursionError"),
    "long": (changed("note", "x" * 2**20), "bytes of metadata, more than 1048576"),
    "no format": (without("format"), "it has no format number"),
    "newer": (changed("format", 2), "has format 2, and this posenc reads format 1: upgrade posenc"),
    "older": (changed("format", 0), "unknown format 0, posenc reads 1"),
    "format of text": (changed("format", "1"), "unknown format '1', posenc reads 1"),
    "format of 1e308": (changed("format", 1e308), "unknown format 1e[+]308, posenc reads 1"),
    "no encodings": (without("encodings"), "it has no 'encodings'"),
    "no sites": (without("sites"), "it has no 'sites'"),
    "no heads": (without("heads"), "it has no 'heads'"),
    "encodings null": (changed("encodings", None), "encodings must be a list of .*, got None"),
    "encodings empty": (changed("encodings", []), r"encodings must be a list of .*, got \[\]"),
    "encoding of text": (changed("encodings", ["swin"]), r"encodings must be a list .*'swin'"),
    "no name": (with_spec(options={}), "encodings must be a list of .*'options': {}"),
    "no options": (with_spec(name="swin"), "encodings must be a list of .*'name': 'swin'"),
    "name null": (with_spec(name=None, options={}), "encodings must be a list of .*None"),
    "unknown name": (
        with_spec(name="swinn", options={}),
        r"unknown encoding 'swinn'.*'swin'.*posenc.register_encoding\(name, class\)",
    ),
    "a missing option": (
        with_spec(name="swin", options={"init": "zero"}),
        "swin lacks options: prefix_pairs. All options are written, those of swin are init, prefix",
    ),
    "an unknown option": (with_options(color="red"), "swin has unknown options: color"),
    "a device": (with_options(device="meta"), "swin has unknown options: device"),
    "layout of 1e308": (with_layout(height=1e308), "layout must be null or height, width and"),
    "layout too large": (with_layout(height=10**9), "at most 262144 tokens in all"),
    "layout of text": (changed("layout", "3x5"), "layout must be null or height.*'3x5'"),
    "layout given": (lambda c: {**c, "layout": None, "layout_given": True}, "but layout is null"),
    "share of text": (changed("share", "no"), "share must be true or false, got 'no'"),
    "sites": (changed("sites", "blocks.0.attn"), "sites must be a list of names"),
    "heads": (changed("heads", {"blocks.0.attn": [2, 1e308]}), "heads must be a pair of positive"),
    "depth": (changed("depth", True), "depth must be a count, got True"),
    "backend": (changed("backend", "magic"), "backend.*magic"),
    "absolute": (changed("absolute", "lost"), 'absolute must be "keep" or "hide"'),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_says_what_is_wrong(case, path):
    change, message = DAMAGED[case]
    posenc.save_encodings(patched(), path)
    write(path, change(config_in(path)), load_file(path))
    assert_refused(vit(), path, message)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64, torch.float8_e4m3fn])
@pytest.mark.parametrize("names", [None, "swin"])
def test_tables_that_are_no_floating_point_numbers(dtype, names, path):
    posenc.save_encodings(patched(), path)
    tensors = {key: value.to(dtype) for key, value in load_file(path).items()}
    write(path, config_in(path), tensors)
    model = vit() if names is None else posenc.patch_model(vit(), names)
    assert_refused(
        model, path, r"swin.table is \w+ in the file, and the values of a table are float"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tables_of_every_usual_precision(dtype, path):
    source = patched()
    posenc.save_encodings(source, path)
    write(path, config_in(path), {key: value.to(dtype) for key, value in load_file(path).items()})
    model = posenc.load_encodings(vit(), path)
    for key, value in posenc.encoding_state_dict(source).items():
        assert torch.equal(model.get_parameter(key), value.to(dtype).double())


# Files that ask for more memory than they hold


class Allocations(TorchDispatchMode):
    """The largest tensor with memory that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


def unlike(name, **options):
    """A config that asks for a huge `name`, beside the tensors of a small one."""
    extra = {"strength": 0.0} if name in ("quadratic", "sinusoidal") else {}

    def save(path):
        posenc.save_encodings(patched(name, **extra), path)
        write(path, with_options(**options)(config_in(path)), load_file(path))

    return save


HOSTILE = {
    "parts": (unlike("human_part", parts=20_000), r"affinity is \[2, 5, 5\] .*\[2, 20000, 20000\]"),
    "too many parts": (unlike("human_part", parts=10**12), "human_part cannot be built"),
    "absurd parts": (unlike("human_part", parts=10**30), "human_part cannot be built"),
    "kernel": (unlike("peg", kernel_size=10_001), r"weight is \[16, 1, 3, 3\] .*10001"),
    "huge kernel": (unlike("peg", kernel_size=10**12 + 1), "peg cannot be built"),
    "ratio": (
        unlike("irpe", ratio=20_000.0),
        r"table_k is \[1, 8, 50\] in the file and \[1, 8, 64",
    ),
    "ratio of 1e308": (unlike("irpe", ratio=1e308), "irpe cannot be built.*OverflowError"),
    "ratio of 1e307": (unlike("irpe", ratio=8e307), "irpe cannot be built"),
    "a list": (unlike("sinusoidal", temperature=[1]), "temperature must be a finite number"),
    "an object": (unlike("peg", after={"a": 1}), "after must be block indices"),
    "blocks": (unlike("peg", after=[10**9]), "but the model has 2 blocks"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_cannot_ask_for_memory_that_it_does_not_hold(case, path):
    save, message = HOSTILE[case]
    save(path)
    assert path.stat().st_size < 30_000
    model, start = vit(), time.perf_counter()
    allocations = Allocations()
    with allocations, pytest.raises(ValueError, match=message):
        posenc.load_encodings(model, path)
    assert allocations.largest < 100_000
    assert time.perf_counter() - start < 10
    assert not posenc.is_patched(model)


def test_a_given_layout_is_bounded_by_the_tensors(path):
    def build():
        model = vit()
        model.patch_embed.grid_size = None
        return model

    source = posenc.patch_model(build(), "swin", layout=posenc.TokenLayout(5, 3, 1))
    posenc.save_encodings(source, path)
    config = config_in(path)
    config["layout"] = {"height": 500, "width": 500, "prefix": 1}
    write(path, config, load_file(path))
    allocations, model = Allocations(), build()
    message = r"swin.table is \[2, 45\] in the file and \[2, 998001\] in the model"
    with allocations, pytest.raises(ValueError, match=message):
        posenc.load_encodings(model, path)
    assert allocations.largest < 100_000


@pytest.mark.parametrize("names", posenc.list_encodings())
def test_every_encoding_can_be_built_without_memory(names):
    with torch.random.fork_rng(devices=[]):
        state = torch.random.get_rng_state()
        encoding = posenc.create_encoding(
            names,
            layout=posenc.TokenLayout(300, 200, 1),
            num_heads=9,
            head_dim=64,
            embed_dim=512,
            device="meta",
        )
        assert torch.equal(torch.random.get_rng_state(), state)
    assert {value.device.type for value in encoding.state_dict().values()} <= {"meta"}


def test_an_encoding_that_reads_values_when_built(path, monkeypatch):
    monkeypatch.setattr(posenc.registry, "_ENCODINGS", dict(posenc.registry._ENCODINGS))

    class Slopes(posenc.AttentionEncoding):
        def __init__(self, layout, num_heads, head_dim=None, *, base=2.0):
            super().__init__(layout, num_heads, head_dim)
            self.slopes = nn.Parameter(torch.tensor((base ** torch.arange(num_heads)).tolist()))

        def terms(self, q, k, layout, scale):
            return ()

        def changes_at_start(self):
            return False

    posenc.register_encoding("slopes", Slopes)
    source = patched("slopes")
    posenc.save_encodings(source, path)
    assert_refused(vit(), path, r"slopes cannot be built .* meta device.*posenc.patch_from_config")
    target = posenc.patch_from_config(vit(), config_in(path))
    posenc.load_encodings(target, path)
    for key, value in posenc.encoding_state_dict(source).items():
        assert torch.equal(target.state_dict()[key], value)


# Saving


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
