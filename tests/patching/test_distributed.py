"""Two processes with half of the batch each do what one does with the whole."""

import os
import subprocess
import sys

import pytest
import torch
import two_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="needs gloo",
    ),
]


def run(kind, folder):
    """Both processes of `two_processes.py`; what rank 0 saved."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, two_processes.__file__, kind]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(two_processes.RANKS)
    ]
    try:
        outputs = [process.communicate(timeout=150)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return torch.load(folder / "result.pt")


@pytest.fixture(scope="module")
def ddp(tmp_path_factory):
    return run("ddp", tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def fsdp(tmp_path_factory):
    return run("fsdp", tmp_path_factory.mktemp("fsdp"))


@pytest.fixture(scope="module")
def alone():
    return {case: two_processes.alone(case) for case in two_processes.CASES}


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def assert_trained(actual, expected):
    for number, gradients in enumerate(expected["gradients"]):
        assert_same(actual["gradients"][number], gradients)
    for number, output in enumerate(expected["outputs"]):
        assert_same(actual["outputs"][number], output)
    assert list(actual["state"]) == list(expected["state"])
    assert_same(dict(actual["state"]), dict(expected["state"]))


@pytest.mark.parametrize("case", two_processes.CASES)
def test_one_process_changes_every_encoding(case, alone):
    """Else the comparisons below would say nothing."""
    before, after = alone[case]["outputs"][0], alone[case]["outputs"][-1]
    assert (after - before).abs().max() > 1e-4
    for step in alone[case]["gradients"]:
        ours = {name: gradient for name, gradient in step.items() if ".posenc." in f".{name}"}
        assert ours
        assert all(gradient.any() for gradient in ours.values())


@pytest.mark.parametrize("case", two_processes.CASES)
def test_ddp_equals_one_process(case, ddp, alone):
    assert_trained(ddp[case], alone[case])


@pytest.mark.parametrize("case", two_processes.CASES)
def test_fsdp2_equals_one_process(case, fsdp, alone):
    assert_trained(fsdp[case], alone[case])
    assert fsdp[case]["sharded keys"] == list(alone[case]["state"])
    assert_same(fsdp[case]["outputs"][-1], alone[case]["outputs"][-1])  # loaded again
    assert fsdp[case]["parameters"] == [
        key for key in alone[case]["state"] if ".posenc." in f".{key}"
    ]
