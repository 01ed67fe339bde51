"""Measure the dashboard with many sessions at once: errors, seconds of a step, and the server's memory.

    python benchmarks/sessions.py --sessions 30 --seconds 120

It starts `internal-policy dashboard` and speaks its websocket protocol as a browser does, without drawing. Every
session opens pages by their address, goes from page to page, changes a choice (scan, readout, layer, positions,
measure, figure), keeps a cell of the lens grid, and now and then closes its tab and opens another one. Each step waits
until the server has run the page's script to the end. Then the same is done again, on the same server, whose memory
should not grow from round to round.
"""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import psutil
import tyro
from streamlit.components.v2.bidi_component.main import _make_trigger_id
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

SCANS = ("smollm2-135m", "demo-qwen3", "demo-llama")
PAGES = ("overview", "flow", "tokens", "compare", "training", "alignment", "geometry", "check", "ablation")
SITES = ("resid_post", "attn_out", "mlp_out")
MEASURES = ("token", "entropy", "change", "kl", "rank")
STRINGS = ("selectbox", "radio")
"""Elements whose value is the text of one of their options."""
WAIT = 600.0
"""Seconds after which a step counts as failed."""
EVERY = 20.0
"""Seconds between two looks at the server's memory."""


@dataclass(frozen=True)
class Benchmark:
    """How many sessions, and for how long."""

    sessions: int = 30
    """Sessions at once."""
    seconds: float = 120.0
    """Seconds of clicking in a round."""
    rounds: int = 2
    """Rounds on the same server."""
    rest: float = 5.0
    """Seconds between a round's end and the look at the memory that is left."""
    pause: float = 0.5
    """Mean seconds between two steps of a session."""
    seed: int = 0
    """Random seed of the steps."""
    json: bool = False
    """Print the figures as JSON."""


@dataclass
class Figures:
    """What a round has shown."""

    steps: list[float] = field(default_factory=list)
    """Seconds of each step."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Steps by what was done."""
    refusals: Counter[str] = field(default_factory=Counter)
    """Sentences of pages about what can't be shown, such as a measure that a scan lacks."""
    errors: list[str] = field(default_factory=list)
    """Exceptions, disconnections and steps that took too long."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the start of the round, and megabytes of the server."""


