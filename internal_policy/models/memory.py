"""Halve a batch when memory runs out."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from internal_policy.errors import is_out_of_memory

Result = TypeVar("Result")


def in_halves(work: Callable[[slice], Result], items: int, smaller: Callable[[int], None]) -> list[Result]:
    """The results of `work` over slices of `items` items, in order: all at once, or in halves when memory runs out.

    `smaller` is called with the size of the larger half each time. Raises any other error, and one at a single item.
    """

    def halves(start: int, stop: int) -> list[Result]:
        try:
            return [work(slice(start, stop))]
        except (RuntimeError, MemoryError) as error:
            if stop - start == 1 or not (is_out_of_memory(error) or should_reduce_batch_size(error)):
                raise
        clear_device_cache(garbage_collection=True)
        half = (stop - start + 1) // 2
        smaller(half)
        return halves(start, start + half) + halves(start + half, stop)

    return halves(0, items)
