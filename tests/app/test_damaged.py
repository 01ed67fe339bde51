"""The dashboard refuses damaged data by the name of its file."""

import re
import sys
from pathlib import Path

import pytest
from damages import DAMAGES
from streamlit.testing.v1 import AppTest

from internal_policy import bundle

PAGES = {"layers-00000.parquet": "overview", "rollouts-00000.parquet": "overview", "policies-00000.parquet": "tokens"}
"""A part -> a page that reads it."""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["main.py"])


def said(page: str, folder: Path) -> list[str]:
    """What a page says in place of what it can't draw, if the command line names the folder."""
    sys.argv = ["main.py", str(folder)]
    app = AppTest.from_file(str(bundle.APP / "main.py"), default_timeout=60)
    app.query_params["scan"] = str(folder)
    if page != "overview":
        app.switch_page(f"views/{page}.py")
    app.run()
    assert not app.exception
    return [text.value for text in app.text if text.value.startswith("⚠")]


QUICK = ("flipped", "policies-00000.parquet")
CASES = [
    pytest.param(damage, part, marks=() if (damage, part) == QUICK else pytest.mark.slow)
    for damage in DAMAGES
    for part in PAGES
]


@pytest.mark.parametrize(("damage", "part"), CASES)
def test_a_page_refuses_a_damaged_part_by_name(damage, part, copied):
    DAMAGES[damage](copied / part, bundle.DATA / "scans" / "demo-llama")
    found = said(PAGES[part], copied)
    assert found
    for text in found:
        assert re.search(rf"{part.partition('-')[0]}-0000[01]\.parquet is ", text)
        assert f"internal-policy verify {copied} --repair" in text


def test_a_page_refuses_a_damaged_record_by_name(copied):
    (copied / "scan.json").write_text((copied / "scan.json").read_text()[:-20])
    for text in (found := said("overview", copied)):
        assert "scan.json is damaged" in text
        assert f"internal-policy verify {copied} --repair" in text
    assert found
