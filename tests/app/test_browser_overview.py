"""The Overview in a real browser: its links open the least certain response and token without a reload."""

import pytest
from browsing import chosen, opened, settle
from playwright.sync_api import expect


def test_links_lead_to_the_least_certain_response_and_token_and_back(server, page):
    opened(page, server)
    loads = []
    page.on("request", lambda request: loads.append(request) if request.is_navigation_request() else None)
    for link, keys in (
        ("The least certain response", {"scan", "rollout"}),
        ("was least certain", {"scan", "rollout", "layer", "position", "site"}),
    ):
        page.get_by_role("link", name=link).click()
        expect(page.get_by_role("heading", name="Tokens", exact=True)).to_be_visible()
        settle(page)
        assert keys <= set(chosen(page))
        page.go_back()
        expect(page.get_by_role("heading", name="Overview", exact=True)).to_be_visible()
        expect(page.get_by_text("Raw hidden states are saturated")).to_be_visible()
    assert not loads


@pytest.mark.slow
def test_a_site_is_kept_in_the_address_by_its_name(server, page):
    opened(page, f"{server}/flow?scan=demo-qwen3&spread=mlp_out")
    expect(page.locator(".st-key-distribution")).to_contain_text("FFN")
    page.locator(".st-key-spread input").click()
    page.get_by_role("option", name="attention (attn_out)").click()
    page.wait_for_url("**spread=attn_out*")
    page.reload()
    expect(page.locator(".st-key-distribution")).to_contain_text("attention")
