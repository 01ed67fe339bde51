"""Show progress in a notebook: a bar below the cell that goes away when the work is done, without widgets."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

OFTEN = 0.2
"""Seconds between two drawings of a bar."""
Advance = Callable[[int], None]
"""Called with how many more are done."""


@dataclass(frozen=True)
class Bar:
    """How far some work is."""

    what: str
    """What is being done."""
    done: int
    total: int
    unit: str
    """What is counted."""
    seconds: float
    """Since the start."""

    def __repr__(self) -> str:
        """In words, such as `Scanning: 8 of 16 rollouts, 4 s left`."""
        left = self.seconds / self.done * (self.total - self.done) if self.done else None
        words = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}"
        return words if left is None else f"{words}, {_lasting(left)} left"

    def _repr_html_(self) -> str:
        """As a bar and in words."""
        bar = f'<progress value="{self.done}" max="{self.total}" style="vertical-align:middle"></progress>'
        return f"<div>{bar} {escape(repr(self))}</div>"


class Nothing:
    """What takes the place of a bar when the work is done."""

    def __repr__(self) -> str:
        """Empty."""
        return ""

    def _repr_html_(self) -> str:
        """Empty."""
        return ""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook: Jupyter, Colab, VS Code and others, but not IPython itself."""
    shell = sys.modules.get("IPython")
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


@contextmanager
def bar(what: str, total: int, unit: str = "rollouts") -> Iterator[Advance]:
    """Show a bar in a notebook while this is open; the function it yields counts. Elsewhere nothing is shown."""
    if not in_notebook():
        yield lambda _: None
        return
    from IPython.display import display

    start = drawn = monotonic()
    done = 0
    handle = cast("DisplayHandle", display(Bar(what, 0, total, unit, 0.0), display_id=True))

    def advance(number: int) -> None:
        nonlocal done, drawn
        done += number
        now = monotonic()
        if now - drawn >= OFTEN:
            drawn = now
            handle.update(Bar(what, done, total, unit, now - start))

    try:
        yield advance
    finally:
        handle.update(Nothing())


@contextmanager
def without_text_bars() -> Iterator[None]:
    """In a notebook without ipywidgets, hide the bar of transformers, which would leave its text below the cell.

    Downloads keep theirs. With ipywidgets, and outside of notebooks, all bars are left as they are.
    """
    if not in_notebook() or find_spec("ipywidgets") is not None:
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    was_shown, downloads_shown = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if downloads_shown:
        enable_progress_bars()
    try:
        yield
    finally:
        if was_shown:
            logging.enable_progress_bar()


def _lasting(seconds: float) -> str:
    """A time in words, such as `40 s` or `12 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