class Tab:
    """A browser's tab: a websocket, the address, and the widgets of the page on screen."""

    def __init__(self, socket: ClientConnection, random: random.Random, address: str) -> None:
        """Open `address`, a page with a query, when it first runs."""
        self.socket, self.random = socket, random
        self.page, _, self.query = address.partition("?")
        self.hashes: dict[str, str] = {}
        """Page -> what the server calls it."""
        self.states: dict[str, WidgetState] = {}
        """Values of widgets that were changed, by id."""
        self.elements: dict[str, tuple[str, Any, str]] = {}
        """Widgets on screen by id: their kind, what the server sent, and the fragment that they are in."""

    async def run(self, fragment: str = "", trigger: WidgetState | None = None) -> AsyncIterator[str]:
        """Run the page's script to its end, and yield each sentence that refuses something.

        Raises RuntimeError if the script fails.
        """
        message = BackMsg()
        state = message.rerun_script
        state.query_string, state.fragment_id = self.query, fragment
        if self.page in self.hashes:
            state.page_script_hash = self.hashes[self.page]
        else:
            state.page_name = self.page
        known = [value for name, value in self.states.items() if name in self.elements]
        state.widget_states.widgets.extend([*known, *([trigger] if trigger else [])])
        await self.socket.send(message.SerializeToString())
        fresh = {} if not fragment else self.elements
        finished = False
        while not finished:
            forward = ForwardMsg()
            forward.ParseFromString(await self.socket.recv())  # pyright: ignore[reportArgumentType] always bytes
            if said := self.take(forward, fresh):
                yield said
            finished = forward.WhichOneof("type") == "script_finished" and (
                forward.script_finished != ForwardMsg.FINISHED_EARLY_FOR_RERUN  # then another run follows
            )
        self.elements = fresh

    def take(self, forward: ForwardMsg, elements: dict[str, tuple[str, Any, str]]) -> str | None:
        """Apply a message of the server; a sentence that refuses something, if it has one."""
        kind = forward.WhichOneof("type")
        if kind == "script_finished" and forward.script_finished == ForwardMsg.FINISHED_WITH_COMPILE_ERROR:
            raise RuntimeError("the script doesn't compile")
        if kind == "page_info_changed":
            self.query = forward.page_info_changed.query_string
        if kind == "new_session" and forward.new_session.page_script_hash in self.hashes.values():
            pages = {known: name for name, known in self.hashes.items()}
            self.page = pages[forward.new_session.page_script_hash]
        if kind == "navigation":
            self.hashes = {
                page.url_pathname or "overview": page.page_script_hash for page in forward.navigation.app_pages
            }
        if kind != "delta" or forward.delta.WhichOneof("type") != "new_element":
            return None
        element = forward.delta.new_element
        name = element.WhichOneof("type")
        if name == "exception":
            raise RuntimeError(f"{element.exception.type}: {element.exception.message}")
        found = getattr(element, str(name))
        if getattr(found, "id", ""):
            elements[found.id] = (str(name), found, forward.delta.fragment_id)
        return found.body if name == "text" and found.body.startswith("⚠") else None

    def go(self, page: str) -> None:
        """Choose another page in the sidebar."""
        self.page, self.query = page, ""
        self.states.clear()

    def change(self) -> tuple[str, str, WidgetState | None] | None:
        """Change one of the widgets on screen, if there are any: its kind, fragment and what only this run sends."""
        for name in self.random.sample([*self.elements], len(self.elements)):
            kind, element, fragment = self.elements[name]
            if getattr(element, "disabled", False) or getattr(element, "form_id", ""):
                continue
            if kind == "bidi_component" and element.component_name == "lens_grid":
                return "cell", fragment, self.cell(name)
            if (value := self.value(kind, element)) is not None:
                self.states[name] = WidgetState(id=name, **value[0])
                if element.query_param_key:
                    rest = [pair for pair in parse_qsl(self.query) if pair[0] != element.query_param_key]
                    self.query = urlencode([*rest, *((element.query_param_key, text) for text in value[1])])
                return kind, fragment, None
        return None

    def value(self, kind: str, element: Any) -> tuple[dict[str, Any], list[str]] | None:
        """Another value of a widget, and its texts in the address; None for a kind that isn't changed."""
        if kind in STRINGS and len(element.options):
            text = self.random.choice(element.options)
            return {"string_value": text}, [text]
        if kind == "button_group" and len(element.options):
            text = self.random.choice(element.options).content
            return {"string_array_value": {"data": [text]}}, [text]
        if kind == "multiselect" and len(element.options):
            texts = self.random.sample([*element.options], min(len(element.options), self.random.randint(0, 2)))
            return {"string_array_value": {"data": texts}}, texts
        if kind == "number_input":
            number = float(self.random.randint(0, 5))
            return {"double_value": number}, [f"{number:g}"]
        if kind == "checkbox":
            return {"bool_value": self.random.random() < 0.5}, []
        return None

    def cell(self, name: str) -> WidgetState:
        """Keep a cell of the lens grid."""
        cell = {"layer": self.random.randint(0, 3), "position": self.random.randint(0, 3), **_choices(self.random)}
        told = json.dumps([{"event": "kept", "value": cell}])
        return WidgetState(id=_make_trigger_id(name, "events"), json_trigger_value=told)


def _choices(random: random.Random) -> dict[str, str]:
    return {"site": random.choice(SITES), "measure": random.choice(MEASURES)}


def address(random: random.Random) -> str:
    """A page with choices in its address, as in a link."""
    page = random.choice(PAGES)
    query: dict[str, Any] = {"scan": random.choice(SCANS), "readout": random.choice(["raw", "norm"])}
    if page in ("tokens", "compare"):
        query |= {"rollout": random.randint(0, 3), "layer": random.randint(0, 5), "position": random.randint(0, 5)}
        query |= _choices(random)
    return f"{page}?{urlencode({} if page in ('training', 'alignment') else query)}"


