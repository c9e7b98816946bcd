"""Python code in a process of its own."""

import subprocess
import sys


def run_python(code, *arguments):
    """Standard output of a new process."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout
