"""Exporting tables of a scan."""

import pandas as pd
import pyarrow as pa
import pytest

from internal_policy import bundle, files
from internal_policy.__main__ import main
from internal_policy.look import known
from internal_policy.scans import records, store

DEMO = bundle.DATA / "scans" / "demo-qwen3"

pytestmark = pytest.mark.usefixtures("here")


def test_export_overwrites_nothing(asked, here, capsys):
    assert main([*asked, "--output", "mine"]) == 0
    (here / "layers.csv").write_text("mine")
    assert main(["export", "mine"]) == 2
    assert (here / "layers.csv").read_text() == "mine"


READ = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}


@pytest.mark.parametrize("form", READ)
def test_the_tokens_are_exported_with_the_layer_from_which_on_each_is_known(form, here, capsys):
    assert main(["export", "demo-qwen3", "--table", "tokens", "-o", f"t.{form}"]) == 0
    assert f"Wrote 1,638 rows to t.{form}." in capsys.readouterr().err
    found = READ[form](here / f"t.{form}")
    expected = pa.concat_tables(known.tokens(DEMO)).to_pandas()
    assert [*found] == [*expected]
    assert found["first_known"].fillna(-1).tolist() == expected["first_known"].fillna(-1).tolist()
    assert found["id"].tolist() == expected["id"].tolist()


def test_the_vocabulary_is_exported_with_every_id(here):
    assert main(["export", "demo-qwen3", "--table", "vocabulary", "--format", "parquet"]) == 0
    expected = store.read(DEMO, "vocabulary")
    pd.testing.assert_frame_equal(pd.read_parquet(here / "vocabulary.parquet"), expected)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "t.txt"], "Can't write t.txt. Use a name that ends in .csv, .json or .parquet."),
        (["-o", "t.json", "--format", "csv"], "--output is t.json, but --format is csv. Use a name that ends in .csv."),
        (["--table", "token"], "--table is 'token'. Did you mean tokens?"),
    ],
)
def test_a_file_or_table_that_cant_be_written_is_refused(words, said, here, capsys):
    assert main(["export", "demo-qwen3", *words]) == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
    assert not list(here.iterdir())


def test_one_row_is_one_row(copied, here, capsys):
    store.write_table(copied / store.VOCABULARY, pa.table({"id": [0], "token": ["a"]}))
    record = records.read(copied / store.RECORD)
    record["files"][store.VOCABULARY] = files.fingerprint(copied / store.VOCABULARY)
    records.write(copied / store.RECORD, record)
    assert main(["export", str(copied), "--table", "vocabulary"]) == 0
    assert capsys.readouterr().err == "Wrote 1 row to vocabulary.csv.\n"
