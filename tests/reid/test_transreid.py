"""Checkpoints of TransReID's own code."""

import json

import golden_cases
import pytest
import tiny_reid
import torch
from model.network import build_network
from model.transreid import is_transreid

VIT = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
SIZES = {"vit_args": json.dumps(VIT), "encoding": "none", "stride": 6, "pool": "token"}


def network_of(state, path, people=5, **changes):
    torch.save(state, path / "transformer_120.pth")
    numbers = {**SIZES, "weights": str(path / "transformer_120.pth")}
    known = {name: changes.pop(name) for name in ("cameras", "views") if name in changes}
    return build_network(tiny_reid.config(**{**numbers, **changes}), people, **known).eval()


def state_of(network):
    """Under the names of the published model, with what it has besides."""
    heads = {"neck.": "bottleneck.", "classifier.": "classifier.", "vit.": "base."}
    state = {"base.fc.weight": torch.ones(1000, 12), "base.fc.bias": torch.ones(1000)}
    for key, value in network.state_dict().items():
        for own, name in heads.items():
            if key.startswith(own):
                state[name + key.removeprefix(own)] = value.clone()
    return state


def published(**changes):
    """With random weights, and the normalization of pretrained ones."""
    config = tiny_reid.config(**{**SIZES, "pretrained": True, **changes})
    network = build_network(config, 5, load_pretrained=False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    network.neck.running_mean.normal_()
    return network.eval()


def images(number=3):
    return torch.randint(0, 256, (number, 3, 32, 16), dtype=torch.uint8)


@pytest.mark.parametrize("name", golden_cases.names("transreid_e2e"))
def test_tokens_equal_transreid(name, tmp_path):
    golden = golden_cases.case(name)
    options = golden.hyperparameters
    kinds = [kind for kind in ("camera", "view") if options[kind]]
    state = {f"base.{k[3:]}": v for k, v in golden.arrays.items() if k.startswith("sd.")}
    network = network_of(
        state,
        tmp_path,
        sie="+".join(kinds) or "none",
        sie_scale=options["sie_xishu"],
        cameras=range(options["camera"]),
        views=range(options["view"]),
        parts="jigsaw",
    ).double()
    sides = torch.stack([golden["cam"], golden["view"]], dim=1)
    after, before = network.tokens(golden["x"], sides)
    found = before if options["local_feature"] else after[:, 0]
    torch.testing.assert_close(found, golden["out"], **golden.close)


def test_the_whole_of_it(tmp_path):
    """With a jigsaw, whose layers and heads have their own names."""
    changes = {"parts": "jigsaw", "num_parts": 2}
    theirs = published(**changes)
    state = state_of(theirs)
    last = {}
    for kind, own in (("0", "vit.blocks.1"), ("1", "vit.norm")):
        for key, value in theirs.get_submodule(own).state_dict().items():
            last[f"b1.{kind}.{key}"] = value.clone()
            state[f"base.{own.removeprefix('vit.')}.{key}"] = torch.full_like(value, 7)  # unused
    state = {**last, **state}
    for kind, module in (("0", theirs.parts.block), ("1", theirs.parts.norm)):
        state |= {f"b2.{kind}.{key}": value for key, value in module.state_dict().items()}
    for part, head in enumerate(theirs.part_heads, start=1):
        state |= {f"bottleneck_{part}.{k}": v for k, v in head.neck.state_dict().items()}
        state[f"classifier_{part}.weight"] = head.classifier.weight
    ours = network_of(state, tmp_path, **changes)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    x = images()
    assert torch.equal(ours(x), theirs(x))
    # Without a jigsaw: the feature of the body alone.
    torch.testing.assert_close(network_of(state, tmp_path)(x), theirs(x)[:, :12])


def test_other_people_and_no_jigsaw(tmp_path):
    theirs = published()
    ours = network_of(state_of(theirs), tmp_path, people=7, parts="jigsaw")
    assert ours.classifier.weight.shape == (7, 12)
    assert ours.classifier.weight.abs().max() < 0.01  # as at the start
    x = images()
    torch.testing.assert_close(ours(x)[:, :12], theirs(x))
    for name, value in theirs.vit.blocks[1].state_dict().items():
        assert torch.equal(ours.parts.block.state_dict()[name], value)
    assert torch.equal(ours.parts.norm.weight, theirs.vit.norm.weight)


def test_other_cameras(tmp_path):
    theirs = published()
    rows = torch.randn(6, 1, 12)
    state = {**state_of(theirs), "base.sie_embed": rows}
    same = network_of(state, tmp_path, sie="camera+view", cameras=(1, 2, 5), views=(0, 1))
    assert torch.equal(same.sie.table, rows.view(3, 2, 12))
    other = network_of(state, tmp_path, sie="camera", cameras=(1, 2, 3, 4))
    torch.testing.assert_close(other.sie.table, rows.mean(0).expand(4, 1, 12))
    with pytest.raises(ValueError, match="was told cameras or views of its photos, which --sie"):
        network_of(state, tmp_path)


def test_a_table_of_another_size_is_resized(tmp_path):
    theirs = published()
    larger = {"height": 50, "width": 28, "table_resize": "bilinear"}
    with pytest.raises(
        ValueError, match=r"vit\.pos_embed is \[1, 11, 12\] .*--table-height, --tab"
    ):
        network_of(state_of(theirs), tmp_path, **larger)
    larger |= {"table_height": 32, "table_width": 16}
    ours = network_of(state_of(theirs), tmp_path, **larger).vit.pos_embed
    table = theirs.vit.pos_embed[:, 1:].mT.unflatten(2, (5, 2))
    expected = torch.nn.functional.interpolate(table, size=(8, 4), mode="bilinear")
    torch.testing.assert_close(ours[:, 1:], expected.flatten(2).mT)


def test_beside_an_encoding(tmp_path):
    theirs = published()
    ours = network_of(state_of(theirs), tmp_path, encoding="irpe")
    x = images()
    torch.testing.assert_close(ours(x), theirs(x))  # its tables are zero


def test_the_fork_with_a_relative_bias(tmp_path):
    options = {"encoding": "swin", "encoding_args": '{"prefix_pairs": "none"}', "stride": 0}
    theirs = published(**options)
    state = {}
    for key, value in state_of(theirs).items():
        if key.endswith(".posenc.swin.table"):
            site = key.removesuffix(".posenc.swin.table")
            state[f"{site}.relative_position_index"] = torch.zeros(8, 8, dtype=torch.int64)
            key, value = f"{site}.relative_position_bias_table", value.T
        state[key] = value
    ours = network_of(state, tmp_path, **options)
    x = images()
    assert torch.equal(ours(x), theirs(x))
    with pytest.raises(ValueError, match="is not patched, and the checkpoint needs encodings"):
        network_of(state, tmp_path, stride=0)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (
            lambda s: s.pop("base.norm.bias"),
            r"pth does not fit .*vit\.norm\.bias is missing in the f",
        ),
        (lambda s: s.update({"base.more": torch.ones(1)}), r"vit\.more is missing in the model"),
        (lambda s: s.update({"base.norm.bias": torch.ones(3)}), r"vit\.norm\.bias is \[3\] in the"),
    ],
)
def test_another_backbone(tmp_path, spoil, rule):
    state = state_of(published())
    spoil(state)
    with pytest.raises(ValueError, match=rule):
        network_of(state, tmp_path)


def test_what_is_no_such_file(tmp_path):
    torch.save({"blocks.0.norm1.weight": torch.ones(2)}, tmp_path / "vit.pth")
    assert not is_transreid(tmp_path / "vit.pth")
    assert not is_transreid(tmp_path / "nowhere.pth")
