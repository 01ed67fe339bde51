"""Halve a batch when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

Result = TypeVar("Result")


def in_halves(work: Callable[[slice], Result], items: int, smaller: Callable[[int], None]) -> list[Result]:
    """The results of `work` over slices of so many `items`, in order: all at once, or in halves when memory runs out.

    `smaller` is told the size of the larger half each time. An error of any other kind, or at a single item, is raised.
    """

    def halves(start: int, stop: int) -> list[Result]:
        try:
            return [work(slice(start, stop))]
        except RuntimeError as error:
            if stop - start == 1 or not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)
        half = (stop - start + 1) // 2
        smaller(half)
        return halves(start, start + half) + halves(start + half, stop)

    return halves(0, items)
