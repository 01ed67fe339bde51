"""Responses that were kept while a model was trained."""

from pathlib import Path

import pandas as pd

from internal_policy.errors import InputError
from internal_policy.scans import store

SAMPLES = "samples.parquet"
"""File in the folder of a run with some of its responses."""
TEXTS, NUMBERS = ("problem", "response"), ("reward", "advantage")
COLUMNS = ("step", *TEXTS, *NUMBERS)


def read(folder: Path) -> pd.DataFrame:
    """The responses kept of a run: step (from 1), problem, response, reward and advantage.

    Raises InputError if the file is missing or damaged, or wasn't written by a training run.
    """
    path = folder / SAMPLES
    if not path.is_file():
        raise InputError(f"{str(folder)[:200]} has no {SAMPLES}. Train with --samples-every above 0.")
    try:
        found = store.read_part(path).to_pandas()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged ({error}). Remove it and write it again.") from error
    wrong = [name for name in COLUMNS if name not in found or not _fits(name, found[name])]
    if wrong or not len(found):
        reason = f"no usable column {wrong[0]}" if wrong else "no rows"
        raise InputError(f"{path} has {reason}. It wasn't written by a training run.")
    return found[[*COLUMNS]]


def _fits(name: str, values: pd.Series) -> bool:
    if name in TEXTS:
        return all(type(value) is str for value in values)
    if name == "step":
        return pd.api.types.is_integer_dtype(values) and bool((values >= 0).all())
    return pd.api.types.is_float_dtype(values)
