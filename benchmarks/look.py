"""Measure the dashboard's speed and peak memory on a large scan: python benchmarks/look.py.

It writes a synthetic scan with the depth of Qwen3-4B, starts the dashboard on it, and opens every page in a new window
of a headless Chromium until all figures are drawn: first with empty caches, then again as a returning user. At the end
it selects other rollouts on the open page Tokens.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pyarrow as pa
import tyro

from internal_policy import bundle, files
from internal_policy.scans import store
from internal_policy.scans.selection import Plan, Selection, plan
from internal_policy.scans.tables import layers_table, policies_table

if TYPE_CHECKING:
    from playwright.sync_api import Page

PART = 8
"""Rollouts in a part, as `scan` writes them."""
VOCABULARY = 151_936
PAGES = {"Overview": "", "Distributions": "flow", "Tokens": "tokens", "Geometry": "geometry"}
"""Title of a page -> its path."""
DRAWN = """() => {
  const charts = [...document.querySelectorAll("[data-testid=stPlotlyChart]")];
  const state = document.querySelector("[data-testid=stApp]")?.dataset.testScriptState;
  return state === "notRunning" && charts.length && charts.every((chart) => chart.querySelector(".g-gtitle text"));
}"""
"""Whether the page is there and each of its charts has its title, which plotly draws last."""
HEATMAP = """() => {
  const image = document.querySelector(".heatmaplayer image");
  return image?.getAttribute("href") ?? image?.getAttributeNS("http://www.w3.org/1999/xlink", "href");
}"""
"""The heatmap's picture."""
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


@dataclass(frozen=True)
class Benchmark:
    """Measure the dashboard's speed and peak memory on a large scan."""

    folder: Path = Path("/tmp/internal-policy-large-scan")
    """Folder for the scan (about 9 GB); an existing scan is reused."""
    rollouts: int = 500
    """Rollouts in the scan."""
    tokens: int = 1000
    """Tokens in each rollout."""
    layers: int = 36
    """Layers of the model."""
    runs: int = 3
    """Visits of each page after the first."""
    chromium: Path = Path("/usr/bin/chromium")
    """Path of the browser."""


def numbers(random: np.random.Generator, planned: Plan, tokens: int, top_k: int) -> dict[tuple[str, str], np.ndarray]:
    """Random measures of `tokens` tokens at every hook point, in realistic ranges."""
    shape = (tokens, len(planned.points))
    names = ("kl", "cosine", "entropy_at_input_norm")
    drawn: dict[str, np.ndarray] = {name: random.random(shape, dtype=np.float32) for name in names}
    drawn["entropy"] = random.random(shape, dtype=np.float32) * np.float32(np.log(VOCABULARY))
    drawn["logprob"] = -drawn["kl"]
    drawn["norm"] = 1 + drawn["kl"]
    drawn["rank"] = random.integers(1, VOCABULARY, shape).astype(np.float32)
    drawn["topk_ids"] = random.integers(0, VOCABULARY, (*shape, top_k), dtype=np.int32)
    drawn["topk_probs"] = np.sort(random.random((*shape, top_k), dtype=np.float32))[..., ::-1]
    return {("raw", name): values for name, values in drawn.items()}


def make(options: Benchmark) -> None:
    """Write the scan."""
    selection, random = Selection(tuple(range(options.layers)), readouts=("raw",)), np.random.default_rng(0)
    planned, names = plan(selection), []
    for part, first in enumerate(range(0, options.rollouts, PART)):
        lengths = [options.tokens] * min(PART, options.rollouts - first)
        drawn = numbers(random, planned, sum(lengths), selection.top_k)
        ids = random.integers(0, VOCABULARY, (len(lengths), options.tokens), dtype=np.int32)
        told = {
            "rollout": np.arange(first, first + len(lengths), dtype=np.int32),
            "problem": ["?"] * len(lengths),
            "answer": ["1"] * len(lengths),
            "response_ids": pa.array(list(ids), pa.list_(pa.int32())),
            "response": [""] * len(lengths),
            "reward": random.integers(0, 2, len(lengths)).astype(float),
            "finished": [True] * len(lengths),
        }
        tables = {
            "rollouts": pa.table(told),
            "policies": policies_table(drawn, selection, planned, options.layers, lengths, first),
            "layers": layers_table(drawn, selection, planned, options.layers, lengths, first),
        }
        for kind, table in tables.items():
            path = store.part_path(options.folder, kind, part)
            store.write_table(path, table, group="rollout")
            names.append(path.name)
    vocabulary = pa.table({"id": np.arange(VOCABULARY), "token": [f"token{n}" for n in range(VOCABULARY)]})
    store.write_table(options.folder / store.VOCABULARY, vocabulary)
    demo = store.record(bundle.DATA / "scans" / "demo-qwen3")
    record = {
        **demo,
        "model": "synthetic",
        "n_layers": options.layers,
        "d_vocab": VOCABULARY,
        "rollouts": options.rollouts,
        "tokens": options.rollouts * options.tokens,
        "selection": {**demo["selection"], "layers": list(selection.layers), "readouts": ["raw"]},
        "files": {name: files.fingerprint(options.folder / name) for name in [store.VOCABULARY, *names]},
    }
    files.write_json(options.folder / store.RECORD, record)


