"""Try a prompt in a real browser: the grid, the history, the finished scan, and the end of the worker."""

import re
import subprocess
import time

import pytest
from browsing import field, settle, tab
from playwright.sync_api import expect


def workers(folder: str) -> list[str]:
    """The worker processes of a dashboard, by their cache."""
    found = subprocess.run(["ps", "eww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if "internal_policy.cli.worker" in line and folder in line]


@pytest.mark.slow
def test_prompts_are_answered_seen_again_and_opened_and_the_worker_ends_with_the_tab(browser, server, tmp_path_factory):
    folder = str(tmp_path_factory.getbasetemp())
    with tab(browser) as page:
        page.goto(f"{server}/prompt")
        page.locator(".st-key-prompt_tokens input").fill("12")
        ask = page.locator(".st-key-prompt_ask button")
        ask.click()
        expect(page.locator(".st-key-prompt_open button").first).to_be_visible(timeout=180_000)
        expect(page.locator(".lens-grid [role=gridcell]").first).to_be_visible()
        page.locator(".st-key-prompt_answer textarea").fill("<b>What</b> is $1 + 2$?")
        ask.click()
        expect(page.locator(".st-key-prompt_past_1")).to_be_visible()
        expect(page.locator(".st-key-prompt_past_0")).to_contain_text("<b>What</b> is $1 + 2$?")
        expect(page.locator(".st-key-prompt_open button").first).to_be_visible()
        page.locator(".st-key-prompt_past_1 button").click()
        expect(page.locator(".st-key-prompt_past_1 button")).to_be_disabled()
        settle(page)
        assert len(workers(folder)) == 1
        page.locator(".st-key-prompt_open button").first.click()
        expect(page.get_by_role("heading", name="Tokens", exact=True)).to_be_visible()
        expect(field(page, "scan")).to_have_value(re.compile("^demo-qwen3/"))
    end = time.monotonic() + 60
    while workers(folder) and time.monotonic() < end:
        time.sleep(0.2)
    assert not workers(folder)
