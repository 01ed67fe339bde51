"""Measure how fast the dashboard answers, how much it sends and how much memory it needs: python benchmarks/look.py.

It joins the bundled scan of a language model into responses of 96 and 700 tokens, and times in a headless Chromium what
a reader does on the page Tokens. Then it opens every page on a large synthetic scan, with the depth of Qwen3-4B, and
reports the server's memory. --scan measures another scan, --large-rollouts 0 leaves out the large one.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil
import tyro
from look_scans import join, make

from internal_policy import bundle
from internal_policy.scans import store

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

PAGES = {"Overview": "", "Tokens": "tokens", "Compare": "compare", "Geometry": "geometry"}
"""Title of a page -> its path."""
GOALS = {"clicked cell": 0.1, "another measure": 0.3, "another rollout": 1.0, "new tab": 2.0}
"""What a reader does -> seconds after which the answer should be visible."""
PIERCE = """
  const find = (selector, from = document) => {
    const here = from.querySelector(selector);
    if (here) return here;
    for (const host of from.querySelectorAll("*")) {
      const found = host.shadowRoot && find(selector, host.shadowRoot);
      if (found) return found;
    }
    return null;
  };"""
"""A function that also finds elements in shadow roots, where Streamlit puts components."""
IDLE = """document.querySelector("[data-testid=stApp]")?.dataset.testScriptState === "notRunning" """
READY = f"""() => {{ {PIERCE} return {IDLE} && Boolean(find(".lens-grid[data-ready] .lg-line .lg-cell")); }}"""
"""Whether the lens grid has cells."""
SHOWN = f"""([selector, before]) => {{ {PIERCE}
  const text = find(selector)?.textContent;
  return Boolean(text) && text !== before; }}"""
"""Whether an element has another text than before."""
DRAWN = f"""() => {{
  const charts = [...document.querySelectorAll("[data-testid=stPlotlyChart]")];
  return {IDLE} && charts.every((chart) => chart.querySelector(".g-gtitle text")); }}"""
"""Whether the page is there and each of its charts has its title, which plotly draws last."""
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@dataclass(frozen=True)
class Benchmark:
    """Measure how fast the dashboard answers, how much it sends and how much memory it needs."""

    scan: Path | None = None
    """Scan to time, whose first two rollouts are measured; by default one of 96 and 700 tokens, made of the bundled."""
    runs: int = 5
    """Times that each thing is done after the first."""
    json: bool = False
    """Print JSON instead of a table."""
    large: Path = Path("/tmp/internal-policy-large-scan")
    """Folder for the large scan (about 9 GB); an existing one is reused."""
    large_rollouts: int = 500
    """Rollouts in the large scan; 0 leaves it out."""
    large_tokens: int = 1000
    """Tokens in each of its rollouts."""
    large_layers: int = 36
    """Layers of its model."""
    chromium: Path = Path("/usr/bin/chromium")
    """Path of the browser."""


@dataclass(frozen=True)
class Result:
    """A line of the table."""

    what: str
    """What was done or measured."""
    first: float
    """The first time, in the unit."""
    median: float
    """Median of the other times."""
    unit: str
    """s, KB or MB."""
    goal: float | None = None
    """At most this, if there is a goal."""


def result(what: str, values: list[float], unit: str, goal: float | None = None) -> Result:
    """The first of some values, and the median of the others."""
    return Result(what, values[0], median(values[1:] or values), unit, goal)


class Reader:
    """Someone at a browser, with a watch and the bytes that came over the websocket."""

    def __init__(self, context: "BrowserContext", url: str, scan: Path) -> None:
        """`scan` is the folder whose pages are opened at the dashboard's address `url`."""
        self.context, self.url, self.scan, self.received = context, url, scan, 0

    def opened(self, path: str, ready: str) -> "tuple[Page, float]":
        """A page in a new tab, and the seconds until it is ready."""
        page = self.context.new_page()
        page.on("websocket", lambda socket: socket.on("framereceived", self._count))
        start = time.monotonic()
        page.goto(f"{self.url}/{path}{'&' if '?' in path else '?'}scan={self.scan}")
        page.wait_for_function(ready, timeout=600_000)
        return page, time.monotonic() - start

    def _count(self, frame: str | bytes) -> None:
        self.received += len(frame)

    def until(self, page: "Page", selector: str, act: Callable[[], object]) -> float:
        """Seconds from an act until the text of an element has changed."""
        before = page.locator(selector).first.text_content()
        start = time.monotonic()
        act()
        page.wait_for_function(SHOWN, arg=[selector, before], timeout=120_000)
        return time.monotonic() - start

    def tabs(self, rollout: int, times: int) -> list[float]:
        """Seconds until the grid of a rollout is there, in new tabs."""
        seconds = []
        for _ in range(times):
            page, passed = self.opened(f"tokens?readout=norm&rollout={rollout}", READY)
            seconds.append(passed)
            page.close()
        return seconds

    def clicks(self, page: "Page", times: int) -> list[float]:
        """Seconds from a click on a cell until the panel shows it."""
        cells = page.locator(".lg-line .lg-cell:visible")
        seconds = []
        for number in range(times):
            cell = cells.nth(8 + 3 * number)
            cell.scroll_into_view_if_needed()
            box = cell.bounding_box()
            assert box is not None
            at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            seconds.append(self.until(page, ".lg-headline", lambda at=at: page.mouse.click(*at)))
            page.keyboard.press("Escape")
        return seconds

    def measures(self, page: "Page", times: int) -> list[float]:
        """Seconds from another measure until the grid is coloured by it."""
        box = page.get_by_label("Colour by", exact=True)
        names = ["entropy", "kl", "rank", "probability"]
        chosen = [names[number % len(names)] for number in range(times)]
        return [self.until(page, ".lg-what", lambda name=name: box.select_option(name)) for name in chosen]

    def rollouts(self, page: "Page", times: int) -> tuple[list[float], list[float]]:
        """Seconds from another rollout until its tokens are there, and the KB that came."""
        seconds, received = [], []
        for number in range(times):
            button = page.locator(f".st-key-{'previous' if number % 2 else 'next'} button")
            self.received = 0
            seconds.append(self.until(page, ".lg-text", button.click))
            page.wait_for_function(READY)
            page.wait_for_timeout(500)
            received.append(self.received / 1e3)
        return seconds, received


