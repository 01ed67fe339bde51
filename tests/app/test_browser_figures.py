"""Figures of the dashboard in a real browser: saved images and tables, copied links and code, contrast and overlap."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browsing import opened, tab
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from internal_policy import bundle
from internal_policy.look import catalogue, export
from internal_policy.look.catalogue import Choice
from internal_policy.look.view import View
from internal_policy.scans import store

DEMO = bundle.DATA / "scans" / "demo-qwen3"
FILE = f"demo-qwen3_{store.record(DEMO)['digest'][:6]}_flow_norm"
ADDRESS = "?scan=demo-qwen3&first=2"
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
BOXES = """chart => {
  const box = (found) => found.getBoundingClientRect().toJSON();
  const all = (what) => [...chart.querySelectorAll(what)];
  return {
    chart: box(chart),
    caption: box(chart.querySelector(".gtitle-subtitle")),
    legend: box(chart.querySelector(".legend .scrollbox")),
    axes: box(chart.querySelector(".gridlayer")),
    texts: all("text").map(box),
    layers: all(".xtick text, .x2tick text").map((text) => text.textContent),
  };
}"""
"""Where the parts of a chart are on the screen."""
INK = {"light": "rgb(26, 28, 33)", "dark": "rgb(244, 245, 247)"}
DRAWN = """() => {
  const charts = [...document.querySelectorAll("[data-testid=stPlotlyChart]")];
  return charts.every(chart => chart.querySelector(".xtick, .x2tick"));
}"""


@pytest.fixture(scope="module")
def shared(server, browser) -> Iterator[Page]:
    """The Overview, which may use the clipboard."""
    with tab(browser) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield opened(page, f"{server}/{ADDRESS}&readout=norm")


@pytest.fixture
def flow(shared) -> Page:
    """The same page, light and wide."""
    shared.emulate_media(color_scheme="light")
    shared.set_viewport_size({"width": 1280, "height": 1000})
    shared.wait_for_function(DRAWN)
    return shared


def button(page: Page, label: str, figure: str = "flow") -> Locator:
    """A button below a figure."""
    return page.locator(f".st-key-{figure}-below").get_by_role("button", name=label, exact=True)


def saved(page: Page, label: str) -> tuple[str, bytes]:
    """Name and content of the file that a button saves."""
    with page.expect_download() as download:
        button(page, label).click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_an_image_is_white_and_three_times_finer_even_of_a_dark_page(flow):
    flow.emulate_media(color_scheme="dark")
    name, content = saved(flow, "PNG")
    image = Image.open(io.BytesIO(content)).convert("L")
    height = catalogue.draw("flow", [View(DEMO, "norm", first=2)], Choice()).layout.height
    assert name == f"{FILE}_positions-from-2.png"
    assert image.size == (export.SCALE * export.WIDTH, export.SCALE * height)
    grey = np.asarray(image)
    assert (grey[0, 0], grey.min() < 40) == (255, True)


def test_a_vector_image_and_a_table_are_named_by_scan_figure_and_readout(flow):
    name, content = saved(flow, "SVG")
    assert name == f"{FILE}_positions-from-2.svg"
    assert b"layer output" in content
    assert b"attention input" not in content  # which is only drawn after a click on the legend
    name, content = saved(flow, "CSV")
    assert name == f"{FILE}_positions-from-2.csv"
    assert list(pd.read_csv(io.BytesIO(content)).columns) == ["layer", "site", "mean", "low", "high"]


def test_link_and_code_are_copied_without_a_rerun(flow, server):
    flow.evaluate(
        "() => { window.runs = 0; new MutationObserver(() => window.runs++).observe("
        "document.querySelector('[data-testid=stApp]'), {attributeFilter: ['data-test-script-state']}) }"
    )
    for label, text in (
        ("Copy link", f"{server}/{ADDRESS}&readout=norm"),
        ("Copy Python", "scan = ip.open_scan('demo-qwen3').view(readout='norm', first=2)\nscan.plot.flow()"),
    ):
        button(flow, label).click()
        expect(flow.locator(".st-key-flow-below").get_by_role("status")).to_have_text("Copied")
        copied = flow.evaluate("navigator.clipboard.readText()")
        assert copied.endswith(text)
        flow.evaluate("navigator.clipboard.writeText('')")
    assert flow.evaluate("window.runs") == 0


def test_what_the_browser_refuses_to_copy_is_shown(flow):
    flow.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined, configurable: true})")
    button(flow, "Copy Python", "change").click()
    expect(flow.locator(".st-key-change-below").get_by_test_id("stCode")).to_contain_text("scan.plot.change()")
    flow.evaluate("delete navigator.clipboard")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_a_contrast_of_at_least_4_5(flow, scheme):
    flow.emulate_media(color_scheme=scheme)
    for title in flow.locator(".gtitle").all():  # charts need time to adjust their colours
        expect(title).to_have_css("fill", INK[scheme])
    found: list[dict[str, Any]] = flow.evaluate(CONTRAST)
    assert {"Entropy (nats)", "Layer", "FFN", "PNG", "Data", "norm"} <= {one["text"] for one in found}
    assert [one for one in found if one["contrast"] < 4.5] == []


@pytest.mark.parametrize("width", [1280, 1024, 390])
def test_nothing_in_a_chart_overlaps_or_is_cut(flow, width):
    flow.set_viewport_size({"width": width, "height": 1000})
    flow.wait_for_timeout(1000)  # charts need time to adjust their width
    for chart in flow.locator(".js-plotly-plot").all():
        boxes = chart.evaluate(BOXES)
        assert boxes["caption"]["bottom"] <= boxes["legend"]["top"] + 2
        assert boxes["legend"]["bottom"] <= boxes["axes"]["top"] + 2
        assert boxes["chart"]["left"] <= min(box["left"] for box in boxes["texts"] if box["width"])
        assert max(box["right"] for box in boxes["texts"]) <= boxes["chart"]["right"]
        assert "7" in boxes["layers"]  # the last one
