"""Everything that only a GPU can say, in one command: right, how fast, and what to change.

    python benchmarks/on_gpu.py --minutes 8 --out DIR

Needs an NVIDIA GPU, what posenc needs, Triton, pytest and hypothesis, and no network. The parts
run in order of importance, each in its share of the time, and write every result at once: being cut
off loses nothing. DIR has a JSON file for each part, `report.md` with all tables, `tiles.patch` if
other sizes of tiles were faster, and `proven.json` if all checks of the kernels passed. The exit
code is 1 if a check failed, 2 if another part did. `--dry` rehearses it on the CPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from gpu.part import Part, Row, amend, read_json  # noqa: E402
from gpu.summary import markdown  # noqa: E402
from gpu.workers import Outcome, Task, Workers  # noqa: E402

# In order of importance, with shares of the time that is left: a part that ends early gives the
# rest to those after it.
SHARES = {"correctness": 0.36, "ratios": 0.32, "tiles": 0.16, "picker": 0.02, "models": 0.14}
GRACE = 0.04  # of the time: what began in a part's time may end in this


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    signal.signal(signal.SIGTERM, _end)
    args.out.mkdir(parents=True, exist_ok=True)
    prepare(args.dry)
    head = {"command": shlex.join(["python", "benchmarks/on_gpu.py", *args.given]), "dry": args.dry}
    tasks = {
        name: partial(run_part, f"gpu.{name}:run", name, args.out, args.dry, head, args.irpe_repo)
        for name in args.parts
    }
    try:
        run_all(tasks, args.out, args.minutes * 60)
    finally:
        reports = write_report(args.out, args.parts)
    return exit_code(reports)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--parts", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--dry", action="store_true", help="rehearse on the CPU, in tiny sizes")
    parser.add_argument("--irpe-repo", type=Path, help="a clone of microsoft/Cream")
    args = parser.parse_args(argv)
    args.given = sys.argv[1:] if argv is None else list(argv)
    return args


def prepare(dry: bool) -> None:
    """The environment of all processes."""
    # cuBLAS must be told once what it may do in PyTorch's deterministic mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device; --dry rehearses all of this on the CPU")


def run_all(tasks: dict[str, Callable[[float], None]], out: Path, seconds: float) -> None:
    """Each part in its share of what is left; one that fails is written down, and the next runs."""
    end = time.time() + seconds * (1 - GRACE)
    with Workers(1) as workers:
        for place, (name, task) in enumerate(tasks.items()):
            shares = [SHARES[other] for other in list(tasks)[place:]]
            until = time.time() + (end - time.time()) * shares[0] / sum(shares)
            hard: dict[str, Task] = {name: partial(task, until)}
            outcomes = list(workers.run(hard, until + seconds * GRACE))
            report = note(out / f"{name}.json", outcomes[0] if outcomes else None)
            print(f"{name}: {report['status']}, {len(report['rows'])} rows", flush=True)


def note(path: Path, outcome: Outcome | None) -> Row:
    """In a part's report, how it ended; what it found so far stays."""
    report = {"rows": [], "skipped": [], **read_json(path)}
    if outcome is None:
        return amend(path, **report, status="not begun")
    if outcome.was_stopped:
        report["status"] = "stopped"
    elif outcome.failure is not None:
        report |= {"status": "failed", "traceback": outcome.failure}
    return amend(path, **report, seconds=round(outcome.seconds, 1))


def run_part(
    function: str,
    name: str,
    out: Path,
    dry: bool,
    head: Row,
    irpe_repo: Path | None,
    until: float,
) -> None:
    """In a process of its own."""
    head = {**head, **facts(dry)}
    part = Part(name, out, until, dry, head, irpe_repo=irpe_repo)
    part.write()
    module, _, attribute = function.partition(":")
    getattr(importlib.import_module(module), attribute)(part)
    part.end()


def facts(dry: bool) -> Row:
    """What results depend on."""
    import torch
    import triton
    from timing import environment

    if dry:
        torch.set_num_threads(1)
        import interpreter
        import pytest

        interpreter.repair(pytest.MonkeyPatch())
        return {**environment(torch.device("cpu")), "architecture": "none", **_versions(triton)}
    major, minor = torch.cuda.get_device_capability()
    return {
        **environment(torch.device("cuda")),
        "architecture": f"sm_{major}{minor}",
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        **_versions(triton),
    }


def _versions(triton: object) -> Row:
    return {"triton": triton.__version__}


def write_report(out: Path, parts: Sequence[str]) -> dict[str, Row]:
    """All tables, in a file and on the screen."""
    found = {name: read_json(out / f"{name}.json") for name in parts}
    reports = {name: report for name, report in found.items() if "command" in report}
    if reports:
        text = markdown(reports)
        (out / "report.md").write_text(text)
        print(text)
    return found


def exit_code(reports: dict[str, Row]) -> int:
    """1: the kernels are wrong; 2: another part failed, or, in a rehearsal, was cut short."""
    correctness = reports.get("correctness", {})
    if any(row["passed"] is False for row in correctness.get("rows", [])):
        return 1
    fine = ("complete",) if _is_dry(reports) else ("complete", "cut", "stopped", "not begun")
    return 0 if all(report.get("status") in fine for report in reports.values()) else 2


def _is_dry(reports: dict[str, Row]) -> bool:
    return any(report.get("dry") for report in reports.values())


def _end(*_: object) -> NoReturn:
    raise SystemExit("ended from outside")


if __name__ == "__main__":
    sys.exit(main())
