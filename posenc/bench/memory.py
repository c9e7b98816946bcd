"""How much memory a call needs: peak bytes of torch's allocators."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes that live at once in the second call, above what lived before the first.

    What the first call leaves behind counts, such as remembered masks and index maps: it stays.
    What only the first call needs to build them does not.
    """
    if device.type == "cpu":
        kept = sum(allocations(run))
        return kept + max(itertools.accumulate(allocations(run)), default=0)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def allocations(run: Callable[[], object]) -> list[int]:
    """Bytes of every allocation (and, negative, of every release) on the CPU, in order."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it reports missing GPUs on stderr
    # `acc_events` only silences a warning about events that nobody asks for here.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as prof:
        run()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
