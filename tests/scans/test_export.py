"""A table of a scan exports to one file with every row."""

import pandas as pd
import pyarrow as pa
import pytest
from conftest import write_record

from internal_policy.scans import store
from internal_policy.scans.export import export_table

READ = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}


@pytest.fixture
def folder(tmp_path):
    """A scan of two parts, with a NaN."""
    table = pa.table({"rollout": [0, 0, 1], "entropy": pa.array([1.5, float("nan"), 2.5], pa.float32())})
    for kind in store.KINDS:
        for part in (0, 1):
            store.write_table(store.part_path(tmp_path, kind, part), table, group="rollout")
    store.write_table(tmp_path / store.VOCABULARY, pa.table({"id": [0], "token": ["a"]}))
    write_record(tmp_path)
    return tmp_path


@pytest.mark.parametrize("form", [*READ])
def test_a_table_is_exported_with_every_row(folder, tmp_path, form):
    path = tmp_path / f"out.{form}"
    assert export_table(folder, "policies", form, path) == 6
    found = READ[form](path)
    assert found["rollout"].tolist() == [0, 0, 1] * 2
    assert found["entropy"].fillna(-1).tolist() == [1.5, -1, 2.5] * 2


@pytest.mark.parametrize("form", ["csv", "json"])
def test_texts_with_line_ends_export_to_one_row_each(folder, tmp_path, form):
    texts = ["a\rb", "a\nb", "a\r\nb", 'say "a,\rb"', "\r", ""]
    table = pa.table({"rollout": range(len(texts)), "response": texts})
    for part in (0, 1):
        store.write_table(store.part_path(folder, "rollouts", part), table)
    write_record(folder)
    path = tmp_path / f"out.{form}"
    export_table(folder, "rollouts", form, path)
    found = pd.read_csv(path, keep_default_na=False) if form == "csv" else pd.read_json(path)
    assert found["response"].tolist() == texts * 2
