"""Divide the parts of some work among processes."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from internal_policy.errors import InputError

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Variables of `accelerate launch` and torchrun: a process's number, how many there are, its number on its machine."""
TASKS = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
"""The same of srun."""
ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")
"""Variables of a SLURM array job: a task's id, how many tasks there are, the first id, and the step between ids."""


@dataclass(frozen=True)
class Shard:
    """A share of the parts: every `count`-th, from number `index`."""

    index: int = 0
    """Number of the share, from 0."""
    count: int = 1
    """How many shares there are."""

    def __post_init__(self) -> None:
        """Raise InputError for numbers out of range."""
        if self.count < 1 or not 0 <= self.index < self.count:
            last = f"; with {self.count} shards they are 0/{self.count} to {self.count - 1}/{self.count}"
            raise InputError(f"There is no shard {self}. Shards count from 0{last if self.count > 0 else ''}.")

    def __str__(self) -> str:
        """As it is typed: 3/16."""
        return f"{self.index}/{self.count}"

    def parts(self, parts: Sequence[int]) -> Sequence[int]:
        """Those of `parts`, which are all parts in order, that this share has."""
        return parts[self.index :: self.count]

    def size(self, total: int, batch_size: int) -> int:
        """How many of `total` items this share has, where each part has `batch_size` but for the last."""
        return sum(min(batch_size, total - first) for first in self.parts(range(0, total, batch_size)))


WHOLE = Shard()
"""All parts."""


@dataclass(frozen=True)
class Worker:
    """A process among those that do some work together."""

    shard: Shard = WHOLE
    """The parts to do. Processes with the same shard take turns."""
    rank: int = 0
    """Number among the processes that one launcher started; the first waits for the others and has the result."""
    size: int = 1
    """How many processes the launcher started."""
    local: int | None = None
    """Number among them on this machine; None if it isn't known."""

    @property
    def leads(self) -> bool:
        """Whether this process waits for those with the same shard, and finishes the work once all parts are done."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether no others were started with it."""
        return self.size == self.shard.count == 1


ALONE = Worker()


def worker_of(shard: str | None, environment: Mapping[str, str]) -> Worker:
    """The worker that --shard and the environment describe. Raises InputError for what can't be understood.

    Processes that `accelerate launch` or torchrun started take turns, also without --shard. With `auto` a task of a
    SLURM array has a shard, and the tasks that srun started within it take turns, unless a launcher started them.
    """
    launched = _together(LAUNCHED, environment)
    if shard != "auto":
        return Worker(WHOLE if shard is None else parse(shard), *launched or (0, 1, None))
    of_array = _of_array(environment)
    tasks = launched or _together(TASKS, environment)
    if of_array is None and tasks is None:
        raise InputError(
            "--shard auto found no SLURM array, no srun tasks and no launcher such as torchrun. Give the shard as I/N, "
            "such as 0/4, or leave out --shard."
        )
    return Worker(of_array or WHOLE, *tasks or (0, 1, None))


def parse(text: str) -> Shard:
    """A shard as it is typed, such as 3/16. Raises InputError."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match:
        raise InputError(f"--shard is '{text:.40}'. Write I/N with I from 0, such as 0/4 to 3/4, or auto.")
    return Shard(int(match[1]), int(match[2]))


def _together(names: Sequence[str], environment: Mapping[str, str]) -> tuple[int, int, int | None] | None:
    """Rank, size and local rank from three variables; None unless there are at least two processes."""
    rank, size, local = (_number(name, environment) for name in names)
    if rank is None or size is None or size < 2:
        return None
    if not 0 <= rank < size:
        raise InputError(f"{names[0]} is {rank} and {names[1]} is {size}, but ranks count from 0. Unset both.")
    return rank, size, local


def _of_array(environment: Mapping[str, str]) -> Shard | None:
    """The shard of a task of a SLURM array; None outside of one."""
    task, count, first, step = (_number(name, environment) for name in ARRAY)
    if task is None or count is None:
        return None
    index, rest = divmod(task - (first or 0), step or 1)
    if rest or not 0 <= index < count:
        raise InputError(
            f"--shard auto can't number the tasks of this SLURM array, because their ids aren't evenly spaced ({task} "
            f"is one of {count}). Give --shard $SLURM_ARRAY_TASK_ID/N, with the N that the other tasks have."
        )
    return Shard(index, count)


def _number(name: str, environment: Mapping[str, str]) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not re.fullmatch(r"-?\d{1,9}", text):
        raise InputError(f"The environment variable {name} is '{text:.40}', but a whole number is needed. Unset it.")
    return int(text)
