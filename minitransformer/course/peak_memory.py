"""How much memory a computation needs beyond what was there before it: its peak, by PyTorch's own count.

On a CPU the profiler reports every block that PyTorch's allocator gives out and takes back. What a library
below PyTorch allocates for itself is not seen. On a GPU the allocator keeps the count.
"""

import os
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints a line at each start and stop


def peak_bytes(run: Callable, device: torch.device | str = "cpu") -> int:
    """Bytes that were in use at once during `run()`, above those in use when it began."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    changes = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = now = 0
    for change in changes:
        now += change
        peak = max(peak, now)
    return peak
