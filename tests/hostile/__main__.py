"""Fuzz every reader: `python -m tests.hostile --inputs 100000` prints a table and exits with 1 if one broke."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from . import campaign
from .readers import READERS, preload


def main() -> int:
    """Print a row for each reader. Return 1 if an input broke one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=5000, help="inputs over all readers")
    parser.add_argument("--readers", nargs="*", default=list(READERS), help="names of readers, by default all")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--work", type=Path, help="folder for the inputs that break a reader")
    options = parser.parse_args()
    work = (options.work or Path(tempfile.mkdtemp(prefix="hostile-"))).absolute()
    os.environ["INTERNAL_POLICY_CACHE"] = str(work / "cache")
    (work / "cache").mkdir(parents=True, exist_ok=True)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    preload()
    sound = campaign.prepared(work / "seeds")
    print(f"{'reader':<22}{'inputs':>8}{'accepted':>10}{'refused':>9}{'failures':>10}{'slowest':>10}{'memory':>9}")
    broken, total = 0, 0
    for name, inputs in campaign.shares(options.inputs, options.readers).items():
        found = campaign.run(name, inputs, sound, work, options.seed)
        failed = sum(map(len, found.failures.values()))
        broken, total = broken + failed, total + found.inputs
        numbers = f"{found.inputs:>8,}{found.accepted:>10,}{found.refused:>9,}{failed:>10,}"
        print(f"{name:<22}{numbers}{found.slowest:>8.2f} s{found.memory / 1e6:>6.0f} MB", flush=True)
        for what, kept in found.failures.items():
            print(f"    {len(kept)} x {what}: {kept[0]}", flush=True)
    print(f"{total:,} inputs, {broken:,} failures. Inputs that broke a reader are in {work / 'kept'}.")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
