"""Import every room and mark an answer, where the tests do not run: on macOS and Windows."""

import importlib
import pkgutil
import subprocess
import sys

import internal_policy
from internal_policy.marking import reward

EXTRAS = ("internal_policy.readers", "internal_policy.__main__")
"""What takes another package, and what runs when it is imported."""

if __name__ == "__main__":
    for room in pkgutil.walk_packages(internal_policy.__path__, "internal_policy."):
        if not room.name.startswith(EXTRAS):
            importlib.import_module(room.name)
    marks = [reward(response, "0.5") for response in (r"\boxed{\frac12}", r"\boxed{9^9^9^9}", r"\boxed{x = 1/2}")]
    assert marks == [1.0, 0.0, 1.0], marks
    subprocess.run([sys.executable, "-m", "internal_policy", "show", "demo-qwen3"], check=True)
