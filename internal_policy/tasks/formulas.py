"""Keep spreadsheets from running texts in a CSV file as formulas."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FORMULA = re.compile(r"'*([\t\r]\s*\S|[\t\r\n]*([=+@＝＋－＠]|-(?!\d+(\.\d+)?\Z)))")
"""Start of a text that a spreadsheet would run, or that already has a guarding apostrophe; `-5` is a number.

A tab or a carriage return may be removed before a cell is read, and Excel reads full-width signs as the others.
"""


def guarded(text: str) -> str:
    """The text, with a leading apostrophe if a spreadsheet would take it for a formula."""
    return f"'{text}" if FORMULA.match(text) else text


def unguarded(text: str) -> str:
    """The text that was given to `guarded`."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def guard(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The frame with every text guarded, also those in its header; numbers and lists are unchanged."""
    import pandas as pd

    frame = frame.copy(deep=False)
    texts = [pd.api.types.is_string_dtype(kind) or pd.api.types.is_object_dtype(kind) for kind in frame.dtypes]
    for name in frame.columns[texts]:
        cells = list(frame[name])
        safe = [guarded(cell) if isinstance(cell, str) else cell for cell in cells]
        if any(now is not before for now, before in zip(safe, cells, strict=True)):
            frame[name] = pd.Series(safe, index=frame.index, dtype=object)
    return frame.rename(columns=lambda name: guarded(name) if isinstance(name, str) else name)
