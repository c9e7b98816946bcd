"""How long the kernels of a call take on the device, whatever the host needs to launch them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def kernel_milliseconds(run: Callable[[], object], device: torch.device) -> Counter[str]:
    """Name -> milliseconds of a call; on the CPU, those of PyTorch's operators."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    on_cpu = device.type == "cpu"
    calls = 1 if on_cpu else 3
    activity = ProfilerActivity.CPU if on_cpu else ProfilerActivity.CUDA
    run()
    with profile(activities=[activity], acc_events=True) as profiled:
        for _ in range(calls):
            run()
        if not on_cpu:
            torch.cuda.synchronize(device)
    times: Counter[str] = Counter()
    for event in profiled.key_averages():
        if on_cpu:
            times[event.key] += event.self_cpu_time_total / calls / 1000
        elif event.device_type == DeviceType.CUDA:
            times[event.key] += event.self_device_time_total / calls / 1000
    return times
