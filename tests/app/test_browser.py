"""The dashboard in a real browser: addresses, hostile text, and no requests to other hosts."""

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import pytest
from browsing import DRAWN, ROOT, WHITE, asked, chosen, field, opened, serving, settle, tab
from playwright.sync_api import expect


def test_right_after_a_clone_the_overview_draws_a_scan_of_a_language_model(server, page):
    opened(page, server)
    expect(field(page, "scan")).to_have_attribute("placeholder", "smollm2-135m")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    assert page.locator(".st-key-flow .scatterlayer .trace").count() > 2
    page.get_by_text("Make your own scan").click()
    expect(page.get_by_text("internal-policy scan").first).to_be_visible()


@pytest.mark.slow
def test_another_page_shows_the_same_scan(server, page):
    opened(page, f"{server}/?scan=demo-llama&readout=norm")
    for name in ("Distributions", "Geometry", "Overview"):
        page.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        expect(page.locator(".js-plotly-plot").first).to_contain_text("demo-llama")
        settle(page)
        assert chosen(page)["scan"] == "demo-llama"
        assert chosen(page)["readout"] == "norm"


@pytest.mark.parametrize("asked_for", ["?scan=nothing", "tokens?scan=demo-qwen3&layer=99", "?scan=%00"])
def test_a_missing_scan_is_refused_in_one_sentence(server, page, asked_for):
    opened(page, f"{server}/{asked_for}", "[data-testid=stText]:has-text('⚠')")
    said = page.get_by_test_id("stText").filter(has_text="⚠")
    expect(said).to_have_count(1)
    assert "Traceback" not in page.content()
    assert len(said.inner_text().splitlines()) == 1


@pytest.mark.slow
def test_without_any_scan_the_command_that_makes_one_is_shown(executable, browser, tmp_path):
    for name in ("internal_policy", "app"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "data"))
    with serving(tmp_path, tmp_path, PYTHONPATH=str(tmp_path)) as address, tab(browser) as page:
        opened(page, address, ".st-key-nothing-yet")
        assert page.locator("[data-testid=stCode]").first.inner_text().strip() == "internal-policy scan"


def test_hostile_tokens_and_names_are_text(server, page, hostile):
    for name in ("", "compare"):
        more = f"&compare=demo-llama&compare={hostile}" if name == "compare" else ""
        opened(page, f"{server}/{name}?scan={hostile}{more}")
        assert page.evaluate("window.hacked") is None
        assert not page.locator("a[href*=evil], img[src*=evil], img[src=x], .katex").count()
        if name == "":
            expect(page.get_by_test_id("stMain")).to_contain_text("[a](http://evil.example)")
    assert page.evaluate("window.hacked") is None


def test_another_host_or_origin_is_not_answered(server):
    port = urlsplit(server).port
    assert port
    assert asked(port, "/_stcore/health")[0] == 200
    assert asked(port, "/_stcore/health", Host="evil.example")[0] == 403
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13"}
    upgrade["Sec_WebSocket_Key"] = "AAAAAAAAAAAAAAAAAAAAAA=="
    assert asked(port, "/_stcore/stream", **upgrade, Origin=server)[0] == 101
    assert asked(port, "/_stcore/stream", **upgrade, Origin="http://evil.example")[0] != 101
    assert asked(port, "/_stcore/stream", **upgrade, Host="evil.example")[0] != 101


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A training run of three steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    steps = range(0, 30, 10)
    phases = ["internal", "internal", "final"]
    targets = ["1.resid_post", "1.resid_post", "final"]
    metrics = pd.DataFrame({"step": steps, "reward": [0.1, 0.3, 0.6], "entropy": [2.0, 1.5, 1.2], "phase": phases})
    metrics.assign(target=targets).to_parquet(folder / "metrics.parquet")
    rows = [(step, layer, "resid_post", 5.0 - layer - step / 20) for step in steps for layer in range(4)]
    pd.DataFrame(rows, columns=["step", "layer", "site", "entropy"]).to_parquet(folder / "dynamics.parquet")
    return folder


def test_a_figure_follows_a_change_of_theme(server, page):
    page.emulate_media(color_scheme="dark")
    opened(page, f"{server}/?scan=demo-qwen3", DRAWN)
    title = page.locator(".st-key-flow .gtitle")
    colours = "lines => lines.map(line => getComputedStyle(line).stroke)"
    for scheme, ink in (("dark", "rgb(244, 245, 247)"), ("light", "rgb(26, 28, 33)")):
        page.emulate_media(color_scheme=scheme)
        expect(title).to_have_css("fill", ink)
        assert ink in page.locator(".st-key-flow .js-line").evaluate_all(colours)


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_every_page_is_drawn_in_light_and_dark(server, page, pictures, run, width):
    pages = {
        "overview": "?scan=smollm2-135m",
        "flow": "flow?scan=smollm2-135m",
        "tokens": "tokens?scan=smollm2-135m&rollout=2&layer=24&position=8",
        "compare": "compare?scan=smollm2-135m",
        "training": f"training?run={run}",
        "alignment": "alignment",
        "geometry": "geometry?scan=smollm2-135m",
        "check": "check?scan=smollm2-135m",
        "prompt": "prompt",
    }
    ready = {"prompt": ".st-key-prompt_answer", "tokens": ".st-key-lens [data-ready]", "check": ".st-key-controls"}
    for name, address in pages.items():
        page.set_viewport_size({"width": width, "height": 1000})
        opened(page, f"{server}/{address}", ready.get(name, DRAWN))
        tall = page.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
        page.set_viewport_size({"width": width, "height": min(tall, 4000)})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            is_white = expect(page.get_by_test_id("stApp"))
            (is_white.to_have_css if scheme == "light" else is_white.not_to_have_css)("background-color", WHITE)
            page.wait_for_timeout(300)  # charts need time to adjust their size and colours
            path = pictures / f"{name}-{width}-{scheme}.png"
            page.screenshot(path=path)
            assert path.stat().st_size > 20_000
        assert not page.locator("[data-testid=stException]").count()
        assert page.get_by_test_id("stMain").evaluate("main => main.scrollWidth - main.clientWidth") <= 0
