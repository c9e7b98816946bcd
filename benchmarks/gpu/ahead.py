"""Compiling side by side what is measured one by one: processes share the compilers' caches."""

from __future__ import annotations

import os
import pickle

from gpu.part import Part
from gpu.workers import Task, Workers


def compile_ahead(part: Part, tasks: dict[str, Task], share: float, threads: int = 1) -> None:
    """Runs the tasks, for at most this share of the part's time; what fails here is met again.

    In a rehearsal only the first, as a process would receive it.
    """
    if part.dry:
        pickle.loads(pickle.dumps(next(iter(tasks.values()))))()
        return
    count = max(1, min(len(tasks), ((os.cpu_count() or 1) - 2) // threads))
    with Workers(count) as workers:
        outcomes = list(workers.run(tasks, part.until - (1 - share) * part.seconds_left))
    failures = {outcome.name: outcome.failure[-500:] for outcome in outcomes if outcome.failure}
    done = len(outcomes) - len(failures)
    part.write(compiled_ahead={"tasks": len(tasks), "done": done, "failures": failures})