def heatmap(page: "Page", rollout: int) -> float:
    """Select a rollout; return the seconds until its heatmap is drawn."""
    before = page.evaluate(HEATMAP)
    page.get_by_label("Rollout", exact=True).fill(str(rollout))
    start = time.monotonic()
    page.keyboard.press("Enter")
    page.wait_for_function(f"before => ![null, undefined, before].includes(({HEATMAP})())", arg=before, timeout=300_000)
    return time.monotonic() - start


def switch(page: "Page", name: str) -> float:
    """Go to a page from another page of the open dashboard; return the seconds until its figures are drawn."""
    page.get_by_role("link", name="Geometry").click()
    page.wait_for_function(f"() => document.querySelector('h1')?.innerText === 'Geometry' && ({DRAWN})()")
    start = time.monotonic()
    page.get_by_role("link", name=name, exact=True).click()
    page.wait_for_function(f"() => document.querySelector('h1')?.innerText === '{name}' && ({DRAWN})()")
    return time.monotonic() - start


def told(name: str, seconds: list[float], server: psutil.Process) -> None:
    """Print a line: the first time, the median of the others, and the server's memory now."""
    memory = server.memory_info().rss / 1e6
    print(f"{name:<16}{seconds[0]:>12.2f} s{median(seconds[1:]):>12.2f} s{memory:>9,.0f} MB", flush=True)


def visit(options: Benchmark, port: int, server: psutil.Process) -> None:
    """Open each page; print how long its figures took and the server's memory."""
    from playwright.sync_api import sync_playwright

    url = f"http://127.0.0.1:{port}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(options.chromium), args=CHROMIUM)
        context = browser.new_context()
        print(f"{'page':<16}{'first visit':>14}{'warm, median':>14}{'memory':>12}")
        for name, path in PAGES.items():
            seconds = []
            for _ in range(1 + options.runs):
                page = context.new_page()
                start = time.monotonic()
                page.goto(f"{url}/{path}?scan={options.folder}")
                page.wait_for_function(DRAWN, timeout=300_000)
                seconds.append(time.monotonic() - start)
                page.close()
            told(name, seconds, server)
        page = context.new_page()
        page.goto(f"{url}/geometry?scan={options.folder}")
        page.wait_for_function(DRAWN, timeout=300_000)
        for name in ("Overview", "Distributions", "Tokens"):
            told(f"to {name}", [switch(page, name) for _ in range(1 + options.runs)], server)
        page.close()
        page = context.new_page()
        page.goto(f"{url}/tokens?scan={options.folder}")
        page.wait_for_function(DRAWN, timeout=300_000)
        told("Another rollout", [heatmap(page, 100 * n) for n in range(1, 2 + options.runs)], server)
        browser.close()


def main(options: Benchmark) -> None:
    """Write the scan unless it exists, serve it, and visit its pages."""
    if not (options.folder / store.RECORD).exists():
        shutil.rmtree(options.folder, ignore_errors=True)
        start = time.monotonic()
        make(options)
        print(f"Wrote the scan in {time.monotonic() - start:.0f} s.")
    size = sum(path.stat().st_size for path in options.folder.iterdir())
    print(
        f"{options.rollouts} rollouts x {options.tokens} tokens x {options.layers} layers, {size / 1e9:.1f} GB.",
        flush=True,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(bundle.APP / "main.py"), "--server.port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    try:
        while not _listens(port):
            time.sleep(0.1)
        visit(options, port, psutil.Process(server.pid))
        status = Path(f"/proc/{server.pid}/status")
        if status.exists():
            peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            print(f"Peak memory of the server: {int(peak.split()[1]) / 1e3:,.0f} MB")
    finally:
        server.terminate()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main(tyro.cli(Benchmark, description=__doc__))
