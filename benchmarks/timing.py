"""How posenc measures: ratios of two things timed in the same run, in turns."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}-{self.high:.2f})"


def clock(device: torch.device) -> float:
    """Process time on the CPU, which other processes disturb least; else wall time after a sync."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def paired_ratio(
    plain: Callable[[], object],
    other: Callable[[], object],
    device: torch.device,
    pairs: int = 15,
) -> Ratio:
    """`other / plain`, timed A B A B after two warm-up rounds."""
    for _ in range(2):
        plain()
        other()
    ratios = []
    for _ in range(pairs):
        start = clock(device)
        plain()
        middle = clock(device)
        other()
        ratios.append((clock(device) - middle) / (middle - start))
    low, median, high = statistics.quantiles(ratios, n=4)
    return Ratio(median, low, high)


def environment(device: torch.device) -> dict[str, str]:
    """What a ratio depends on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "device": f"{device.type} ({name})",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
