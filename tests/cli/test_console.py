"""No printed text can control the terminal."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.markup import escape
from rich.table import Table

from internal_policy import bundle, files
from internal_policy.__main__ import main
from internal_policy.cli import console, generate, progress, train_report
from internal_policy.cli.console import Terminal, visible
from internal_policy.scans import records, store

RED, TITLE, BACK, EIGHT_BIT, REVERSED = "\x1b[31m", "\x1b]0;owned\x07", "\r", "\x9b2J", "\u202e"


def printed(*what, **options) -> str:
    file = io.StringIO()
    Terminal(file=file, width=200, **options).print(*what)
    return file.getvalue()


@pytest.mark.parametrize("text", [RED, TITLE, "a" + BACK + "b", EIGHT_BIT, "\x7f", REVERSED, "\u2066", "\x00"])
def test_a_control_character_is_printed_as_its_escape(text):
    assert printed(escape(text)) == visible(text) + "\n"
    assert visible(text).isascii()
    assert visible(text).isprintable()


def test_newlines_tabs_letters_and_emoji_are_printed_unchanged():
    text = "数学 naïve 👩\u200d💻\n\tΔ FFN"
    assert visible(text) == text


def test_our_own_markup_is_still_coloured():
    assert "\x1b[31m" in printed("[red]error[/]", force_terminal=True, color_system="standard")


def test_a_cell_and_a_title_of_a_table_are_printed_as_text():
    table = Table("model" + RED, title="scan" + RED)
    table.add_row("mine" + RED)
    assert printed(table).count(r"\x1b[31m") == 3
    assert "\x1b" not in printed(table)


def test_json_holds_no_control_character_and_reads_back_the_same(capsys):
    value = {"model": RED + EIGHT_BIT + REVERSED + "\x7f", "line": "a\nb"}
    console.document(value)
    text = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in text)
    assert json.loads(text) == value


def test_an_error_about_a_name_prints_the_name_as_text(here, capsys):
    assert main(["scan", "--model", "evil" + RED]) == 2
    said = capsys.readouterr().err
    assert r"evil\x1b[31m" in said
    assert "\x1b" not in said


def test_a_generated_token_is_printed_as_text(capsys, tmp_path):
    from internal_policy.tasks.rollouts import Rollout

    rollout = Rollout("p" + RED, None, 0, (1,), (2,), "r" + TITLE, None, True)
    generate.generated(tmp_path / ("o" + RED), "final", [rollout])
    assert "\x1b" not in capsys.readouterr().out


def test_everything_is_printed_through_terminal():
    pattern = re.compile(r"(?<![\w.])(Console|print|sys\.std\w+\.write|rich\.TextColumn)\(.*")
    folder = Path(console.__file__).parent
    code = {path: re.sub(r'"""(?s:.*?)"""', "", path.read_text()) for path in folder.rglob("*.py")}  # no docstrings
    found = [(path.stem, hit[0]) for path, text in code.items() for hit in pattern.finditer(text)]
    alone = {
        "console": "print(visible_json(",  # which escapes control characters
        "worker": "print(json.dumps(",
        "completion": "print(text,",  # a script for a shell, without texts of others
    }
    assert {name: text[: len(alone.get(name, ""))] for name, text in found} == alone
    assert len(found) == len(alone)


@pytest.mark.parametrize("draw", ["tracked", "bar", "training"])
def test_the_text_of_a_progress_bar_is_printed_as_text(draw, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(progress, "err", Terminal(file=file, width=200, force_terminal=True, force_interactive=True))
    if draw == "tracked":
        assert list(progress.tracked("Reading", ["a[b]" + TITLE])) == ["a[b]" + TITLE]
    elif draw == "bar":
        with progress.bar("Sampling a[b]" + TITLE, 3, "rollouts" + TITLE) as advance:
            advance(3, 10)
    else:
        row = {"step": 1, "phase": "internal", "target": "a[b]" + TITLE, "reward": 1.0}
        with train_report.reporting(3) as tell:
            tell(row)
    assert TITLE not in file.getvalue()
    assert visible("a[b]" + TITLE) in file.getvalue()


def test_show_warns_once_of_a_scan_that_holds_nan(tmp_path, capsys):
    folder = Path(shutil.copytree(bundle.DATA / "scans" / "demo-qwen3", tmp_path / "scan"))
    record = records.read(folder / store.RECORD)
    for path in folder.glob("layers-*.parquet"):
        table = pd.read_parquet(path)
        table.loc[(table["rollout"] == 0) & (table["layer"] == 3), "entropy"] = np.nan
        table.to_parquet(path)
        record["files"][path.name] = files.fingerprint(path)
    files.write_json(folder / store.RECORD, {**record, "dtype": "float16"})
    assert main(["show", str(folder)]) == 0
    assert capsys.readouterr().err.count("Warning: in 1 of 20 rollouts some numbers are NaN or infinite") == 1


@pytest.mark.parametrize(("forced", "drawn"), [("1", False), ("", True)])
def test_a_coloured_pipe_is_not_drawn_anew(forced, drawn, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", forced)
    assert Terminal(file=io.StringIO(), force_terminal=None if forced else True).draws == drawn
