"""Import every module and mark an answer on macOS and Windows, where the tests don't run."""

import importlib
import pkgutil
import subprocess
import sys

import internal_policy
from internal_policy.tasks.marking import reward

TRITON = ("internal_policy.measure.fused", "internal_policy.measure.triton_")
EXTRAS = ("internal_policy.readers", "internal_policy.__main__", *TRITON)
"""Modules that need another package, or that run on import."""

if __name__ == "__main__":
    for module in pkgutil.walk_packages(internal_policy.__path__, "internal_policy."):
        if not module.name.startswith(EXTRAS):
            importlib.import_module(module.name)
    marks = [reward(response, "0.5") for response in (r"\boxed{\frac12}", r"\boxed{9^9^9^9}", r"\boxed{x = 1/2}")]
    assert marks == [1.0, 0.0, 1.0], marks
    subprocess.run([sys.executable, "-m", "internal_policy", "show", "demo-qwen3"], check=True)
