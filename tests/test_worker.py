"""Calls in a worker process return, raise or are stopped."""

import pytest

from internal_policy.worker import Worker


def nothing() -> None:
    """Prepares nothing."""


def raises() -> None:
    raise RuntimeError("from the called function")


def broken() -> None:
    raise ValueError("from the preparation")


@pytest.fixture
def worker():
    found = Worker(nothing)
    yield found
    found.close()


def test_a_runtime_error_of_the_called_function_is_raised_as_it_is(worker):
    with pytest.raises(RuntimeError, match="from the called function"):
        worker.call(raises, timeout=10.0)


def test_a_worker_that_cannot_be_prepared_is_reported():
    found = Worker(broken)
    with pytest.raises(RuntimeError, match="couldn't start a worker process"):
        found.call(nothing, timeout=10.0)
    found.close()
