"""A scan that doesn't fit in memory is told which option makes it fit."""

import json
import re
from pathlib import Path

import pytest

from internal_policy.__main__ import main
from internal_policy.scans import footprint

pytestmark = pytest.mark.usefixtures("here")


def forecast(words, capsys) -> dict:
    """What --dry-run says of a scan."""
    capsys.readouterr()
    assert main([*words, "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def sized(folder, problems, capsys, monkeypatch):
    """The forecast of a scan on a machine with a part of the memory that it needs."""
    monkeypatch.setattr(footprint, "LIBRARIES", 0)  # next to them, a tiny model needs nothing
    monkeypatch.setattr(footprint, "TILES", 0)
    words = ["scan", "--model", str(folder), "--problems", str(problems), "--dtype", "float32"]
    whole = forecast([*words, "--max-new-tokens", "64"], capsys)["memory_bytes_at_most"]

    def run(share: float, *more: str) -> dict:
        monkeypatch.setattr(footprint, "free_bytes", lambda _: int(share * whole))
        return forecast([*words, *more], capsys)

    return run


def test_a_scan_that_fits_needs_no_remedy(sized):
    found = sized(1.0, "--max-new-tokens", "64")
    assert (found["fits"], found["remedy"], found["batch_size"]) == (True, None, 8)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3, 0.15])
def test_the_option_that_is_named_makes_the_scan_fit(share, sized):
    found = sized(share, "--max-new-tokens", "64")
    assert not found["fits"]
    flags = re.fullmatch(r"With ((?:--[\w-]+ \w+ ?)+) it needs \d+\.\d GB\.", found["remedy"])
    assert flags, found["remedy"]
    again = sized(share, "--max-new-tokens", "64", *flags[1].split())
    assert again["fits"]


def test_a_scan_that_no_option_helps_is_told_so(sized):
    assert (
        sized(0.001, "--max-new-tokens", "64")["remedy"]
        == "No option makes it fit. Choose a smaller model, or a machine with more memory."
    )


def test_a_scan_that_may_not_fit_says_so_before_it_loads_the_model(asked, monkeypatch, capsys):
    monkeypatch.setattr(footprint, "free_bytes", lambda _: 1000)
    assert main([*asked, "--limit", "1", "--layers", "0"]) == 0
    said = capsys.readouterr().err
    assert "of memory, but cpu has 0.0 GB free. No option makes it fit." in said


def test_a_scan_that_fits_says_nothing_of_memory(asked, capsys):
    assert main([*asked, "--limit", "1", "--layers", "0"]) == 0
    assert "of memory" not in capsys.readouterr().err


def test_every_key_of_the_forecast_is_documented(asked, capsys):
    page = (Path(__file__).parents[2] / "docs" / "scan.md").read_text()
    table = page.partition("prints these keys")[2].partition("\n## ")[0]
    keys = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line[:3] == "| `")))
    assert set(forecast([*asked, "--every", "2"], capsys)) == keys - {"seconds"}
