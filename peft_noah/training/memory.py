"""How much memory a stage took at most."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def start_measuring(device: torch.device) -> None:
    """Forget earlier peaks, on a GPU; the operating system keeps a process's own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Most bytes in use at a time: on a GPU by torch's tensors since `start_measuring`; elsewhere by the whole process
    since it started, 0 where the operating system does not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # what `resource` says on Linux counts the process that started this one, too
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return 1024 * int(found[0])
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
