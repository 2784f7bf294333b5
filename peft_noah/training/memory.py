"""How much memory a stage took at most, and what is kept of it between the steps of a training."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


#: numbers of glibc's ``mallopt``, from its malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: bytes; the largest that glibc takes, at which its own rule arrives too when tensors of this size are freed
_LARGEST_IN_HEAP = 32 * 1024**2


@contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Let the next step of a training have the memory that a step has freed; only on a CPU, with glibc.

    Else glibc gives it back to the operating system after each step, and the next step asks for it again, in pages of 4 kB:
    with dinov2-small some 40,000 to 90,000 faults and 4 to 10 % of a step's time. What has been kept is given back at the end.
    """
    libc = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_IN_HEAP)
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_IN_HEAP)  # as glibc's own rule has it
        libc.malloc_trim(0)