def answers(reader: Reader, times: int) -> Iterator[Result]:
    """Time what a reader does on the page Tokens."""
    tabs = [reader.tabs(rollout, times) for rollout in (0, 1)]
    page, _ = reader.opened("tokens?readout=norm&rollout=0", READY)
    page.wait_for_timeout(1000)
    yield result("clicked cell", reader.clicks(page, times), "s", GOALS["clicked cell"])
    yield result("another measure", reader.measures(page, times), "s", GOALS["another measure"])
    seconds, received = reader.rollouts(page, 2 * times)
    sizes = _lengths(reader.scan)
    for first, rollout in enumerate((1, 0)):  # it goes to the second, and back to the first
        yield result(f"another rollout, {sizes[rollout]} tokens", seconds[first::2], "s", GOALS["another rollout"])
        yield result(f"sent for {sizes[rollout]} tokens", received[first::2], "KB")
    for rollout, passed in enumerate(tabs):
        yield result(f"new tab, {sizes[rollout]} tokens", passed, "s", GOALS["new tab"])


def _lengths(scan: Path) -> list[int]:
    """Tokens of the first two rollouts."""
    found = store.read(scan, "rollouts", ["rollout", "response_ids"]).sort_values("rollout")["response_ids"]
    return [len(ids) for ids in found.iloc[:2]]


def pages(reader: Reader, times: int) -> Iterator[Result]:
    """Time every page of the large scan."""
    for name, path in PAGES.items():
        seconds = []
        for _ in range(times):
            page, passed = reader.opened(path, READY if path == "tokens" else DRAWN)
            seconds.append(passed)
            page.close()
        yield result(f"{name}, large scan", seconds, "s")


@contextmanager
def dashboard(scan: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start the dashboard, which may open a scan; its address and process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = [sys.executable, "-m", "streamlit", "run", str(bundle.APP / "main.py")]
    command = [*app, "--server.port", str(port), "--", str(scan)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    try:
        while not _listens(port):
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def memory(server: psutil.Process) -> Iterator[Result]:
    """The server's memory now, and its peak where the system knows it."""
    yield result("memory of the server", [server.memory_info().rss / 1e6], "MB")
    status = Path(f"/proc/{server.pid}/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        yield result("peak memory of the server", [int(peak.split()[1]) / 1e3], "MB")


def measured(scan: Path, chromium: Path, act: Callable[[Reader], Iterator[Result]]) -> Iterator[Result]:
    """Serve a scan to a reader; yield what was measured and the server's memory."""
    from playwright.sync_api import sync_playwright

    with dashboard(scan) as (url, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(chromium), args=CHROMIUM)
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        yield from act(Reader(context, url, scan))
        browser.close()
        yield from memory(server)


def results(options: Benchmark) -> Iterator[Result]:
    """Everything that is measured, line by line."""
    times = 1 + options.runs
    scan = options.scan or options.large.with_name(f"{options.large.name}-joined")
    if options.scan is None:
        shutil.rmtree(scan, ignore_errors=True)
        join(scan)
    yield from measured(scan, options.chromium, lambda reader: answers(reader, times))
    if not options.large_rollouts:
        return
    if not (options.large / store.RECORD).exists():
        shutil.rmtree(options.large, ignore_errors=True)
        make(options.large, options.large_rollouts, options.large_tokens, options.large_layers)
    size = sum(path.stat().st_size for path in options.large.iterdir())
    yield result("large scan on disk", [size / 1e6], "MB")
    yield from measured(options.large, options.chromium, lambda reader: pages(reader, times))


def main(options: Benchmark) -> None:
    """Print every result as it comes, or all as JSON."""
    if options.json:
        print(json.dumps([asdict(each) for each in results(options)], indent=1))
        return
    print(f"{'':<32}{'first':>10}{'median':>10}{'goal':>8}")
    for each in results(options):
        form = ".2f" if each.unit == "s" else ",.0f"
        goal = "" if each.goal is None else f"{each.goal:>6g} s{'' if each.median <= each.goal else '  missed'}"
        print(
            f"{each.what:<32}{each.first:>8{form}} {each.unit:<2}{each.median:>7{form}} {each.unit:<2}{goal}",
            flush=True,
        )


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
