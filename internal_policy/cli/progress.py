"""Print notes and progress on stderr: a bar on a terminal, elsewhere a line a minute."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from internal_policy.cli.console import Terminal, visible
from internal_policy.cli.pace import MINUTE, Pace, lasting
from internal_policy.errors import InputError
from internal_policy.secrecy import printable

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, Task

Update = Callable[..., Any]
"""Changes a progress bar: `description`, `completed`, `advance` and other fields, as in rich."""

err = Terminal(stderr=True, soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """One line on stderr, without secrets."""
    err.print(escape(printable(text)))


def agreed(question: str, otherwise: str, remedy: str) -> bool:
    """Whether the person at the terminal answers a question with yes.

    Raises InputError if there is no terminal. `otherwise` says what wasn't done, and `remedy` what to do.
    """
    if not sys.stdin.isatty():
        raise InputError(f"{otherwise}, because there is no terminal to confirm on. {remedy}")
    try:
        answer = err.input(f"{escape(question)} \\[y/N] ")
    except EOFError:
        answer = ""
    return answer.strip().lower() in ("y", "yes")


def hush(is_silent: bool) -> None:
    """Turn notes and progress off if another process prints them, or on again."""
    err.quiet = is_silent


def quiet() -> None:
    """Silence all that transformers prints but errors, and its progress bars unless stderr is a terminal."""
    import transformers

    transformers.logging.set_verbosity_error()
    if err.quiet or not sys.stderr.isatty():
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
    with rich.Progress(*parts, *columns, console=err, disable=not err.draws, transient=transient) as drawn:
        yield partial(drawn.update, drawn.add_task(title, total=total))


def tracked(what: str, items: Collection[str]) -> Iterator[str]:
    """The items one by one, with a progress bar that names the current one."""
    with _drawn(what, len(items), transient=True) as update:
        for item in items:
            update(description=f"{what} {item}")
            yield item
            update(advance=1)


def saying_once(text: str) -> Callable[[Any], None]:
    """A function that prints `text` with its argument filled in, but only the first time it is called."""
    said: list[Any] = []

    def say(value: Any) -> None:
        if not said:
            note(text.format(value))
        said.append(value)

    return say


@contextmanager
def bar(what: str, total: int, unit: str = "rollouts") -> Iterator[Callable[[int, int], None]]:
    """Show progress, with rate and time left; the function it yields adds a number of items and of tokens.

    Items without tokens were done by an earlier run. On a terminal it is a bar, elsewhere a line a minute.
    """
    pace = Pace(total)

    def rate() -> str:
        speed = "" if pace.per_second is None else f", {pace.per_second:,.0f} tokens/s"
        return f"{unit}{speed}{_left(pace)}"

    with _drawn(what, total, text_column(lambda _: rate())) as update, _lines(lambda: pace.line(what, unit)):

        def advance(number: int, tokens: int) -> None:
            pace.advance(number, tokens, is_fresh=tokens > 0)
            update(advance=number)

        yield advance


@contextmanager
def counting(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many items of how many are done; the function it yields takes both numbers.

    On a terminal it is a bar that disappears in the end, elsewhere a line a minute.
    """
    pace = Pace(None)
    with (
        _drawn(what, None, text_column(lambda _: unit), transient=True) as update,
        _lines(lambda: pace.line(what, unit)),
    ):

        def reach(done: int, total: int) -> None:
            pace.total = total
            pace.advance(done - pace.done, 0)
            update(completed=done, total=total)

        yield reach


@contextmanager
def steps(what: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
    """Show the steps done and the time left; the function it yields takes the last step and what happened in it.

    On a terminal it is a bar, elsewhere a line a minute.
    """
    pace, news = Pace(total), ""
    columns = text_column(lambda _: f"steps{_left(pace)}")
    with _drawn(what, total, columns) as update, _lines(lambda: pace.line(what, "steps", news)):

        def reach(step: int, words: str) -> None:
            nonlocal news
            news = words
            if not pace.fresh:
                pace.done = step - 1  # those of the run that this one continues
            pace.advance(step - pace.done, 0)
            update(completed=step, description=words)

        yield reach


def _left(pace: Pace) -> str:
    return "" if pace.left is None else f", {lasting(pace.left)} left"


@contextmanager
def _lines(line: Callable[[], str]) -> Iterator[None]:
    """While open, print a line every minute, unless a progress bar is drawn.

    A thread prints them, because a single item may take longer than a minute.
    """
    over = Event()
    thread = Thread(target=speak, args=(line, over.wait), daemon=True)
    if not err.draws:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.ident:
            thread.join()


def speak(line: Callable[[], str], over: Callable[[float], bool]) -> None:
    """Print a line every minute until the work is over. `over` waits up to so many seconds for that."""
    while not over(MINUTE):
        note(line())
