"""Work that doesn't fit into memory is done in halves."""

import pytest
import torch

from internal_policy.models.memory import in_halves

FULL: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def of_at_most(n, error: Exception = FULL):
    """Work that runs out of memory with more than `n` items."""

    def work(part):
        if part.stop - part.start > n:
            raise error
        return list(range(part.start, part.stop))

    return work


def done(work, items):
    """The parts that were done, and the sizes that `smaller` was called with."""
    told = []
    return in_halves(work, items, told.append), told


def test_work_that_fits_is_done_at_once():
    assert done(of_at_most(5), 5) == ([[0, 1, 2, 3, 4]], [])


def test_work_that_does_not_fit_is_done_in_halves_in_order():
    assert done(of_at_most(2), 5) == ([[0, 1], [2], [3, 4]], [3, 2])


def test_only_a_half_that_does_not_fit_is_halved_again():
    def work(part):
        if part.stop - part.start == 4 or part == slice(0, 2):
            raise FULL
        return part

    assert done(work, 4)[0] == [slice(0, 1), slice(1, 2), slice(2, 4)]


def test_a_single_item_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        done(of_at_most(0), 3)


def test_other_errors_are_raised_at_once():
    told = []
    with pytest.raises(RuntimeError, match="a kernel that is missing"):
        in_halves(of_at_most(2, RuntimeError("a kernel that is missing")), 5, told.append)
    assert told == []
