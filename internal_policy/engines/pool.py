"""Divide the CPUs and GPUs of machines among replicas of the model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from internal_policy.errors import InputError, counted


@dataclass(frozen=True)
class Pool:
    """The replicas to start. Raises InputError for numbers out of range."""

    address: str
    """`local` to start Ray on this machine, `auto` for the cluster that it belongs to, or HOST:PORT of a cluster."""
    replicas: int | None
    """How many; None for as many as there are GPUs for, or one per machine if they need none."""
    gpus: int
    """GPUs of each replica; 0 to run on CPUs."""

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range, and for an address that isn't one."""
        if self.address not in ("local", "auto") and not re.fullmatch(r"[^:/\s]+:\d{1,5}", self.address):
            raise InputError(f"--address is '{self.address}'. Use local, auto or the HOST:PORT of a Ray cluster.")
        if self.replicas is not None and self.replicas < 1:
            raise InputError(f"--replicas is {self.replicas}; it must be 1 or more.")
        if self.gpus < 0:
            raise InputError(f"--gpus-per-replica is {self.gpus}; it must be 0 or more.")

    def shared(self, nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
        """How many replicas run on machines with these resources, and the CPUs of each.

        A replica with GPUs has one CPU; replicas without GPUs share all CPUs. Raises InputError if they don't fit.
        """
        free = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]

        def room(cpus: int) -> int:
            return sum(min(cpu // cpus, gpu // self.gpus if self.gpus else cpu) for cpu, gpu in free)

        number = self.replicas or (room(1) if self.gpus else len(free)) or 1
        if number > room(1):
            where = "this machine" if self.address == "local" else "the cluster"
            cpus, gpus = (sum(some) for some in zip(*free, strict=True))
            have = counted(gpus, "GPU") if self.gpus else counted(cpus, "CPU")
            needs = counted(self.gpus, "GPU") if self.gpus else "a CPU"
            remedy = "Lower --replicas" if room(1) else "Add --gpus-per-replica 0 to use CPUs"
            raise InputError(
                f"Each replica needs {needs}, but {where} has {have}; {room(1)} of {number} would fit. {remedy}."
            )
        return number, 1 if self.gpus else max(takewhile(lambda cpus: room(cpus) >= number, count(1)))
