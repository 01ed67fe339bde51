"""The process that measures a prompt ends with its tab and with the dashboard, however they end."""

import asyncio
import importlib
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest
from browsing import ROOT

pytest.importorskip("streamlit")
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.exceptions import WebSocketException

pytestmark = pytest.mark.slow
SOON = 10.0
"""Seconds in which every process has to end, on a busy machine."""
LOADED = 150e6
"""Bytes that a worker uses once it has imported PyTorch."""


@pytest.fixture
def sessions(monkeypatch) -> Any:
    """The module of benchmarks/sessions.py, which speaks the dashboard's protocol."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("sessions")


async def asked(sessions: Any, port: int) -> Any:
    """A tab that has just asked for a long response."""
    tab = sessions.Tab(await sessions.opened(port), random.Random(0), "prompt?")
    assert [said async for said in tab.run()] == []
    named = {name.rsplit("-", 1)[-1]: name for name in tab.elements}
    tab.states[named["prompt_tokens"]] = WidgetState(id=named["prompt_tokens"], double_value=1024)
    button = WidgetState(id=named["prompt_ask"], trigger_value=True)
    assert [said async for said in tab.run(trigger=button)] == []
    return tab


def working(server: psutil.Process) -> list[psutil.Process]:
    """All processes below the server, once one of them has loaded PyTorch."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = server.children(recursive=True)
        if any(process.memory_info().rss > LOADED for process in found):
            return found
        time.sleep(0.1)
    pytest.fail("no worker has started")


async def closed(tab: Any, server: psutil.Process) -> None:
    await tab.socket.close()


async def torn(tab: Any, server: psutil.Process) -> None:
    tab.socket.transport.abort()  # what the server sees of a browser that is killed


def signalled(number: signal.Signals) -> Callable[[Any, psutil.Process], Any]:
    async def send(tab: Any, server: psutil.Process) -> None:
        server.send_signal(number)
        await asyncio.sleep(0)

    return send


@pytest.mark.parametrize(
    "end",
    [closed, torn, signalled(signal.SIGINT), signalled(signal.SIGTERM), signalled(signal.SIGKILL)],
    ids=["a closed tab", "a killed browser", "Ctrl-C", "SIGTERM", "kill -9"],
)
def test_no_process_outlives(sessions, end):
    async def play(port: int, server: psutil.Process) -> list[psutil.Process]:
        tab = await asked(sessions, port)
        try:
            found = await asyncio.to_thread(working, server)
            await end(tab, server)
            _, alive = await asyncio.to_thread(psutil.wait_procs, found, SOON)
            return alive
        finally:
            with suppress(WebSocketException, OSError):
                await tab.socket.close()
                await tab.socket.wait_closed()

    with sessions.dashboard() as (port, server, _):
        assert asyncio.run(play(port, server)) == []
        if end in (closed, torn):
            assert server.is_running()
            assert not server.children(recursive=True)  # not even a zombie
