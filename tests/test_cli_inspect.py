"""`posenc inspect` for programs, and the backends that it tells."""

import json

import posenc
from posenc.cli import main

SMALL = ["inspect", "vit_tiny_patch16_224", "--img-size", "64", "96"]


def report(capsys, *arguments):
    code = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert err == ""
    return code, json.loads(out)


def test_a_model(capsys):
    code, found = report(capsys, *SMALL)
    assert code == 0
    assert found["model"] == "vit_tiny_patch16_224"
    assert found["supported"] is True
    assert found["layout"] == {"height": 4, "width": 6, "prefix": 1}
    assert found["sites"] == [f"blocks.{n}.attn" for n in range(12)]
    assert "patched" not in found


def test_a_refused_model(capsys):
    code, found = report(capsys, "inspect", "xcit_nano_12_p16_224")
    assert (code, found["supported"], found["sites"]) == (1, False, [])
    assert found["reason"].startswith("Xcit: attends between channels")


def test_backends_of_a_patched_model(capsys):
    code, found = report(capsys, *SMALL, "--encoding", "swin+peg")
    assert code == 0
    assert found["patched"]["sites"]["blocks.0.attn"] == ["swin"]
    for mode in ("inference", "training"):
        assert set(found["backends"][mode]) == set(found["sites"])
    first = found["backends"]["inference"]["blocks.0.attn"]
    assert first["choice"] == found["patched"]["backend"].partition(",")[0].split()[-1]
    assert first["why"]


def test_backends_in_words(capsys):
    assert main([*SMALL, "--encoding", "swin"]) == 0
    out = capsys.readouterr().out
    assert "blocks.0.attn ... blocks.11.attn (12)\n  inference: " in out
    assert "\n  training : " in out


def test_what_acts_on_tokens_has_no_backend(capsys):
    code, found = report(capsys, *SMALL, "--encoding", "peg")
    assert code == 0
    assert "backends" not in found
    assert found["patched"]["backend"] == "not used (no encoding acts inside attention)"


def test_an_encoding(capsys):
    code, found = report(capsys, "inspect", "quadratic")
    assert code == 0
    assert found["options"] == {"init": "stencil", "alpha": 1.0, "general": False, "strength": 1.0}
    assert (found["acts"], found["starts"]) == ("inside attention", "with an effect")


def test_every_encoding(capsys):
    for name in posenc.list_encodings():
        code, found = report(capsys, "inspect", name)
        assert (code, found["name"]) == (0, name)
