"""Texts on the command line, or from stdin where `-` is written in their place."""

import sys
from collections.abc import Sequence

from internal_policy.errors import InputError
from internal_policy.models import templates
from internal_policy.tasks import rows


def read(given: Sequence[str], name: str) -> tuple[str, ...]:
    """The texts that were given as `name`, with stdin in place of `-`.

    Raises InputError for a text that isn't UTF-8, and if stdin is named twice.
    """
    if given.count("-") > 1:
        raise InputError(f"{name} - is given twice, but stdin can be read only once. Give it once.")
    if any(templates.HALF.search(text) for text in given):  # how Python reads such bytes
        raise InputError(f"{name} isn't UTF-8. Save it as UTF-8 in a file, and read that from stdin with -.")
    return tuple(rows.text_of(sys.stdin.buffer.read(), "stdin") if text == "-" else text for text in given)
