"""CSV files contain no formulas, and every text can be restored."""

import csv

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_policy import files
from internal_policy.scans import store
from internal_policy.scans.export import export_table
from internal_policy.tasks.formulas import guard, guarded, unguarded
from internal_policy.tasks.rows import read_rows

EVIL = [
    '=HYPERLINK("http://x","y")',
    "@SUM(A1)",
    "+1",
    "-1+cmd|' /C calc'!A0",
    "\t=1",
    "\r=1",
    "\ta",
    "\r\nb",
    "--1",
    "'=1",
    "＝1",
    "－1+1",
    "\n=1",
]


@pytest.mark.parametrize("text", EVIL)
def test_a_formula_gets_an_apostrophe(text):
    assert guarded(text) == "'" + text


@pytest.mark.parametrize(
    "text", ["-5", "-0.25", "5", "1e-5", "What is 2 + 2?", "", "'tis", "[1, 2]", "数学", "\r", "\t", "\n", " a"]
)
def test_numbers_and_other_texts_are_unchanged(text):
    assert guarded(text) == unguarded(text) == text


@given(st.text("'=+-@\t\r15.a", max_size=6))
def test_unguarding_restores_every_text(text):
    assert unguarded(guarded(text)) == text
    assert guarded(text)[:1] not in ("=", "+", "@")
    assert guarded(text).strip()[:1] not in ("=", "+", "@")


def test_numbers_lists_and_missing_cells_stay_unchanged():
    frame = pd.DataFrame({"x": [-1.5, None], "ids": [[1], [-2]], "text": ["=1", None]})
    found = guard(frame)
    assert found["text"].tolist()[0] == "'=1"
    assert found["text"].isna().tolist() == [False, True]
    pd.testing.assert_frame_equal(found[["x", "ids"]], frame[["x", "ids"]])
    assert frame["text"].tolist()[0] == "=1"


def test_a_formula_in_the_name_of_a_column_gets_an_apostrophe():
    assert [*guard(pd.DataFrame({"=1": [1], "x": ["a"]}))] == ["'=1", "x"]


@pytest.fixture
def exported(copied, tmp_path):
    """A CSV export of rollouts whose texts are formulas, and the original texts."""
    path = next(copied.glob("rollouts-*.parquet"))
    frame = pd.read_parquet(path)
    texts = [EVIL[row % len(EVIL)] for row in range(len(frame))]
    frame.assign(problem=texts, response=texts[::-1]).to_parquet(path)
    record = store.record(copied)
    record["files"][path.name] = files.fingerprint(path)
    files.write_json(copied / store.RECORD, record)
    export_table(copied, "rollouts", "csv", tmp_path / "x.csv")
    return tmp_path / "x.csv", texts


def test_an_export_contains_no_formula(exported):
    path, _ = exported
    with path.open(newline="") as file:
        cells = [cell for row in csv.DictReader(file) for cell in row.values()]
    assert "'" + EVIL[0] in cells
    assert not [cell for cell in cells if cell.lstrip("\t\r").startswith(("=", "+", "@"))]


def test_exported_rollouts_are_read_back_unchanged(exported):
    path, texts = exported
    read = list(read_rows(path))[: len(texts)]
    assert [row.values["problem"] for row in read] == texts
    assert [row.values["response"] for row in read] == texts[::-1]


def test_apostrophes_in_other_csv_files_are_kept(tmp_path):
    (tmp_path / "mine.csv").write_text("problem,answer\n'=1 is what?,1\n")
    assert next(iter(read_rows(tmp_path / "mine.csv"))).values["problem"] == "'=1 is what?"
