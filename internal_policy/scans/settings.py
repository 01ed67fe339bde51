"""The types of what records hold, checked when a record is read, because a record can come from anyone."""

from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

from internal_policy.errors import quoted

TEXTS = (
    *("model", "revision", "identity", "engine", "served_model", "reader", "readout", "scan", "method"),
    "chat_template_kwargs",
)
"""Settings that are texts."""
COUNTS = ("limit", "samples", "max_new_tokens", "seed")
"""Settings that are whole numbers."""
KINDS: Mapping[str, Any] = {
    **dict.fromkeys(TEXTS, str),
    **dict.fromkeys(COUNTS, int),
    **dict.fromkeys(("temperature", "top_p"), float),
    **dict.fromkeys(("text", "names", "modules", "replacements"), list[str]),
    "trust_remote_code": bool,
    **dict.fromkeys(("problems", "rollouts"), str | list[str]),
    "lens": str | list[list[str]],
    "content": dict[str, dict[str, Any] | None],
}
"""Setting -> its type. Each may be missing or null; settings that aren't listed may hold anything."""


def complaint(settings: Any, name: str = "asked") -> str | None:
    """What is wrong with the settings in a record, which are called `name`, in words; None if they are valid."""
    if type(settings) is not dict:
        return f"'{name}' holds {quoted(settings)}; expected an object"
    if wrong := misfit(settings, KINDS, f"{name}."):
        return wrong
    lenses = settings.get("lens")
    if type(lenses) is list and any(len(each) != 2 for each in lenses):
        return f"'{name}.lens' holds {quoted(lenses)}; expected a name and a file for each lens"
    return None


def misfit(values: Mapping[str, Any], kinds: Mapping[str, Any], before: str = "") -> str | None:
    """The first of some values that doesn't have its type, in words; None if all fit or are missing or null."""
    for name, kind in kinds.items():
        value = values.get(name)
        if value is not None and not fits(value, kind):
            return f"'{before}{name}' holds {quoted(value)}; expected {_words(kind)}"
    return None


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from JSON has a type such as `str`, `list[str]` or `dict[str, int] | None`."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Any:
        return True
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if origin is list:
        return type(value) is list and all(fits(item, inner[0]) for item in value)
    if origin is dict:
        return type(value) is dict and all(fits(item, inner[1]) for item in value.values())
    if origin is type(None):
        return value is None
    return type(value) is origin or (origin is float and type(value) is int and abs(value) < 2**63)


def _words(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_words(each) for each in inner if each is not type(None))
    if origin is list:
        return f"a list of {_plural(inner[0])}"
    if origin is dict and inner[1:] not in ((), (Any,)):
        return f"an object of {_plural(inner[1])}"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
    return words.get(origin, "something else")


def _plural(kind: Any) -> str:
    """Several values of a type in words."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_plural(each) for each in inner if each is not type(None))
    if origin is list:
        return f"lists of {_plural(inner[0])}"
    words = {str: "texts", int: "whole numbers", float: "numbers", bool: "true or false", dict: "objects"}
    return words.get(origin, "something else")
