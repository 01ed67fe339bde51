"""Responses kept of a run are read, or refused in a sentence."""

import pandas as pd
import pytest

from internal_policy.errors import InputError
from internal_policy.look import samples

ROWS = pd.DataFrame({"step": [1], "problem": ["p"], "response": ["r"], "reward": [1.0], "advantage": [0.0]})


def written(folder, frame: pd.DataFrame):
    frame.to_parquet(folder / "samples.parquet")
    return folder


def test_the_responses_of_a_run_are_read(tmp_path):
    pd.testing.assert_frame_equal(samples.read(written(tmp_path, ROWS.assign(more=1))), ROWS, check_dtype=False)


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (ROWS.drop(columns="reward"), "no usable column reward"),
        (ROWS.assign(response=[3]), "no usable column response"),
        (ROWS.assign(problem=[b"p"]), "no usable column problem"),
        (ROWS.assign(step=["one"]), "no usable column step"),
        (ROWS.assign(step=[-1]), "no usable column step"),
        (ROWS[:0], "no rows"),
    ],
)
def test_other_tables_are_refused(tmp_path, frame, reason):
    with pytest.raises(InputError, match=rf"samples.parquet has {reason}. It wasn't written by a training run\.$"):
        samples.read(written(tmp_path, frame))


def test_a_run_without_responses_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no samples.parquet. Train with --samples-every above 0\.$"):
        samples.read(tmp_path)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError):
        samples.read(tmp_path)
