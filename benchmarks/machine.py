"""Name the machine that a benchmark ran on."""

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
"""Features of a processor that make matrix products faster."""
PACKAGES = ("torch", "transformers", "triton", "transformer-lens", "internal-policy")


def machine(device: str) -> dict[str, Any]:
    """The processor and GPU, the versions of what computes on them, and how busy the machine is."""
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = re.search(r"model name\s*: (.+)", about)
    flags = re.search(r"(?:flags|Features)\s*: (.+)", about)
    return {
        "processor": named[1] if named else platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if flags and name in flags[1].split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": load(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "versions": {name: version for name in PACKAGES if (version := version_of(name))},
    }


def load() -> float:
    """How many processes wanted a core during the last minute, on average, including this one."""
    return os.getloadavg()[0]


def version_of(package: str) -> str:
    """The version of an installed package; empty without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
