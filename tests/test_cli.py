"""The command: what it prints, its exit codes, and that errors are words."""

import os
import subprocess
import sys

import pytest

import posenc
from posenc.cli import main

SMALL = ["inspect", "vit_tiny_patch16_224", "--img-size", "64", "96"]


def command(*arguments, module="posenc"):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )


def test_nobody_reads_on():
    """As in `posenc list | head`, where the reader leaves."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "posenc", "list"], stdout=writer, stderr=subprocess.PIPE
        )
    finally:
        os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


def printed(capsys, *arguments):
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_list(capsys):
    code, out, err = printed(capsys, "list")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == posenc.list_encodings()
    for line in lines:
        name = line.split()[0]
        cls = posenc.registry.encoding_class(name)
        assert line.endswith(f"  {cls.__doc__.splitlines()[0]}")
        assert f"  {cls.paper[0] if cls.paper else 'no paper'}  " in line
    (irpe,) = [line for line in lines if line.startswith("irpe ")]
    assert "  inside attention   " in irpe
    assert "  starts without effect  " in irpe
    (peg,) = [line for line in lines if line.startswith("peg ")]
    assert "  on tokens, after blocks  " in peg
    (sinusoidal,) = [line for line in lines if line.startswith("sinusoidal ")]
    assert "  on tokens, at the position step  starts with an effect  " in sinusoidal


def test_a_class_of_ones_own_need_not_say_what_it_is_from(capsys, monkeypatch):
    class Mine(posenc.AttentionEncoding):
        """Nothing yet."""

        def terms(self, q, k, layout, scale):
            return ()

    monkeypatch.setattr(posenc.registry, "_ENCODINGS", {"mine": Mine})
    code, out, err = printed(capsys, "list")
    row = "mine  inside attention  starts effect unknown  no paper  Nothing yet.\n"
    assert (code, out, err) == (0, row, "")


def test_inspect_an_encoding(capsys):
    code, out, err = printed(capsys, "inspect", "quadratic")
    assert (code, err) == (0, "")
    assert out.startswith("quadratic: posenc.Quadratic, acts inside attention\n")
    assert "Reference: Cordonnier et al. 2020" in out
    assert out.endswith(
        "Options:\n  init = 'stencil'\n  alpha = 1.0\n  general = False\n  strength = 1.0\n"
    )


def test_inspect_a_model(capsys):
    code, out, err = printed(capsys, *SMALL)
    assert (code, err) == (0, "")
    assert "supported: yes\nlayout:    4x6 + 1 prefix\n" in out
    assert "blocks.0.attn ... blocks.11.attn (12)" in out


def test_inspect_with_an_encoding(capsys):
    code, out, err = printed(capsys, *SMALL, "--encoding", "peg+swin")
    assert (code, err) == (0, "")
    assert "supported: yes" in out
    assert "layout:         4x6 + 1 prefix = 25 tokens" in out
    assert "swin: SwinBias() [no effect at start]" in out


def test_a_warning_is_printed(capsys):
    code, out, err = printed(capsys, *SMALL, "--encoding", "quadratic")
    assert code == 0
    assert "[changes the model at start]" in out
    assert "Quadratic has an effect from the start (strength=0 starts without)" in err


def test_a_refused_model(capsys):
    code, out, err = printed(capsys, "inspect", "xcit_nano_12_p16_224")
    assert (code, err) == (1, "")
    assert out == "not supported: Xcit: attends between channels, which have no position\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["inspect", "irpa"],
            2,
            "'irpa' is no timm model. timm.list_models() has them, `posenc list`",
        ),
        (["inspect", "vit_tiny"], 2, "timm model. Did you mean 'vit_tiny_patch16_224'"),
        ([*SMALL, "--encoding", "wxyz"], 2, "unknown encoding 'wxyz'. There are: "),
        ([*SMALL, "--encoding", "peg+APE"], 2, "unknown encoding 'APE'. Did you mean 'learned'?"),
        (["inspect", "swin", "--encoding", "irpe"], 2, "swin is an encoding; --encoding and"),
        (
            ["inspect", "resnet18", "--img-size", "64", "64"],
            2,
            "resnet18 cannot have images of [64, 64]: ",
        ),
        (
            ["inspect", "swin_tiny_patch4_window7_224", "--encoding", "peg"],
            1,
            "peg acts on the tokens of one grid, and SwinTransformer has windows or stages",
        ),
    ],
)
def test_what_goes_wrong_is_said(capsys, arguments, code, message):
    got, _, err = printed(capsys, *arguments)
    assert got == code
    assert err.startswith("posenc: ")
    assert message in err


@pytest.mark.parametrize("arguments", [[], ["nothing"], [*SMALL[:-1]], [*SMALL[:-1], "wide"]])
def test_wrong_arguments(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    err = capsys.readouterr().err
    assert err.startswith("posenc")
    assert err.endswith("--help` tells more)\n")
    assert err.count("\n") == 1


def test_as_a_module():
    unknown = command("inspect", "nosuchmodel")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "Traceback" not in unknown.stderr


def test_version(capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"posenc {posenc.__version__}\n"


def test_timm_is_imported_where_a_model_is_made_only():
    code = (
        "import sys; from posenc.cli import main; main(['list']); main(['inspect', 'irpe']); "
        "print('timm' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "False"
