"""A report, opened from disk in a real browser."""

import shutil

import pandas as pd
import pytest
from browsing import HOSTILE, tab
from playwright.sync_api import expect

from internal_policy import bundle, files
from internal_policy.look import report, view
from internal_policy.scans import store


def written(folder, name="demo-qwen3"):
    """The address of a report about a bundled scan."""
    path = folder / "report.html"
    path.write_text(report.report([view.default(bundle.DATA / "scans" / name)]))
    return path.as_uri()


def test_a_report_opens_from_disk_and_its_grid_answers(browser, tmp_path):
    with tab(browser) as page:
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(written(tmp_path))
        grid = page.locator(".lens-grid")
        grid.get_by_role("row").filter(has=page.get_by_role("rowheader", name="layer 5")).get_by_role("gridcell").nth(
            2
        ).hover()
        expect(grid).to_contain_text("Layer 5 · position 2")
        assert page.locator(".js-plotly-plot").count() == 10
        assert not failures


@pytest.mark.parametrize("width", [pytest.param(1280, marks=pytest.mark.slow), 390])
def test_a_report_is_as_wide_as_the_window(browser, tmp_path, width):
    with tab(browser) as page:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(written(tmp_path))
        expect(page.locator(".lens-grid").get_by_role("gridcell").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_tokens_are_text_in_a_report(browser, tmp_path):
    folder = tmp_path / "hostile"
    shutil.copytree(bundle.DATA / "scans" / "demo-qwen3", folder)
    vocabulary = pd.read_parquet(folder / store.VOCABULARY)
    vocabulary["token"] = [HOSTILE[n % len(HOSTILE)] for n in range(len(vocabulary))]
    vocabulary.to_parquet(folder / store.VOCABULARY)
    record = store.record(folder)
    held = {**record["files"], store.VOCABULARY: files.fingerprint(folder / store.VOCABULARY)}
    files.write_json(folder / store.RECORD, {**record, "model": HOSTILE[0], "files": held})
    (tmp_path / "report.html").write_text(report.report([view.default(folder)]))
    with tab(browser) as page:
        page.goto((tmp_path / "report.html").as_uri())
        expect(page.locator(".lens-grid").get_by_role("gridcell").filter(has_text="<img").first).to_be_attached()
        assert page.evaluate("window.hacked") is None
        assert not page.locator("a[href*=evil], img[src*=evil], img[src=x]").count()
