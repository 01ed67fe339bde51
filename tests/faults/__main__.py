"""Break commands many times and print what came of it: `python -m tests.faults --kills 50`."""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tyro
from faults.commands import COMMANDS
from faults.harness import FORKS, moments, preload, tried, undisturbed


@dataclass(frozen=True)
class Faults:
    """Kill commands at random moments, continue them, and compare with undisturbed ones."""

    kills: int = 50
    """How often each command is killed."""
    commands: tuple[str, ...] = tuple(COMMANDS)
    """The commands."""
    seed: int = 0
    """Random seed of the moments."""
    fork: bool = False
    """Start each command as a fork of this process, which has imported PyTorch already. Takes a quarter of the time."""


def main(options: Faults) -> int:
    """Print a table; return 1 if anything went wrong."""
    failures = 0
    if options.fork:
        os.environ[FORKS] = "1"
        preload()
    load = f"{os.getloadavg()[0]:.1f} at the start"
    print("| command | kills | when (phase: kills) | continued equal | failures | minutes |\n|---|---|---|---|---|---|")
    for name in options.commands:
        command, begun = COMMANDS[name], time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            reference = undisturbed(command, Path(folder) / "reference")
            trials = []
            for number, moment in enumerate(moments(reference, options.kills, options.seed)):
                room = Path(folder) / str(number)
                trials.append(trial := tried(command, reference, room, moment))
                if trial.failure:
                    print(f"{name}, {trial.moment} ({trial.phase}): {trial.failure}", file=sys.stderr, flush=True)
                else:
                    shutil.rmtree(room)
        phases = ", ".join(f"{phase}: {count}" for phase, count in Counter(t.phase for t in trials).most_common())
        wrong = sum(bool(trial.failure) for trial in trials)
        failures += wrong
        minutes = (time.monotonic() - begun) / 60
        print(f"| {name} | {len(trials)} | {phases} | {len(trials) - wrong} | {wrong} | {minutes:.0f} |", flush=True)
    print(f"Load {load}, {os.getloadavg()[0]:.1f} at the end, on {os.cpu_count()} CPUs.")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Faults)))
