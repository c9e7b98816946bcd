"""Breaks the code in one place at a time, and counts how often a test notices.

    make mutants                                # measures coverage first, where that is not there
    python .ci/mutants.py --sample 30 --seed 7  # a smaller sample, another one

Cosmic Ray makes the mutants. Each runs in a process of its own that has it in memory alone, with
those tests that run the line, the quickest of each file first, and where these notice nothing,
others that run the file: what is remembered runs once for many tests. The working tree stays as it
is. Tests that start other processes do not see the change, and the time for each is limited, so
that a survivor may be killed by more than is tried.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.abc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutations import ROOT, Mutant, draw

ROUNDS = (20.0, 80.0)  # seconds of tests that are tried first, and then
ROUND_OF_FILE = 30.0  # and of those that run other lines of the file
NO_TESTS = (4, 5)  # pytest found none of these names, or none at all
PATIENCE = 5  # times as long, and a minute, may they take


def main() -> None:
    """Draws a sample, tries each, writes what was found after each."""
    args = make_parser().parse_args()
    measured = Measured.read(args.coverage)
    mutants = draw(args.sample, args.seed)
    args.digest = digest()
    found = read(args.out, args.digest)
    left = [mutant for mutant in mutants if mutant.key not in found]
    preload()
    check_unchanged(measured, mutants[0])
    for run in tried(left, measured, args.workers, args.minutes):
        print(f"{run.state:9} {time.monotonic() - run.begun:5.0f} s  {run.mutant.key}", flush=True)
        found[run.mutant.key] = {
            "mutant": run.mutant.key,
            "line": run.mutant.line,
            "operator": run.mutant.operator,
            "state": run.state,
            "noticed by": run.noticed_by,
        }
        write(args.out, [found[one.key] for one in mutants if one.key in found], args)
    rows = [found[one.key] for one in mutants if one.key in found]
    doubt(rows)
    write(args.out, rows, args)
    print(json.loads(args.out.read_text())["counts"])


def commit() -> str:
    """Of the code and the tests, "-dirty" if these have changed."""
    named = _git("describe", "--always", "--exclude", "*", "--abbrev=12")
    return (
        f"{named}-dirty" if _git("diff", "--name-only", "HEAD", "--", "posenc", "tests") else named
    )


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def digest() -> str:
    """Of all code and tests: what was found holds for these."""
    files = sorted(path for part in ("posenc", "tests") for path in (ROOT / part).rglob("*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:16]


def read(path: Path, now: str) -> dict[str, dict[str, Any]]:
    """What a run that was stopped has found, by mutant."""
    if not path.is_file():
        return {}
    report = json.loads(path.read_text())
    if report["digest"] != now:
        raise SystemExit(f"{path} was found with other code or tests: move it away, or pass --out")
    return {row["mutant"]: row for row in report["mutants"]}


def check_unchanged(measured: Measured, mutant: Mutant) -> None:
    """Stops where tests fail without any change."""
    run = Run(None, measured.rounds(mutant), time.monotonic())
    if not run.go_on():
        raise SystemExit(f"no test runs line {mutant.line} of {mutant.path}: is the coverage old?")
    while run.poll() is None:
        time.sleep(0.1)
    if run.state != "survived":
        raise SystemExit(f"the code as it is was {run.state} by {run.noticed_by}")


def doubt(rows: list[dict[str, Any]]) -> None:
    """A test that fails without any change has noticed nothing."""
    names = sorted({name for row in rows for name in row["noticed by"] if "::" in name})
    unchanged = Run(None, iter([(names, 600.0)]), time.monotonic())
    if not names or not unchanged.go_on():
        return
    while unchanged.poll() is None:
        time.sleep(0.1)
    failed = {*unchanged.noticed_by}
    for row in rows:
        if row["state"] == "killed" and {*row["noticed by"]} <= failed:
            row["state"] = "doubtful"


def write(path: Path, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Counts, and each mutant."""
    counts = dict(Counter(row["state"] for row in rows))
    head = {"sample": args.sample, "seed": args.seed, "commit": commit(), "digest": args.digest}
    head["counts"] = counts
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]},\n "mutants": [\n{lines}\n ]}}\n')


