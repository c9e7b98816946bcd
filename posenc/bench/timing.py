"""How posenc measures: ratios of two things timed in the same run, in turns."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

# Without a given number of pairs: as many as fit into the time, within these bounds.
SECONDS, LEAST_PAIRS, MOST_PAIRS = 3.0, 5, 51
# A GPU works through calls that are queued: one call at a time would measure the launching.
QUEUED_CALLS = 10


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


@dataclass(frozen=True)
class Times:
    """Seconds of single calls, in pairs."""

    plain: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def ratio(self) -> Ratio:
        """`other / plain`."""
        pairs = zip(self.plain, self.other, strict=True)
        low, median, high = statistics.quantiles([other / plain for plain, other in pairs], n=4)
        return Ratio(median, low, high)


def clock(device: torch.device) -> float:
    """Process time on the CPU, which other processes disturb least; else wall time after a sync."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def paired_times(
    plain: Callable[[], object],
    other: Callable[[], object],
    device: torch.device,
    pairs: int | None = None,
) -> Times:
    """Timed A B A B after two warm-up rounds."""
    calls = 1 if device.type == "cpu" else QUEUED_CALLS
    for _ in range(2):
        plain()
        other()
    times: list[tuple[float, float]] = []
    started = clock(device)
    while _wants_more(len(times), pairs, lambda: clock(device) - started):
        start = clock(device)
        for _ in range(calls):
            plain()
        middle = clock(device)
        for _ in range(calls):
            other()
        times.append(((middle - start) / calls, (clock(device) - middle) / calls))
    return Times(*zip(*times, strict=True))


def _wants_more(done: int, pairs: int | None, elapsed: Callable[[], float]) -> bool:
    if pairs is not None:
        return done < pairs
    return done < LEAST_PAIRS or (done < MOST_PAIRS and elapsed() < SECONDS)


def paired_ratio(
    plain: Callable[[], object],
    other: Callable[[], object],
    device: torch.device,
    pairs: int | None = None,
) -> Ratio:
    """`other / plain`."""
    return paired_times(plain, other, device, pairs).ratio


def measured_ceiling(device: torch.device, dtype: torch.dtype, size: int = 8192) -> float:
    """FLOP/s of a large matrix product: what this device reaches at best, in this run."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = paired_times(lambda: a @ b, lambda: a @ b, device)
    return 2 * size**3 / statistics.median(times.other)


def measured_bandwidth(device: torch.device, size: int = 2**30) -> float:
    """Bytes per second of a large copy, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = paired_times(lambda: target.copy_(source), lambda: target.copy_(source), device)
    return 2 * size / statistics.median(times.other)


def environment(device: torch.device) -> dict[str, str]:
    """What a ratio depends on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "timm": version("timm"),
        "python": platform.python_version(),
        "commit": commit(),
    }


def commit() -> str:
    """Of this repository; "-dirty" if its code has changed; "unknown" if this file is not in it."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # not that of an environment in it
        # A run in pieces stores results in the repository: they change nothing that it computes.
        changed = _git("diff", "--name-only", "HEAD", "--", ":/*.py")
        described = _git("describe", "--always", "--exclude", "*", "--abbrev=12")
        return f"{described}-dirty" if changed else described
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*command: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
