"""Fuzz a reader guided by coverage: `python -m tests.hostile.guided --reader "problems .json" --seconds 60`.

It needs `pip install atheris`. Inputs that reach new lines of our code are mutated further. The reader runs in this
process, so the first exception that isn't an InputError ends it, and the input is kept in a file `crash-...`.
"""

import argparse
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["internal_policy"]):
    from internal_policy.errors import InputError

    from . import campaign
    from .readers import READERS

SINGLE = [name for name, reader in READERS.items() if len(reader.lying) == 1 and reader.share >= 0.3]
"""Readers of one file that take milliseconds."""


def main() -> None:
    """Fuzz until the time is over or an input breaks the reader; atheris then ends the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", choices=SINGLE, default=SINGLE[0], help="name of the reader")
    parser.add_argument("--seconds", type=int, default=60, help="time to spend")
    options = parser.parse_args()
    reader, work = READERS[options.reader], Path(tempfile.mkdtemp(prefix="guided-"))
    sound, (name,) = campaign.prepared(work / "seeds"), reader.lying
    (work / "corpus").mkdir()
    for number, seed in enumerate(path for start in reader.seeds for path in sound.glob(f"{start}*/{name}")):
        shutil.copy(seed, work / "corpus" / f"seed-{number}")
    folder = work / "read"
    shutil.copytree(next(sound.glob(f"{reader.seeds[0]}*")), folder)

    def read(data: bytes) -> None:
        (folder / name).write_bytes(data)
        try:
            reader.read(folder)
        except InputError:
            return

    with atheris.instrument_imports(include=["internal_policy"]):  # of what the reader imports when it is called
        for path in sorted((work / "corpus").iterdir()):
            read(path.read_bytes())
    limits = [f"-max_total_time={options.seconds}", "-timeout=5", "-rss_limit_mb=4096", f"-artifact_prefix={work}/"]
    atheris.Setup([sys.argv[0], *limits, str(work / "corpus")], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