# Tests.


@dataclass(frozen=True)
class Measured:
    """What a run of all tests under coverage left.

    Attributes:
        lines: path -> line -> tests that ran it.
        seconds: of each test.
    """

    lines: dict[str, dict[int, list[str]]]
    seconds: dict[str, float]

    @classmethod
    def read(cls, folder: Path) -> Measured:
        """From `.coverage` and `tests.xml` of `make coverage`."""
        from coverage import CoverageData

        data = CoverageData(str(folder / ".coverage"))
        data.read()
        known = _seconds(folder / "tests.xml")
        lines: dict[str, dict[int, list[str]]] = {}
        for file in data.measured_files():
            with contextlib.suppress(ValueError):  # not in this repository
                path = str(Path(file).relative_to(ROOT))
                lines[path] = {
                    line: sorted({each.split("|")[0] for each in contexts if each})
                    for line, contexts in data.contexts_by_lineno(file).items()
                }
        tests = {test for each in lines.values() for some in each.values() for test in some}
        return cls(lines, {test: known.get(_junit_name(test), 1.0) for test in tests})

    def tests_of(self, mutant: Mutant) -> list[str]:
        """Those that run the line, or where only an import does, the file, or else its folder."""
        lines = self.lines.get(mutant.path, {})
        tests = {*lines.get(mutant.line, ())} or _all(lines)
        if not tests:
            folder = str(Path(mutant.path).parent)
            near = (lines for path, lines in self.lines.items() if path.startswith(folder))
            tests = {test for lines in near for test in _all(lines)}
        return self._in_turns(tests)

    def tests_of_file(self, mutant: Mutant) -> list[str]:
        """The others that run something of its file."""
        tests = _all(self.lines.get(mutant.path, {}))
        return self._in_turns(tests - {*self.tests_of(mutant)})

    def _in_turns(self, tests: set[str]) -> list[str]:
        """The quickest of each file of tests, then the next of each: many run nearly the same."""
        files: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=lambda test: (self.seconds[test], test)):
            files[test.partition("::")[0]].append(test)
        turn = {test: at for some in files.values() for at, test in enumerate(some)}
        return sorted(tests, key=lambda test: (turn[test], self.seconds[test], test))

    def rounds(self, mutant: Mutant) -> Iterator[tuple[list[str], float]]:
        """Tests to be tried one after the other, and the seconds that they usually take."""
        tests = self.tests_of(mutant)
        for budget in ROUNDS:
            yield from self._round(tests, budget)
        yield from self._round(self.tests_of_file(mutant), ROUND_OF_FILE)

    def _round(self, tests: list[str], budget: float) -> Iterator[tuple[list[str], float]]:
        """As many as fit, and at least one if there is any; these are taken out."""
        some, left, total = list[str](), list[str](), 0.0
        for test in tests:
            fits = not some or total + self.seconds[test] <= budget
            total += self.seconds[test] if fits else 0
            (some if fits else left).append(test)
        tests[:] = left
        if some:
            yield some, total


def _all(lines: dict[int, list[str]]) -> set[str]:
    return {test for some in lines.values() for test in some}


def _seconds(report: Path) -> dict[tuple[str, str], float]:
    tests = ET.parse(report).getroot().iter("testcase")
    return {
        (one.get("classname", ""), one.get("name", "")): float(one.get("time", 1)) for one in tests
    }


def _junit_name(test: str) -> tuple[str, str]:
    """Of a test as pytest names it."""
    head, *parameters = test.split("[", 1)
    path, *inner, name = head.split("::")
    module = path.removesuffix(".py").replace("/", ".")
    return ".".join((module, *inner)), "[".join((name, *parameters))


