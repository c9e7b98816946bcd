"""Parts of `benchmarks/on_gpu.py` that need no GPU: what its processes import by name."""

import os
import time

from gpu.part import Part


def run(function, name, folder, until):
    """As `on_gpu.run_part` does, without a device."""
    part = Part(name, folder, until, dry=False, head={"command": "test", "dry": False})
    globals()[function](part)
    part.end()


def finds(part):
    part.add({"found": 1})
    part.add({"found": 2})


def raises(part):
    part.add({"found": 1})
    raise ZeroDivisionError("on purpose")


def dies(part):
    """As a process does whose driver crashed."""
    part.add({"found": 1})
    os._exit(9)


def hangs(part):
    part.add({"found": 1})
    time.sleep(600)


def takes_too_long(part):
    """Three cells, each as long as all the time there is."""
    for cell in part.each(["first", "second", "third"]):
        part.add({"cell": cell})
        time.sleep(part.seconds_left)
