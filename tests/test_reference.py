"""The quick reference runs, and names every word, column and figure that it should."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

import internal_policy as ip
from internal_policy.__main__ import main
from internal_policy.cli.commands import COMMANDS
from internal_policy.look import alignment_catalogue, catalogue, run_catalogue
from internal_policy.measure.metrics import MEASURES
from internal_policy.measure.sites import WITH_FINAL
from internal_policy.models.policy import READOUTS

PAGE = (Path(__file__).parent.parent / "docs" / "reference.md").read_text(encoding="utf-8")
LOOK, MEASURE = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
ELSEWHERE = {"mcp"}
"""The command that serves other programs, which has a page of its own."""


QUICK = [line for line in LOOK.splitlines() if " ls " in line or "export" in line]


@pytest.mark.parametrize(
    "lines", [QUICK, *(pytest.param(block.splitlines(), marks=pytest.mark.slow) for block in (LOOK, MEASURE))]
)
def test_every_command_runs(lines, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTERNAL_POLICY_CACHE", str(tmp_path / "cache"))
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"


def test_every_command_is_named():
    named = set(re.findall(r"(?:internal-policy |`)([a-z][a-z-]*)", PAGE))
    assert set(COMMANDS) - ELSEWHERE - named == set()


def test_every_public_name_is_named():
    assert {name for name in ip.__all__ if f"ip.{name}" not in PAGE} <= {
        "BuPOConfig",
        "FINAL",
        "InputError",
        "__version__",
    }


def test_every_site_readout_and_measure_is_named():
    assert [name for name in (*WITH_FINAL, *READOUTS, *MEASURES) if f"`{name}`" not in PAGE] == ["topk"]


def test_every_figure_is_named():
    figures = [*catalogue.FIGURES, *run_catalogue.FIGURES, *alignment_catalogue.FIGURES]
    assert [name for name in figures if f"`{name.replace('-', '_')}`" not in PAGE] == []


def test_the_frames_have_the_columns_that_the_page_lists():
    names = {"scan": ip.open_scan("demo-qwen3"), "run": ip.open_run("experiments/bupo")}
    rows = re.findall(r"^\| `((?:scan|run)\..+?)` \| [^|]+ \| (.+?) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 9
    for call, listed in rows:
        frame = eval(call, names)
        assert isinstance(frame, pd.DataFrame)
        columns = set(re.findall(r"`(\w+)`", listed))
        assert columns <= {*frame.columns}, call
        if "and" not in listed and call in ("scan.means()", "scan.changes()", "scan.stages()", "scan.tokens(0)"):
            assert columns == {*frame.columns}, call