# Processes.


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module with other code than its file has."""

    def __init__(self, path: Path, source: str) -> None:
        parts = path.relative_to(ROOT).with_suffix("").parts
        self.name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.path, self.source = path, source

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Of that module only."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_filename(self, fullname: str) -> str:
        """As without the change."""
        return str(self.path)

    def get_data(self, path: str) -> bytes:
        """The other code; nothing compiled is read, and nothing is left."""
        if path != str(self.path):
            raise OSError(path)
        return self.source.encode()


def preload() -> None:
    """What all processes need, but posenc: Triton as the tests want it, for its interpreter."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TRITON_INTERPRET"] = "1"
    sys.dont_write_bytecode = True
    for name in ("torch", "timm", "hypothesis", "pytest", "safetensors.torch", "einops", "triton"):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    del os.environ["TRITON_INTERPRET"]
    assert "posenc" not in sys.modules


@dataclass
class Run:
    """A process with a mutant, or with the code as it is.

    Attributes:
        noticed_by: tests that failed; none where the process died.
    """

    mutant: Mutant | None
    rounds: Iterator[tuple[list[str], float]]
    begun: float
    state: str = "not run"
    pid: int = 0
    limit: float = 0.0
    noticed_by: list[str] = field(default_factory=list)

    def go_on(self) -> bool:
        """Starts the next round; False where there is none."""
        some = next(self.rounds, None)
        if some is None:
            return False
        tests, seconds = some
        self.limit = time.monotonic() + PATIENCE * seconds + 60
        self.pid = os.fork()
        if not self.pid:
            os.setpgid(0, 0)
            os._exit(_run_tests(self.mutant, tests))
        return True

    def poll(self) -> str | None:
        """What became of it; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._read_failures()
            if os.waitstatus_to_exitcode(status) in NO_TESTS:
                self.state = "doubtful"
            elif status:
                self.state = "killed"
            elif not self.go_on():
                self.state = "survived"
        elif time.monotonic() > self.limit:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._read_failures()
            self.state = "too long"
        return None if self.state == "not run" else self.state

    def _read_failures(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.noticed_by = _failures(self.pid).read_text().splitlines()
        _failures(self.pid).unlink(missing_ok=True)


def _failures(pid: int) -> Path:
    return Path(tempfile.gettempdir()) / f"posenc-mutant-{pid}.txt"


class Reporter:
    """Keeps the names of tests that fail, and of files that cannot be imported."""

    def __init__(self) -> None:
        self.path = _failures(os.getpid())
        self.path.write_text("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of a test."""
        self.pytest_collectreport(report)

    def pytest_collectreport(self, report: Any) -> None:
        """Of a file."""
        if report.failed:
            with self.path.open("a") as file:
                file.write(f"{report.nodeid}\n")


def _run_tests(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """0 where all pass; also a process that dies is one that notices."""
    import pytest

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.chdir(ROOT)
    already = "ignore::pytest.PytestAssertRewriteWarning"  # what was loaded before the fork
    options = ["-p", "no:cacheprovider", "-W", already]
    reporter = Reporter()
    if mutant is not None:
        changed = Changed(ROOT / mutant.path, mutant.source)
        sys.meta_path.insert(0, changed)
        options.append("-x")
        if not _is_importable(changed.name):
            reporter.path.write_text("import\n")
            return 1
    return int(pytest.main([*options, *tests], plugins=[reporter]))


def _is_importable(name: str) -> bool:
    """As the tests do it, to which a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            importlib.import_module(name)
        except Exception:
            return False
    return True


def tried(mutants: list[Mutant], measured: Measured, workers: int, minutes: float) -> Iterator[Run]:
    """Each run as it ends; none begins after the minutes."""
    deadline = time.monotonic() + 60 * minutes
    waiting, running = list(reversed(mutants)), list[Run]()
    while waiting or running:
        while waiting and len(running) < workers and time.monotonic() < deadline:
            mutant = waiting.pop()
            run = Run(mutant, measured.rounds(mutant), time.monotonic())
            if run.go_on():
                running.append(run)
            else:
                yield run
        if not running:
            return
        time.sleep(0.05)
        for run in list(running):
            if run.poll() is not None:
                running.remove(run)
                yield run


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--sample", type=int, default=300, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--workers", type=int, default=2, help="mutants at a time")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then none begins")
    parser.add_argument("--coverage", type=Path, default=ROOT / "runs" / "coverage")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.json")
    return parser


if __name__ == "__main__":
    main()
