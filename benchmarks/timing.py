"""Time candidates alternately on a CPU or a GPU, with the memory they take."""

import ctypes
import gc
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True)
class Candidate:
    """Something to time."""

    run: Callable[[], object]
    """Does the work."""
    share: float = 1.0
    """How much of the work `run` does. The seconds are divided by it."""


@dataclass(frozen=True)
class Cost:
    """What a run took."""

    seconds: float
    """On one thread of a CPU, the process's CPU time; otherwise the time that passed."""
    mb: float
    """Growth of the peak memory over what was in use before."""


def alternate(candidates: Mapping[str, Candidate], runs: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Median seconds and megabytes of each candidate, and the seconds of every run; all take turns `runs` times.

    A GPU does one round more, which warms up. On a CPU the first run of a candidate takes no longer than others.
    """
    gc.collect()  # what an earlier case left must not be freed while memory is measured
    costs: dict[str, list[Cost]] = {name: [] for name in candidates}
    warm_ups = 1 if device.type == "cuda" else 0
    for number in range(runs + warm_ups):
        for name, candidate in candidates.items():
            cost = measured(candidate, device)
            if number >= warm_ups:
                costs[name].append(cost)
    return {
        name: {
            "seconds": median(cost.seconds for cost in found),
            "mb": median(cost.mb for cost in found),
            "runs": [cost.seconds for cost in found],
        }
        for name, found in costs.items()
    }


def measured(candidate: Candidate, device: torch.device) -> Cost:
    """One run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        candidate.run()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return Cost(seconds / candidate.share, (torch.cuda.max_memory_allocated() - before) / 1e6)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, start = _memory("VmRSS"), clock()
    candidate.run()
    return Cost((clock() - start) / candidate.share, _memory("VmHWM") - before)


def _memory(field: str) -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1000
