"""Serve the dashboard and open its pages in a real browser."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

ROOT = Path(__file__).parents[1]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
DRAWN = ".js-plotly-plot .plot-container"
HOSTILE = (
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "$x$\x1b[31m\u202eturned\0",
    "[a](http://evil.example) www.evil.example a@evil.example",
    "![a](http://evil.example/a.png)" + "long" * 25_000,
)
WAIT = 30_000
"""Milliseconds, long enough for a busy machine."""
expect.set_options(timeout=WAIT)
WHITE = "rgb(255, 255, 255)"


@contextmanager
def serving(home: Path, folder: Path, *named: Path, **environment: str) -> Iterator[str]:
    """Start a dashboard with its cache in `folder`, which may open the folders `named` too, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(home / "app" / "main.py"), "--server.port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--", *map(str, named)],
            env={**os.environ, "INTERNAL_POLICY_CACHE": str(folder / "cache"), **environment},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    with stopped(process):
        wait_for(process, port, folder / "server.log")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def stopped(process: subprocess.Popen) -> Iterator[None]:
    """Stop a server at the end of the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen, port: int, log: Path) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            if asked(port, "/_stcore/health")[0] == 200:
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the dashboard did not start:\n{log.read_text()}")


def asked(port: int, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and text of the response to a request."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        with connection.getresponse() as answer:
            return answer.status, b"" if answer.status == 101 else answer.read()


@contextmanager
def tab(browser: Browser) -> Iterator[Page]:
    """A new browser window. A request to any other machine is refused and fails the test."""
    left: list[str] = []

    def guard(route: Route) -> None:
        if urlsplit(route.request.url).hostname in ("127.0.0.1", "localhost", None):
            route.continue_()
        else:
            left.append(route.request.url)
            route.abort()

    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    try:
        context.route("**/*", guard)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        yield page
        context.unroute_all(behavior="ignoreErrors")
    finally:
        context.close()
    assert not left


def settle(page: Page) -> None:
    """Wait until the script has finished."""
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")


def opened(page: Page, address: str, drawn: str = DRAWN) -> Page:
    """Open a page, and wait for an element and the end of the script."""
    page.goto(address)
    page.wait_for_selector(drawn)
    settle(page)
    assert not page.locator("[data-testid=stException]").count()
    return page


def chosen(page: Page) -> dict[str, str]:
    """The parameters in the address."""
    return {name: values[-1] for name, values in parse_qs(urlsplit(page.url).query).items()}


def field(page: Page, key: str) -> Locator:
    """The text box of a widget."""
    return page.locator(f".st-key-{key} input")
