"""Measure the parts of a scan in replicas of the model, which Ray places on this machine or on a cluster."""

import contextlib
import io
import logging
import os
import platform
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal_policy.engines.pool import Pool
from internal_policy.errors import InputError, first_line, require
from internal_policy.scans.shard import Shard, Worker

RETRIES = 3
"""How often a part is measured again after the process that measured it died."""
PATIENCE = 10.0
"""Seconds to wait for an answer from a cluster."""

Counts = tuple[int, int]
"""Numbers of rollouts and response tokens in a part; 0 tokens if an earlier run measured it."""
Load = Callable[[], Callable[..., Any]]
"""Loads the model; returns `job.run` with all its arguments but `worker` and `advance`."""


class Replica:
    """A process that loads the model once and then measures whole parts."""

    def __init__(self, load: Load, folder: Path, gpus: int) -> None:
        """`folder` is where the command runs; relative paths mean the same here, if this machine has it."""
        if gpus == 0:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if folder.is_dir():
            os.chdir(folder)
        self.load = load
        self.run: Callable[..., Any] | None = None

    def start(self) -> None:
        """Load the model."""
        self.run = self.load()

    def measure(self, part: Shard, mark: Path) -> Counts:
        """Measure a part, and finish the scan if no part is left.

        `mark` is a file in the scan's folder. Raises InputError if this machine can't see it.
        """
        if not mark.exists():
            raise InputError(
                f"The machine {platform.node()} doesn't see {mark.parent}. Choose an --output that all machines share."
            )
        run = self.run = self.run or self.load()  # Ray restarts a replica that died without `start`
        seen: list[Counts] = []
        run(worker=Worker(part), advance=lambda *counts: seen.append(counts))
        return seen[0]


@dataclass(frozen=True)
class Team:
    """Running replicas."""

    waiting: dict[Any, Any]
    """Reference to a result that Ray will return -> the replica that computes it."""

    def finished(self) -> Any:
        """The reference to the first result that is ready.

        Raises InputError, or ChildProcessError if a replica died too often.
        """
        import ray
        from ray import exceptions

        (done, *_), _ = ray.wait([*self.waiting])
        try:
            ray.get(done)
        except exceptions.RayTaskError as error:
            raise error.cause from error
        except exceptions.RayActorError as error:
            if "failed to import" in str(error):
                raise InputError(
                    "A machine of the cluster can't import internal-policy. Install the same version on all of them."
                ) from error
            raise ChildProcessError(
                f"A replica died {RETRIES + 1} times at the same part, most likely for lack of memory"
            ) from error
        return done

    def measure(self, todo: Sequence[int], parts: int, mark: Path, advance: Callable[[int, int], None]) -> None:
        """Measure the parts `todo` of a scan with `parts` parts. A replica gets the next when it has finished one.

        `mark` is a file in the scan's folder, and `advance` is called with the counts of each part. Raises the errors
        of `finished`.
        """
        import ray

        left, coming = len(todo), iter(todo)
        with _silenced():
            while left:
                done = self.finished()
                replica, counts = self.waiting.pop(done), ray.get(done)
                if counts is not None:
                    left -= 1
                    advance(*counts)
                if (part := next(coming, None)) is not None:
                    self.waiting[replica.measure.remote(Shard(part, parts), mark)] = replica


@contextlib.contextmanager
def started(load: Load, pool: Pool, parts: int) -> Iterator[Team]:
    """While open, replicas for so many parts. The first of them has loaded the model.

    Raises InputError if the model can't be loaded, and if there is no cluster or it is too small.
    """
    with _connected(pool.address) as ray:
        number, cpus = pool.shared([node["Resources"] for node in ray.nodes() if node["Alive"]])
        actor = ray.remote(num_cpus=cpus, num_gpus=pool.gpus, max_restarts=-1, max_task_retries=RETRIES)(Replica)
        replicas = [actor.remote(load, Path.cwd(), pool.gpus) for _ in range(min(number, parts))]
        team = Team({replica.start.remote(): replica for replica in replicas})
        team.finished()
        yield team


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """While open, Ray, without its output and usage statistics. Raises InputError if there is no such cluster."""
    require("ray", "ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    with _silenced():
        try:
            _join(address)
            yield ray
        finally:
            ray.shutdown()


def _join(address: str) -> None:
    import ray

    where = f"at {address}" if ":" in address else "on this machine"
    dashboard = False if address == "local" else None  # a running cluster has decided
    try:
        if ":" in address:  # Ray itself would wait for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), PATIENCE).close()
        ray.init(address, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"There is no Ray cluster {where}. Start one with `ray start`, or leave out --address."
        ) from error
    except RuntimeError as error:  # such as another version of Ray or Python
        raise InputError(f"Can't join the Ray cluster {where}: {first_line(error)}. Fix that and try again.") from error


def _silenced() -> contextlib.redirect_stdout[Any]:
    """While open, stdout stays empty; Ray would report there which of its processes died."""
    return contextlib.redirect_stdout(io.StringIO())
