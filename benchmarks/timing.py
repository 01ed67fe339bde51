"""Time candidates alternately on a CPU or a GPU, with the memory they take."""

import ctypes
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch


@dataclass(frozen=True)
class Cost:
    """What a run took."""

    seconds: float
    """On a CPU, the process's CPU time on one thread; on a GPU, the time until it was done."""
    mb: float
    """Growth of the peak memory over what was in use before."""


def alternate(
    candidates: Mapping[str, Callable[[], object]], runs: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """The median seconds and megabytes of each candidate, all in turn `runs` times after a round that warms up.

    On a CPU there is no such round for a single run, because the candidates that take long need none.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    warm_ups = 1 if device.type == "cuda" or runs > 1 else 0
    for number in range(runs + warm_ups):
        for name, candidate in candidates.items():
            cost = measured(candidate, device)
            if number >= warm_ups:
                costs[name].append(cost)
    return {
        name: {"seconds": median(cost.seconds for cost in found), "mb": median(cost.mb for cost in found)}
        for name, found in costs.items()
    }


def measured(candidate: Callable[[], object], device: torch.device) -> Cost:
    """One run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        candidate()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return Cost(seconds, (torch.cuda.max_memory_allocated() - before) / 1e6)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, start = _memory("VmRSS"), time.process_time()
    candidate()
    return Cost(time.process_time() - start, _memory("VmHWM") - before)


def _memory(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1000
