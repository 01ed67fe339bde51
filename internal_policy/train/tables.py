"""Tables that grow while a model is trained, and that a resumed run continues."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
from transformers import TrainerState

from internal_policy.scans import store


def until(path: Path, step: int) -> pd.DataFrame:
    """The rows of a table up to a step, which a checkpoint was written after; none at step 0 or without a file."""
    if not step or not path.exists():
        return pd.DataFrame()
    rows = store.read_part(path).to_pandas()
    return rows[rows["step"] <= step]


def appended(rows: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The rows with new ones below, keeping the types of the columns."""
    return pd.concat([rows, new], ignore_index=True) if len(rows) else new


def write(path: Path, rows: pd.DataFrame, state: TrainerState) -> None:
    """Write a table whole or not at all, in the first process."""
    if state.is_world_process_zero:
        store.write_table(path, pa.Table.from_pandas(rows, preserve_index=False))
