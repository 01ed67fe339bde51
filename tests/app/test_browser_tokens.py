"""The Tokens page in a real browser: the table of rollouts, the lens grid, the address and the back button."""

import pytest
from browsing import chosen, opened, settle
from playwright.sync_api import Locator, Page, expect

GRID = ".st-key-lens [data-ready]"


@pytest.fixture
def tokens(server, page) -> Page:
    """The Tokens page of a demo scan."""
    return opened(page, f"{server}/tokens?scan=demo-qwen3", GRID)


def cell(page: Page, layer: int, position: int) -> Locator:
    """A cell of the grid."""
    row = page.locator(f".lg-line:has(.lg-side[aria-label='layer {layer}'])")
    return row.locator(f".lg-cell[aria-colindex='{position + 2}']")


def headline(page: Page) -> Locator:
    return page.locator(".lg-headline")


def heading(page: Page) -> Locator:
    return page.locator(".st-key-heading")


def choose(page: Page, label: str, option: str) -> None:
    page.locator(".st-key-lens").get_by_label(label, exact=True).select_option(option)


def test_a_click_is_answered_in_the_browser_and_enter_puts_the_cell_into_the_address(tokens):
    tokens.evaluate(
        "() => { window.runs = 0; new MutationObserver(() => window.runs++).observe(document.querySelector("
        "'[data-testid=stApp]'), {attributes: true, attributeFilter: ['data-test-script-state']}) }"
    )
    choose(tokens, "Colour by", "kl")
    cell(tokens, 6, 3).click()
    expect(headline(tokens)).to_contain_text("Layer 6 · position 3")
    assert tokens.evaluate("window.runs") == 0
    assert "layer" not in chosen(tokens)
    tokens.keyboard.press("Enter")
    tokens.wait_for_url("**layer=6*")
    settle(tokens)
    kept = {"scan": "demo-qwen3", "layer": "6", "position": "3", "site": "resid_post", "measure": "kl"}
    assert chosen(tokens) == kept
    tokens.reload()
    tokens.wait_for_selector(GRID)
    expect(headline(tokens)).to_contain_text("Layer 6 · position 3")
    expect(tokens.locator(".st-key-lens").get_by_label("Colour by", exact=True)).to_have_value("kl")


def test_enter_names_the_default_scan_in_the_address_and_it_can_be_copied(server, page):
    opened(page, f"{server}/tokens", GRID)
    cell(page, 6, 3).click()
    page.keyboard.press("Enter")
    page.wait_for_url("**scan=smollm2-135m*")
    settle(page)
    assert {"scan", "layer", "position"} <= set(chosen(page))
    expect(headline(page)).to_contain_text("Layer 6 · position 3")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for label, ending in (
        ("Copy Python", ".view(readout='norm')\nscan.tokens(0, site='resid_post')"),
        ("Copy link", "&readout=norm&rollout=0"),
    ):
        page.locator(".st-key-cells-below").get_by_role("button", name=label).click()
        expect(page.locator(".st-key-cells-below").get_by_role("status")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()").endswith(ending)
        page.evaluate("navigator.clipboard.writeText('')")


def test_a_click_on_a_row_and_the_buttons_open_rollouts_and_the_measure_stays(tokens):
    choose(tokens, "Colour by", "entropy")
    tokens.locator(".st-key-table .dvn-scroller").click(position={"x": 150, "y": 35 + 28 * 2.5})
    expect(heading(tokens)).to_contain_text("Rollout 2 (3 of 20)")
    tokens.locator(".st-key-next button").click()
    expect(heading(tokens)).to_contain_text("Rollout 3 (4 of 20) · incorrect · 46 tokens · answer 512")
    tokens.wait_for_url("**rollout=3*")
    expect(tokens.locator(".lg-text")).to_contain_text("523")
    expect(tokens.locator(".st-key-lens").get_by_label("Colour by", exact=True)).to_have_value("entropy")


def test_another_readout_and_site_are_fetched_and_the_cell_stays(tokens):
    cell(tokens, 5, 4).click()
    choose(tokens, "Site", "attn_in")
    expect(tokens.locator(".lg-legend")).to_contain_text("attention input")
    choose(tokens, "Readout", "raw")
    expect(headline(tokens)).to_contain_text("Layer 5 · position 4")
    tokens.wait_for_url("**readout=raw*")
    expect(tokens.locator(".lg-legend")).to_contain_text("attention input")
    choose(tokens, "Readout", "norm")
    expect(tokens.get_by_test_id("stSidebar").get_by_role("radio", name="norm")).to_be_checked()
    expect(headline(tokens)).to_contain_text("Layer 5 · position 4")


def test_one_press_of_the_back_button_leaves_a_page(tokens):
    tokens.locator(".st-key-next button").click()
    tokens.wait_for_url("**rollout=1*")
    for name in ("Geometry", "Overview"):
        tokens.get_by_test_id("stSidebarNav").get_by_role("link", name=name).click()
        expect(tokens.get_by_role("heading", name=name, exact=True)).to_be_visible()
        settle(tokens)
    tokens.go_back()
    expect(tokens.get_by_role("heading", name="Geometry", exact=True)).to_be_visible()
    settle(tokens)
    tokens.go_back()
    expect(heading(tokens)).to_contain_text("Rollout 1 ")
    tokens.wait_for_url("**rollout=1*")


def test_the_grid_is_on_the_first_screen(tokens):
    for width, height in ((1400, 1000), (390, 844)):
        tokens.set_viewport_size({"width": width, "height": height})
        tokens.wait_for_timeout(300)
        grid = tokens.locator(".st-key-lens").bounding_box()
        assert grid
        assert grid["y"] < 0.6 * height
        assert grid["x"] + grid["width"] <= width


def test_hostile_tokens_and_problems_are_text(server, page, hostile):
    opened(page, f"{server}/tokens?scan={hostile}", GRID)
    expect(page.locator(".lg-text")).to_contain_text("⟨U+001B⟩[31m⟨U+202E⟩turned⟨U+0000⟩")
    expect(page.locator(".lg-text")).to_contain_text("<script>window.")
    expect(heading(page)).to_contain_text("<img src=x onerror=window.hacked=1>")
    cell(page, 3, 2).hover()
    assert page.evaluate("window.hacked") is None
    assert not page.locator("a[href*=evil], img[src*=evil], img[src=x], .katex").count()
