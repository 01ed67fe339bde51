"""Take the picture of the dashboard for the README, with Playwright and Chromium: python data/make_screenshot.py."""

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
PAGE = "tokens?scan=smollm2-135m&rollout=0&layer=27&position=5"


def wait_for(address: str, seconds: float = 120) -> None:
    """Wait until the dashboard answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            urlopen(f"{address}/_stcore/health")
        except URLError:
            time.sleep(0.5)
        else:
            return
    raise TimeoutError(f"The dashboard didn't answer within {seconds:g} s.")


def take(address: str, path: Path) -> None:
    """Save a picture of the page from the lens grid on, once that is drawn."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=chromium).new_page(viewport={"width": 1400, "height": 1090})
        page.goto(f"{address}/{PAGE}")
        page.locator(".st-key-lens [data-ready]").wait_for(timeout=120_000)
        page.locator(".st-key-lens").evaluate("grid => grid.scrollIntoView()")
        page.wait_for_timeout(3000)
        page.screenshot(path=path)


with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
main = HERE.parent / "app" / "main.py"
server = subprocess.Popen([sys.executable, "-m", "streamlit", "run", str(main), "--server.port", str(port)])
try:
    wait_for(f"http://127.0.0.1:{port}")
    take(f"http://127.0.0.1:{port}", HERE / "dashboard.png")
finally:
    server.terminate()
