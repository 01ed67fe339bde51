"""Say on stderr what goes on, and how far long work is."""

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.markup import escape

from internal_policy.cli.console import Terminal, visible

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task

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


def tracked(what: str, items: Collection[str]) -> Iterator[str]:
    """The items one by one, each named on stderr while it takes its time; nothing where stderr is no terminal."""
    import rich.progress as rich

    columns = (text_column(lambda task: task.description), rich.BarColumn(), rich.MofNCompleteColumn())
    with rich.Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as drawn:
        task = drawn.add_task(what, total=len(items))
        for item in items:
            drawn.update(task, description=f"{what} {item}")
            yield item
            drawn.advance(task)


def saying_once(text: str) -> Callable[[int], None]:
    """A function that fills its number into `text` and says it, the first time that it is called."""
    said: list[int] = []

    def say(number: int) -> None:
        if not said:
            note(text.format(number))
        said.append(number)

    return say


@contextmanager
def bar(what: str, total: int, unit: str = "rollouts") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, with rate and time left; nothing where stderr is no terminal."""
    import rich.progress as rich

    drawn = rich.Progress(
        text_column(lambda task: task.description),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        text_column(lambda task: f"{unit}, {task.fields['rate']:,.0f} tokens/s,"),
        rich.TimeRemainingColumn(),
        rich.TextColumn("left"),
        console=err,
        disable=not err.is_terminal,
    )
    with drawn:
        task, start, seen = drawn.add_task(what, total=total, rate=0.0), time.monotonic(), 0

        def advance(number: int, tokens: int) -> None:
            nonlocal seen
            seen += tokens
            drawn.update(task, advance=number, rate=seen / (time.monotonic() - start))

        yield advance
