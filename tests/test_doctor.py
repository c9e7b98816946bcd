"""`posenc doctor`: what it says of a machine."""

import pytest
import torch

from posenc import cli, doctor
from posenc.attention import trust
from posenc.attention.backends import reference

CPU = torch.device("cpu")


def test_a_machine_without_a_gpu(capsys):
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    states, texts = zip(*(line.split(maxsplit=1) for line in out.splitlines()), strict=True)
    assert set(states) <= {"ok", "note"}
    assert f"torch {torch.__version__.partition('+')[0]}" in texts[1]
    if not torch.cuda.is_available():
        assert f"cpu: {torch.get_num_threads()} threads, fused attention by flash" in out
        assert texts[-1] == "no CUDA device: the fused kernels do not run here"


def test_something_broken_is_an_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(cli, "examine", lambda: iter([doctor.Finding("broken", "all of it")]))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out == "broken  all of it\n"


def test_a_backend_that_is_wrong_is_found(monkeypatch):
    assert doctor._agreement(CPU).state == "ok"
    compute = reference.compute
    monkeypatch.setattr(reference, "compute", lambda call: compute(call) + 0.1)
    found = doctor._agreement(CPU)
    assert found == ("broken", "cpu: attention with a table is 0.1 off plain mathematics")


@pytest.mark.slow
@pytest.mark.parametrize("kind", doctor.KINDS)
def test_kernels_are_checked(kind, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(trust, "_verdicts", {})
    monkeypatch.setattr(trust.trial, "TOKENS", 28)
    label = f"cpu: fused kernels for {kind}"
    assert doctor._kernels(kind, CPU) == ("ok", f"{label}: self-checked in this process")
    monkeypatch.setattr(trust, "_verdicts", {})
    monkeypatch.setattr(trust.trial, "fault_of", lambda *_: "nothing fits")
    with pytest.warns(UserWarning, match="failed their self-check"):
        found = doctor._kernels(kind, CPU)
    assert found == ("broken", f"{label}: the kernels failed their self-check: nothing fits")


def test_kernels_that_cannot_run_here_are_a_note(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = doctor._kernels("low rank", CPU)
    assert found.state == "note"
    assert found.text.startswith("cpu: fused kernels for low rank: Triton")
