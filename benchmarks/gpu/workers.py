"""Processes that run tasks side by side: a crash or a hang costs one task, not the others."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple

LIBC = ctypes.CDLL(None)  # now: a process that was just forked should not load anything
Task = Callable[[], Any]  # which pickle can send


class Outcome(NamedTuple):
    """What became of a task."""

    name: str
    value: Any
    failure: str | None  # the traceback, or how its process ended
    was_stopped: bool  # it did not end in time
    seconds: float


class Workers:
    """Up to `count` processes, each of which calls `start` first; made when they are needed."""

    def __init__(self, count: int, start: Task = int) -> None:
        self._count, self._start = count, start
        self._idle: list[_Worker] = []
        self._running: dict[Connection, _Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for worker in self._idle:
            worker.connection.close()  # which ends it
        for worker in self._running.values():
            worker.stop()
        for worker in self._idle:
            worker.end()

    def run(self, tasks: dict[str, Task], until: float) -> Iterator[Outcome]:
        """Outcomes as they come; what was not begun by then has none, what runs then is stopped."""
        waiting = list(tasks.items())
        while self._running or (waiting and time.time() < until):
            while waiting and len(self._running) < self._count and time.time() < until:
                worker = self._idle.pop() if self._idle else _Worker(self._start)
                worker.begin(*waiting.pop(0))
                self._running[worker.connection] = worker
            ready = wait(list(self._running), timeout=max(0.0, until - time.time()))
            for connection in ready or list(self._running):
                worker = self._running.pop(connection)
                yield self._finish(worker) if ready else worker.stop()

    def _finish(self, worker: _Worker) -> Outcome:
        outcome, goes_on = worker.outcome()
        if goes_on:
            self._idle.append(worker)
        return outcome


class _Worker:
    def __init__(self, start: Task) -> None:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, start))
        self._process.start()
        theirs.close()
        self._name, self._since = "", 0.0

    def begin(self, name: str, task: Task) -> None:
        """Sends it."""
        self._name, self._since = name, time.time()
        with contextlib.suppress(BrokenPipeError):  # that it died is seen when it is read
            self.connection.send(task)

    def outcome(self) -> tuple[Outcome, bool]:
        """And whether the process goes on."""
        try:
            value, failure, goes_on = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            value, goes_on = None, False
            failure = f"its process ended with code {self._process.exitcode}"
        seconds = time.time() - self._since
        return Outcome(self._name, value, failure, False, seconds), goes_on

    def end(self, seconds: float = 5.0) -> None:
        """Waits for that, for a while."""
        self._process.join(seconds)
        self._process.kill()
        self._process.join()

    def stop(self) -> Outcome:
        """At once."""
        self._process.kill()
        self._process.join()
        seconds = time.time() - self._since
        return Outcome(self._name, None, f"stopped after {seconds:.0f} s", True, seconds)


def die_with_parent() -> None:
    """Asks Linux to end this process when its parent ends, however that ends."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGKILL)


def _serve(connection: Connection, start: Task) -> None:
    die_with_parent()
    start()
    goes_on = True
    while goes_on:
        try:
            task = connection.recv()
        except EOFError:
            return
        value = failure = None
        try:
            value = task()
        except Exception:
            failure = traceback.format_exc()
        goes_on = device_works()
        connection.send((value, failure, goes_on))


def device_works() -> bool:
    """False after an illegal access, say, which leaves a process without its device."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True
