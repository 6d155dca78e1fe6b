"""The most memory that a piece of work holds above what was there before it."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets VmHWM to the current resident size


def peak_megabytes(work: Callable[[], object], device: str) -> float | None:
    """Runs `work` and returns its peak in MB (2**20 bytes); None where nothing can tell.

    On CUDA it is what PyTorch had allocated; on a CPU it is resident memory, which Linux alone tells.
    """
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not device.startswith("cpu") or not CLEAR_REFS.exists():
        work()
        return None
    # What earlier work has freed is still resident, and would be used again and not be seen.
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    CLEAR_REFS.write_text(RESET_PEAK)
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) / 1024


def kilobytes(key: str) -> int:
    """A figure of this process, as `/proc/self/status` calls it: VmRSS, VmHWM."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
