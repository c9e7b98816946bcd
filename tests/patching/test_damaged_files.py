"""Files that lie: written by someone else, damaged, or asking for memory that they do not hold."""

import time

import pytest
import torch
from encoding_files import assert_refused, config_in, patched, write
from safetensors.torch import load_file
from tiny_vit import vit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import posenc

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
    "newer": (changed("format", 3), "has format 3, and this posenc reads formats 1 to 2: upgrade"),
    "older": (changed("format", 0), "unknown format 0, posenc reads 1 to 2"),
    "format of true": (changed("format", True), "unknown format True, posenc reads 1 to 2"),
    "format of text": (changed("format", "1"), "unknown format '1', posenc reads 1 to 2"),
    "format of 1e308": (changed("format", 1e308), "unknown format 1e[+]308, posenc reads 1 to 2"),
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
    "layout too large by one": (
        with_layout(height=2**9, width=2**9, prefix=1),
        "at most 262144 tokens in all",
    ),
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
