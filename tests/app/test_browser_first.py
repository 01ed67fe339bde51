"""The first minutes with the dashboard in a real browser: its tabs, its back button and its sidebar."""

import pytest
from browsing import field, opened, settle
from playwright.sync_api import Page, expect


def visit(page: Page, name: str) -> None:
    """Open a page from the sidebar."""
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
    settle(page)


@pytest.mark.slow
def test_each_tab_is_named_after_its_page_and_scan(server, page):
    opened(page, server)
    expect(page).to_have_title("Overview · SmolLM2-135M-Instruct · internal-policy")
    visit(page, "Training")
    expect(page).to_have_title("Training · internal-policy")
    opened(page, f"{server}/geometry?scan=demo-llama")
    expect(page).to_have_title("Geometry · demo-llama · internal-policy")


@pytest.mark.slow
def test_two_presses_of_the_back_button_undo_two_visits(server, page):
    opened(page, server)
    visit(page, "Tokens")
    visit(page, "Geometry")
    for name in ("Tokens", "Overview"):
        page.go_back()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()
        settle(page)
    expect(field(page, "scan")).to_have_attribute("placeholder", "smollm2-135m")
    expect(page.locator(".st-key-flow .js-plotly-plot").first).to_be_visible()


def test_the_last_position_can_be_lowered_before_a_number_is_typed(server, page):
    opened(page, f"{server}/geometry?scan=smollm2-135m")
    expect(field(page, "last")).to_have_value("31")
    page.locator(".st-key-last").get_by_test_id("stNumberInputStepDown").click()
    expect(page.locator(".js-plotly-plot").first).to_contain_text("positions 0 to 30")
