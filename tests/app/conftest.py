"""Fixtures of the real-browser tests: a Chromium, a dashboard, a page, and a scan full of markup."""

import functools
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from browsing import FLAGS, HOSTILE, ROOT, serving, tab
from playwright.sync_api import Browser, Page, sync_playwright
from streamlit.components.v2 import manifest_scanner

from internal_policy import bundle, files
from internal_policy.scans import records, store


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[None]:
    """Restore the module that Python was started with: a page in AppTest becomes it, and new processes import it."""
    before = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = before


@pytest.fixture(scope="session", autouse=True)
def components() -> Iterator[None]:
    """Look for Streamlit components only once, because AppTest searches all installed packages for every page."""
    with pytest.MonkeyPatch.context() as patch:
        found = functools.cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", found)
        yield


@pytest.fixture(scope="session")
def executable() -> str:
    """The installed Chromium. Without one these tests are skipped, or fail where they are required."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if found := next(filter(None, map(shutil.which, names)), None):
        return found
    if os.environ.get("INTERNAL_POLICY_BROWSER_TESTS") == "required":
        pytest.fail("no Chromium here (apt install chromium), and INTERNAL_POLICY_BROWSER_TESTS=required")
    pytest.skip("no Chromium here (apt install chromium)")


@pytest.fixture(scope="session")
def server(executable, tmp_path_factory) -> Iterator[str]:
    with serving(ROOT, tmp_path_factory.mktemp("dashboard"), tmp_path_factory.getbasetemp()) as address:
        yield address


@pytest.fixture(scope="module")
def browser(executable) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    with tab(browser) as page:
        yield page


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A scan whose tokens, problems and model name are markup."""
    folder = tmp_path / "hostile"
    shutil.copytree(bundle.DATA / "scans" / "demo-qwen3", folder)
    vocabulary = pd.read_parquet(folder / store.VOCABULARY)
    vocabulary["token"] = [HOSTILE[n % len(HOSTILE)] for n in range(len(vocabulary))]
    vocabulary.to_parquet(folder / store.VOCABULARY)
    record = records.read(folder / store.RECORD)
    record["model"] = " ".join(HOSTILE)
    for path in folder.glob("rollouts-*.parquet"):
        rows = pd.read_parquet(path)
        rows.assign(problem=" ".join(HOSTILE), answer=HOSTILE[1]).to_parquet(path)
    for name in record["files"]:
        record["files"][name] = files.fingerprint(folder / name)
    (folder / store.RECORD).write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """The folder for pictures of the pages: $INTERNAL_POLICY_SCREENSHOTS, or else pytest's."""
    named = os.environ.get("INTERNAL_POLICY_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"pictures of the dashboard are in {folder}")
    return folder
