"""Trainings in processes of their own, and what they leave."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_reid
import torch
import train as script
from safetensors.torch import load_file
from training.checkpoints import WEIGHTS
from training.run import train

SCRIPT = Path(script.__file__)
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(folder, out, *launcher, **changes):
    options = []
    for name, value in dataclasses.asdict(tiny_reid.config(**changes)).items():
        if isinstance(value, bool):
            options.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            options += [f"--{name.replace('_', '-')}", str(value)]
    return [sys.executable, *launcher, str(SCRIPT), str(out), "--data", str(folder), *options]


def run(*args, **changes):
    done = subprocess.run(
        command(*args, **changes), env=ONE_THREAD, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def weights(out):
    return load_file(out / WEIGHTS)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    torch.set_num_threads(1)  # sums differ with their number
    out = tmp_path_factory.mktemp("trained")
    train(tiny_reid.config(), data, out, quiet=True)
    return out
