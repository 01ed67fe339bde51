"""verl: the files STEP.jsonl of `trainer.rollout_data_dir` and `trainer.validation_data_dir`."""

from collections.abc import Iterator

from internal_policy.errors import InputError, quoted
from internal_policy.tasks import cells
from internal_policy.tasks.formats.response import Response, text_of
from internal_policy.tasks.marks import marks_of
from internal_policy.tasks.rows import Row, at

COLUMNS = ("input", "output", "score")
"""Columns that every row has."""


def read(rows: Iterator[Row]) -> Iterator[Response]:
    """A response for each row. Its score is the reward, and every other number is a mark. Raises InputError.

    verl removes the special tokens of prompts and responses.
    """
    for row in rows:
        with at(row):
            values = row.values
            prompt = values.get("input")
            if not isinstance(prompt, str):
                raise InputError(f"'input' holds {quoted(prompt)}; expected text.")
            truth = values.get("gts")
            yield Response(
                where=row.where,
                prompt=prompt,
                is_bare=True,
                text=text_of(values.get("output"), "output"),
                answer=truth if isinstance(truth, str | int | float) else None,
                reward=cells.number(values, "score"),
                marks=marks_of(values, ("input", "output", "gts")),
            )
