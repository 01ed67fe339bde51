"""Check shapes where a signature has them, and only types elsewhere: jaxtyping's wrapper is slow."""

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

whole = jaxtyping.jaxtyped
typed = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
"""Checks types, and fails as jaxtyping does."""


def needs_jaxtyping(hint: Any) -> bool:
    """Whether a hint has a shape, or a name in quotes, which jaxtyping leaves unchecked if it can't be evaluated."""
    return isinstance(hint, str) or any(mark in repr(hint) for mark in ("jaxtyping.", "['", ", '"))


def lean(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the import hook puts on each class and function, without work that finds nothing.

    A function without shapes only has its types checked, and one inside another function gets nothing, because it would
    be wrapped again in every call.
    """

    def decorate(thing: Any) -> Any:
        if "<locals>" in thing.__qualname__:
            return thing
        if isinstance(thing, type) or any(map(needs_jaxtyping, thing.__annotations__.values())):
            return whole(thing, typechecker=typechecker)
        return typed(thing)

    return decorate


jaxtyping.jaxtyped = lean  # pyright: ignore[reportAttributeAccessIssue] the hook looks it up by this name
