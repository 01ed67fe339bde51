"""Write a table of a scan as one CSV, JSON or Parquet file."""

import csv
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from internal_policy import files
from internal_policy.scans import store
from internal_policy.tasks import formulas

WITH_TEXTS = ("rollouts", "vocabulary", "tokens")
"""Tables whose texts are quoted in CSV, because a lone carriage return in one would end its row."""


def export_table(folder: Path, kind: str, form: str, path: Path) -> int:
    """Write a table of a scan as one csv, json or parquet file; return the number of rows."""
    return write(store.pieces(folder, kind), form, path, quoted=kind in WITH_TEXTS)


def write(tables: Iterable[pa.Table], form: str, path: Path, *, quoted: bool = False) -> int:
    """Write tables with the same columns below each other as one csv, json or parquet file; return the number of rows.

    In CSV all texts are in quotes if `quoted`, and those that a spreadsheet would run as formulas get a leading
    apostrophe, which `rows.read_rows` removes.
    """
    rows, writer = 0, None
    quoting = csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        for table in tables:
            if form == "parquet":
                writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
            else:
                frame = table.to_pandas(types_mapper=pd.ArrowDtype)  # keeps integers where a column has missing values
                for name in (field.name for field in table.schema if pa.types.is_nested(field.type)):
                    frame[name] = pd.Series(table[name].to_pylist(), dtype=object)
                if form == "json":
                    text = frame.to_json(orient="records", force_ascii=False, double_precision=15)
                    file.write((("," if rows else "[") + text[1:-1]).encode())
                else:
                    formulas.guard(frame).to_csv(file, index=False, header=rows == 0, quoting=quoting)
            rows += table.num_rows
        if writer:
            writer.close()
        if form == "json":
            file.write(b"]")
    return rows