async def session(port: int, options: Benchmark, number: int, end: float, figures: Figures) -> None:
    """Click until `end`, in one tab after another."""
    chance = random.Random(1000 * options.seed + number)
    tab: Tab | None = None
    while time.monotonic() < end:
        if tab is None or chance.random() < 0.05:
            if tab is not None:
                await tab.socket.close()
            tab = Tab(await opened(port), chance, address(chance))
            kind, fragment, trigger = "address", "", None
        else:
            changed = tab.change() if chance.random() < 0.75 else None
            if changed is None:
                tab.go(chance.choice(PAGES))
            kind, fragment, trigger = changed or ("page", "", None)
        start, where = time.monotonic(), f"{kind} on {tab.page}?{tab.query}"
        try:
            async with asyncio.timeout(WAIT):
                figures.refusals.update([said async for said in tab.run(fragment, trigger)])
        except (RuntimeError, OSError, WebSocketException, TimeoutError) as error:
            figures.errors.append(f"{where}: {type(error).__name__}: {error}")
            await tab.socket.close()
            tab = None
            continue
        figures.steps.append(time.monotonic() - start)
        figures.kinds[kind] += 1
        await asyncio.sleep(chance.expovariate(1 / options.pause))
    if tab is not None:
        await tab.socket.close()


async def opened(port: int) -> ClientConnection:
    """A websocket of the dashboard."""
    url, origin = f"ws://127.0.0.1:{port}/_stcore/stream", f"http://127.0.0.1:{port}"
    return await connect(url, origin=origin, subprotocols=["streamlit"], max_size=None, open_timeout=WAIT)  # pyright: ignore[reportArgumentType]


async def memory(server: psutil.Process, figures: Figures) -> None:
    """Look at the server's memory now and then, until it is cancelled."""
    start = time.monotonic()
    while True:
        figures.memory.append((round(time.monotonic() - start), server.memory_info().rss / 1e6))
        await asyncio.sleep(EVERY)


async def played(port: int, server: psutil.Process, options: Benchmark) -> Figures:
    """The figures of a round; its last look at the memory is after all sessions have ended."""
    figures, start = Figures(), time.monotonic()
    looking = asyncio.create_task(memory(server, figures))
    await asyncio.gather(
        *(session(port, options, n, start + options.seconds, figures) for n in range(options.sessions))
    )
    looking.cancel()
    await asyncio.sleep(options.rest)
    figures.memory.append((round(time.monotonic() - start), server.memory_info().rss / 1e6))
    return figures


@contextmanager
def dashboard() -> Iterator[tuple[int, psutil.Process, Path]]:
    """Start the dashboard with an empty cache; its port, process and log."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "internal_policy", "dashboard", "--port", str(port)]
        environment = {**os.environ, "INTERNAL_POLICY_CACHE": folder}
        with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as server:
            try:
                while not _listens(port):
                    time.sleep(0.1)
                yield port, psutil.Process(server.pid), log
            finally:
                server.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def said(figures: Figures) -> str:
    """The figures of a round in words."""
    known = sorted(figures.steps) or [float("nan")]
    median, slow = known[len(known) // 2], known[min(len(known) - 1, int(0.95 * len(known)))]
    memory = ", ".join(f"{seconds:.0f} s {megabytes:.0f} MB" for seconds, megabytes in figures.memory)
    return (
        f"{len(figures.steps)} steps, {len(figures.errors)} errors, {sum(figures.refusals.values())} refusals; "
        f"a step takes {median:.2f} s (median), {slow:.2f} s (95%); memory: {memory}"
    )


def main(options: Benchmark) -> None:
    """Play the rounds and print their figures."""
    rounds = []
    with dashboard() as (port, server, log):
        for number in range(options.rounds):
            figures = asyncio.run(played(port, server, options))
            rounds.append(figures)
            if not options.json:
                load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
                print(f"Round {number + 1}, {options.sessions} sessions: {said(figures)} (load {load})", flush=True)
                print(f"  {dict(figures.kinds)}", *(f"  {error}" for error in figures.errors[:10]), sep="\n")
        failures = log.read_text().count("Traceback")
    if options.json:
        print(json.dumps([asdict(figures) for figures in rounds], indent=1))
    elif failures:
        print(f"{failures} tracebacks in the server's log")
    if failures or any(figures.errors for figures in rounds):
        raise SystemExit(1)


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
