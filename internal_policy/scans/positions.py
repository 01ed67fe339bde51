"""Which positions of a response are measured: all, a range, or every Nth."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from internal_policy.errors import InputError, counted, is_count


@dataclass(frozen=True)
class Positions:
    """Positions of the tokens of a response, from 0."""

    first: int = 0
    """The first position."""
    last: int | None = None
    """The last position; None for the end of the response."""
    every: int = 1
    """Distance between two positions."""

    def __post_init__(self) -> None:
        """Raise InputError for positions that no response has."""
        for number in (self.first, 0 if self.last is None else self.last, self.every):
            if type(number) is not int:
                raise InputError(f"{number!r:.60} isn't a position. Use whole numbers, such as positions=(100, 200).")
        if self.first < 0 or (self.last is not None and self.last < self.first):
            raise InputError(f"The positions are {self.first} to {self.last}. Give a range from 0, such as (100, 200).")
        if self.every < 1:
            raise InputError(f"every is {self.every}; it must be 1 or more.")

    def check(self, longest: int) -> None:
        """Raise InputError if no response reaches these positions; the `longest` has this many tokens."""
        if not self.of(longest):
            raise InputError(
                f"There is nothing to measure at {self}, because responses have at most {counted(longest, 'token')}. "
                "Choose earlier positions."
            )

    def of(self, length: int) -> range:
        """The positions of a response with this many tokens; none if it ends before the first."""
        stop = length if self.last is None else min(length, self.last + 1)
        return range(self.first, max(stop, self.first), self.every)

    def __bool__(self) -> bool:
        """Whether some positions are left out."""
        return self != EVERY

    def __str__(self) -> str:
        """The positions in words; empty for all of them."""
        end = "from {}" if self.last is None else "{} to {}" if self.last > self.first else "{}"
        span = f"position{'' if self.last == self.first else 's'} {end.format(self.first, self.last)}"
        if self.every == 1:
            return span if self else ""
        return f"every {_ordinal(self.every)} token{f' of {span}' if self.first or self.last is not None else ''}"

    @property
    def note(self) -> str:
        """That the others weren't measured, in a sentence; empty if all were."""
        are = "were" if self.every == 1 and self.last != self.first else "was"
        return f"Only {self} {are} measured." if self else ""


EVERY = Positions()
"""All positions."""


def parse(text: str | None) -> tuple[int, int | None]:
    """Read `0-99`, `100-` or `7`: the first position and the last, None for the end. Raises InputError."""
    if text is None:
        return 0, None
    first, dash, last = text.partition("-")
    if not is_count(first) or (last and not is_count(last)) or (last and int(last) < int(first)):
        raise InputError(f"--positions is '{text:.60}'. Write a range such as 0-99, 100- or 7.")
    return int(first), int(last) if last else None if dash else int(first)


def within(measured: range, first: int, last: int | None) -> range:
    """Those of the `measured` positions that are between two others; None for no last one."""
    start = measured.start + max(0, -(-(first - measured.start) // measured.step)) * measured.step
    stop = measured.stop if last is None else min(measured.stop, last + 1)
    return range(start, max(stop, start), measured.step)


def of_record(record: Mapping[str, Any]) -> Positions:
    """The positions that a scan measured, from its record; older scans measured all."""
    return Positions(**record["selection"].get("positions", {}))


def recorded(selection: Any) -> dict[str, Any]:
    """A selection as it is recorded: without its positions if they are all."""
    found = asdict(selection)
    return found if selection.positions else {name: value for name, value in found.items() if name != "positions"}


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if number % 100 in (11, 12, 13) else ending}"
