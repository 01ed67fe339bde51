"""Which parts of the work a process does, from --shard and the environment of launchers and SLURM."""

import pytest

from internal_policy.errors import InputError
from internal_policy.scans.shard import ALONE, Shard, Worker, worker_of

LAUNCHED = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
TASKS = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "1"}


def test_shards_have_every_part_once():
    shares = [list(Shard(index, 3).parts(range(8))) for index in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_the_size_of_a_shard_counts_a_shorter_last_part():
    assert [Shard(index, 3).size(14, 4) for index in range(3)] == [4 + 2, 4, 4]
    assert Shard(3, 4).size(8, 4) == 0


@pytest.mark.parametrize(
    ("shard", "environment", "worker"),
    [
        (None, {}, ALONE),
        (None, TASKS | ARRAY, ALONE),  # an sbatch script with one task sets these too
        (None, {"RANK": "0", "WORLD_SIZE": "1"}, ALONE),
        ("0/1", {}, ALONE),
        ("3/16", {}, Worker(Shard(3, 16))),
        (None, LAUNCHED, Worker(Shard(), 5, 8, 1)),
        ("auto", LAUNCHED, Worker(Shard(), 5, 8, 1)),
        ("3/16", LAUNCHED, Worker(Shard(3, 16), 5, 8, 1)),
        ("auto", TASKS, Worker(Shard(), 3, 4, 0)),
        ("auto", TASKS | LAUNCHED, Worker(Shard(), 5, 8, 1)),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"}, Worker(Shard(3, 4))),
        ("auto", ARRAY | {"SLURM_ARRAY_TASK_ID": "2"}, Worker(Shard(1, 4))),
        ("auto", ARRAY | TASKS | {"SLURM_ARRAY_TASK_ID": "1"}, Worker(Shard(0, 4), 3, 4, 0)),
        ("auto", {**ARRAY, **LAUNCHED, "SLURM_ARRAY_TASK_ID": "1"}, Worker(Shard(0, 4), 5, 8, 1)),
    ],
)
def test_a_worker_is_known_from_the_option_and_the_environment(shard, environment, worker):
    assert worker_of(shard, environment) == worker


@pytest.mark.parametrize(
    ("shard", "environment", "sentence"),
    [
        ("16/16", {}, r"There is no shard 16/16\. Shards count from 0; with 16 shards they are 0/16 to 15/16\."),
        ("0/0", {}, r"There is no shard 0/0\. Shards count from 0\."),
        ("-1/4", {}, r"--shard is '-1/4'\. Write I/N with I from 0, such as 0/4 to 3/4, or auto\."),
        ("3", {}, "Write I/N"),
        ("auto", {}, "found no SLURM array, no srun tasks and no launcher such as torchrun"),
        ("auto", {"WORLD_SIZE": "1", "RANK": "0"}, "found no SLURM array"),
        ("auto", ARRAY, r"ids aren't evenly spaced \(7 is one of 4\)\. Give --shard \$SLURM_ARRAY_TASK_ID/N"),
        (None, {"RANK": "x", "WORLD_SIZE": "2"}, "variable RANK is 'x', but a whole number is needed"),
        (None, {"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE is 2, but ranks count from 0"),
    ],
)
def test_what_cannot_be_a_shard_is_refused(shard, environment, sentence):
    with pytest.raises(InputError, match=sentence):
        worker_of(shard, environment)


def test_only_the_first_process_of_a_launcher_leads():
    assert [Worker(Shard(3, 16), rank, 2).leads for rank in (0, 1)] == [True, False]
    assert ALONE.is_alone
    assert not any(worker.is_alone for worker in (Worker(Shard(0, 2)), Worker(Shard(), 0, 2)))
