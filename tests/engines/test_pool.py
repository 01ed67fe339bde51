"""Dividing machines among replicas."""

import pytest

from internal_policy.engines.pool import Pool
from internal_policy.errors import InputError


def cpus(*numbers: int) -> list[dict[str, float]]:
    """Machines with so many CPUs."""
    return [{"CPU": float(number), "memory": 1e9} for number in numbers]


@pytest.mark.parametrize(
    ("replicas", "machines", "shared"),
    [(2, [2], (2, 1)), (None, [8], (1, 8)), (None, [8, 8, 4], (3, 4)), (3, [8, 8], (3, 4)), (5, [3, 2], (5, 1))],
)
def test_replicas_without_gpus_share_all_cpus(replicas, machines, shared):
    assert Pool("local", replicas, 0).shared(cpus(*machines)) == shared


@pytest.mark.parametrize(
    ("replicas", "gpus", "shared"), [(None, 1, (12, 1)), (3, 1, (3, 1)), (None, 4, (3, 1)), (None, 8, (1, 1))]
)
def test_replicas_on_gpus_have_one_cpu_each(replicas, gpus, shared):
    machines = [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 4.0}]
    assert Pool("auto", replicas, gpus).shared(machines) == shared


@pytest.mark.parametrize(
    ("pool", "machines", "sentence"),
    [
        (
            Pool("local", 3, 0),
            cpus(2),
            "Each replica needs a CPU, but this machine has 2 CPUs; 2 of 3 would fit. Lower --replicas.",
        ),
        (
            Pool("local", None, 1),
            cpus(2),
            "Each replica needs 1 GPU, but this machine has 0 GPUs; 0 of 1 would fit. Add --gpus-per-replica 0 to use "
            "CPUs.",
        ),
        (
            Pool("auto", 2, 4),
            [{"CPU": 8.0, "GPU": 6.0}, {"CPU": 8.0, "GPU": 2.0}],
            "Each replica needs 4 GPUs, but the cluster has 8 GPUs; 1 of 2 would fit. Lower --replicas.",
        ),
    ],
)
def test_more_replicas_than_fit_are_refused(pool, machines, sentence):
    with pytest.raises(InputError) as caught:
        pool.shared(machines)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("ray://there:10001", None, 1), "--address is 'ray://there:10001'. Use local, auto or the HOST:PORT"),
        (("there", None, 1), "--address is 'there'"),
        (("local", 0, 1), "--replicas is 0; it must be 1 or more."),
        (("local", None, -1), "--gpus-per-replica is -1; it must be 0 or more."),
    ],
)
def test_a_pool_that_cannot_be_is_refused(given, sentence):
    with pytest.raises(InputError, match="^" + sentence.replace("(", r"\(")):
        Pool(*given)
