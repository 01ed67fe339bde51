"""Print notes and progress bars on stderr."""

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from internal_policy.cli.console import Terminal, visible

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task

Update = Callable[..., Any]
"""Changes a progress bar: `description`, `completed`, `advance` and other fields, as in rich."""

err = Terminal(stderr=True, soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """One line on stderr."""
    err.print(escape(text))


def quiet() -> None:
    """Let transformers speak of nothing but errors, and draw progress bars only where a person looks on."""
    import transformers

    transformers.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()


def text_column(said: "Callable[[Task], str]") -> "ProgressColumn":
    """A column of a progress bar that prints what `said` returns as text, without markup or control characters."""
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Column(ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(visible(said(task)))

    return Column()


@contextmanager
def _drawn(title: str, total: int | None, *columns: "ProgressColumn", transient: bool = False) -> Iterator[Update]:
    """A progress bar on stderr, and what updates it; it isn't drawn if stderr isn't a terminal."""
    import rich.progress as rich

    parts = (text_column(lambda task: task.description), rich.BarColumn(bar_width=20), rich.MofNCompleteColumn())
    with rich.Progress(*parts, *columns, console=err, disable=not err.is_terminal, transient=transient) as drawn:
        yield partial(drawn.update, drawn.add_task(title, total=total, rate=0.0))


def tracked(what: str, items: Collection[str]) -> Iterator[str]:
    """The items one by one, with a progress bar that names the current one."""
    with _drawn(what, len(items), transient=True) as update:
        for item in items:
            update(description=f"{what} {item}")
            yield item
            update(advance=1)


def saying_once(text: str) -> Callable[[Any], None]:
    """A function that fills what it is given into `text` and says it, the first time that it is called."""
    said: list[Any] = []

    def say(value: Any) -> None:
        if not said:
            note(text.format(value))
        said.append(value)

    return say


@contextmanager
def bar(what: str, total: int, unit: str = "rollouts") -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is advanced by a number of items and of tokens, with rate and time left."""
    import rich.progress as rich

    rate = text_column(lambda task: f"{unit}, {task.fields['rate']:,.0f} tokens/s,")
    start, seen = time.monotonic(), 0
    with _drawn(what, total, rate, rich.TimeRemainingColumn(), text_column(lambda _: "left")) as update:

        def advance(number: int, tokens: int) -> None:
            nonlocal seen
            seen += tokens
            update(advance=number, rate=seen / (time.monotonic() - start))

        yield advance


@contextmanager
def steps(what: str, total: int | None) -> Iterator[Update]:
    """A progress bar of steps, with the time that has passed and the time left."""
    import rich.progress as rich

    unit, left = text_column(lambda _: "steps"), text_column(lambda _: "left")
    with _drawn(what, total, unit, rich.TimeElapsedColumn(), rich.TimeRemainingColumn(), left) as update:
        yield update
