"""How far work has got, by a clock that only moves when it is told to."""

import io
import re
import threading

import pytest

from internal_policy.__main__ import main
from internal_policy.cli import progress
from internal_policy.cli.console import Terminal
from internal_policy.cli.pace import Pace, lasting


class Clock:
    """A clock that is moved by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said(monkeypatch) -> io.StringIO:
    """What is printed on stderr, which isn't a terminal."""
    file = io.StringIO()
    monkeypatch.setattr(progress, "err", Terminal(file=file, width=200, soft_wrap=True, highlight=False))
    return file


def test_the_time_left_follows_from_the_speed_so_far(clock):
    pace = Pace(64, clock)
    clock.now += 30
    pace.advance(8, 2400)
    assert (pace.per_item, pace.per_second, pace.left) == (30 / 8, 80, 56 * 30 / 8)


def test_the_time_left_falls_while_an_item_takes_long_but_never_below_0(clock):
    pace = Pace(4, clock)
    clock.now += 100
    pace.advance(2, 10)
    clock.now += 50
    assert pace.left == 50
    clock.now += 1000
    assert pace.left == 0
    assert pace.per_second == 0.1


def test_nothing_is_known_before_the_first_item(clock):
    pace = Pace(64, clock)
    clock.now += 120
    assert (pace.per_item, pace.per_second, pace.left) == (None, None, None)
    assert pace.line("Scanning", "rollouts") == "Scanning: 0 of 64 rollouts, 2 min so far."


def test_what_an_earlier_run_did_counts_as_done_but_not_as_speed(clock):
    pace = Pace(100, clock)
    clock.now += 5
    pace.advance(60, 0, is_fresh=False)
    clock.now += 10
    pace.advance(10, 500)
    assert (pace.done, pace.per_item, pace.per_second, pace.left) == (70, 1, 50, 30)


def test_a_line_has_what_is_done_the_speed_and_the_time_left(clock):
    pace = Pace(64, clock)
    clock.now += 60
    pace.advance(16, 120_000)
    assert pace.line("Scanning", "rollouts") == "Scanning: 16 of 64 rollouts, 2,000 tokens/s, about 3 min left."


def test_steps_without_tokens_have_the_time_of_each_instead(clock):
    pace = Pace(120, clock)
    clock.now += 32
    pace.advance(10, 0)
    said = "Training: 10 of 120 steps, 3.2 s each, about 6 min left; reward 0.50"
    assert pace.line("Training", "steps", "reward 0.50") == said


def test_without_a_total_the_time_so_far_is_said(clock):
    pace = Pace(None, clock)
    clock.now += 4000
    pace.advance(1, 8000)
    assert pace.line("Training", "steps") == "Training: 1 steps, 2 tokens/s, 1 h 10 min so far."


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (59.0, "59 s"),
        (59.7, "1 min"),
        (150.0, "2 min"),
        (59.6 * 60, "1 h"),
        (80.0 * 60, "1 h 20 min"),
        (23.99 * 3600, "1 day"),
        (51.0 * 3600, "2 days 3 h"),
    ],
)
def test_a_length_of_time_in_words(seconds, words):
    assert lasting(seconds) == words


def test_a_line_is_said_each_minute_until_it_is_over(said, clock):
    waited = []

    def over(seconds: float) -> bool:
        clock.now += seconds
        waited.append(seconds)
        return len(waited) == 4

    pace = Pace(10, clock)
    progress.speak(lambda: pace.line("Scanning", "rollouts"), over)
    assert waited == [60] * 4
    lines = [f"Scanning: 0 of 10 rollouts, {minutes} min so far." for minutes in (1, 2, 3)]
    assert said.getvalue().splitlines() == lines


def waiting(monkeypatch) -> threading.Event:
    """Let each minute last until the event is set, then be over at once; work that ends ends the waiting."""
    minute = threading.Event()

    class Wait(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            while not self.is_set() and not minute.is_set():
                super().wait(0.001)
            minute.clear()
            return self.is_set()

    monkeypatch.setattr(progress, "Event", Wait)
    return minute


@pytest.mark.parametrize("kind", ["bar", "steps"])
def test_without_a_terminal_nothing_is_said_of_work_that_takes_less_than_a_minute(kind, said, monkeypatch):
    waiting(monkeypatch)
    before = threading.active_count()
    if kind == "bar":
        with progress.bar("Scanning", 3) as advance:
            for _ in range(3):
                advance(1, 10)
    else:
        with progress.steps("Training", 3) as reach:
            for step in range(1, 4):
                reach(step, "reward 0.50")
    assert said.getvalue() == ""
    assert threading.active_count() == before


@pytest.mark.parametrize("kind", ["bar", "steps"])
def test_without_a_terminal_work_that_takes_a_minute_is_not_silent(kind, said, monkeypatch):
    minute, heard = waiting(monkeypatch), threading.Event()
    note = progress.note
    monkeypatch.setattr(progress, "note", lambda text: (note(text), heard.set()))
    if kind == "bar":
        with progress.bar("Scanning a[b]", 3) as advance:
            advance(2, 10)
            minute.set()
            assert heard.wait(30)
        assert said.getvalue().startswith("Scanning a[b]: 2 of 3 rollouts, ")
    else:
        with progress.steps("Training", 9) as reach:
            reach(5, "reward 0.50")  # continues a run of 4 steps
            reach(6, "reward 0.75")
            minute.set()
            assert heard.wait(30)
        assert said.getvalue().startswith("Training: 6 of 9 steps, ")
        assert said.getvalue().endswith("left; reward 0.75\n")


def test_on_a_terminal_there_is_a_bar_with_the_time_left_and_no_line(monkeypatch):
    file = io.StringIO()
    terminal = Terminal(file=file, width=80, force_terminal=True, force_interactive=True, color_system=None)
    monkeypatch.setattr(progress, "err", terminal)
    threads = []
    monkeypatch.setattr(progress, "speak", lambda *_: threads.append(1))
    with progress.bar("Scanning", 4) as advance:
        advance(2, 10)
    assert re.search(r"2/4 rollouts, [\d,]+ tokens/s, \d+ s left", file.getvalue())
    assert not threads


def test_a_scan_that_continues_tells_apart_what_was_measured_before(asked, here, monkeypatch):
    told = []

    def bar(*_, **__):
        from contextlib import nullcontext

        return nullcontext(lambda number, tokens: told.append((number, tokens > 0)))

    monkeypatch.setattr(progress, "bar", bar)
    assert main([*asked, "--output", "mine"]) == 0
    assert told == [(4, True), (4, True), (2, True)]
    (here / "mine" / "scan.json").unlink()
    (here / "mine" / "layers-00001.parquet").unlink()
    told.clear()
    assert main([*asked, "--output", "mine"]) == 0
    assert told == [(4, False), (4, True), (2, False)]
