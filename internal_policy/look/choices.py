"""Refuse options that a figure doesn't use."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any

from internal_policy.errors import InputError, joined

FEW = 4
"""Figures that a message names at most."""
ALWAYS = "style"
"""The choice that every figure uses."""


def check(
    figure: str, chosen: Iterable[str], uses: Mapping[str, Collection[str]], spelled: Callable[[str], str] = str
) -> None:
    """Raise InputError for a choice that `figure` doesn't use. `uses` has the choices of every figure by its name.

    `spelled` is how a message writes a choice, such as an option of the command line.
    """
    for name in chosen:
        if name != ALWAYS and name not in uses[figure]:
            users = [each for each, names in uses.items() if name in names]
            if not users or len(users) > FEW:
                raise InputError(f"{spelled(name)} has no effect on {figure}. Leave it out.")
            raise InputError(f"{spelled(name)} only applies to {joined(users)}, not to {figure}. Leave it out.")


def changed(choice: Any) -> list[str]:
    """The fields of a choice that aren't at their defaults."""
    return [field.name for field in fields(choice) if getattr(choice, field.name) != field.default]
