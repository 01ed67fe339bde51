"""Describe a JSON document field by field, and build its JSON Schema."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NONE: Mapping[str, "Field"] = MappingProxyType({})


@dataclass(frozen=True)
class Field:
    """A field of a document."""

    type: str
    """Names of JSON Schema joined by |, such as `number|null`; [] after a name means a list of them."""
    meaning: str
    fields: Mapping[str, "Field"] = field(default_factory=lambda: NONE)
    """The fields of an object, or of each object of a list; a name that ends in ? isn't in every document."""
    values: str = ""
    """Type of the values of an object whose keys are names of anything."""


def text(meaning: str) -> Field:
    """A string."""
    return Field("string", meaning)


def rows(meaning: str, fields: Mapping[str, Field]) -> Field:
    """A list of objects."""
    return Field("object[]", meaning, fields)


def part(meaning: str, fields: Mapping[str, Field], *, optional: bool = False) -> Field:
    """An object, or null if it is `optional`."""
    return Field("object|null" if optional else "object", meaning, fields)


def named(meaning: str, values: str = "") -> Field:
    """An object whose keys are names of anything; without `values` their values are anything too."""
    return Field("object", meaning, values=values)


def schema(found: Field) -> dict[str, Any]:
    """The JSON Schema of a field. Other fields than those described may follow in later versions."""
    kinds = [_schema(kind, found) for kind in found.type.split("|")]
    simple = [kind["type"] for kind in kinds if kind.keys() == {"type"}]
    if len(kinds) == 1 or len(simple) == len(kinds):
        one = kinds[0] if len(kinds) == 1 else {"type": simple}
        return {"description": found.meaning, **one}
    return {"description": found.meaning, "anyOf": kinds}


def _schema(kind: str, found: Field) -> dict[str, Any]:
    if kind.endswith("[]"):
        return {"type": "array", "items": _schema(kind.removesuffix("[]"), found)}
    if kind == "any":
        return {}
    if kind != "object":
        return {"type": kind}
    if not found.fields:
        values = {"additionalProperties": schema(Field(found.values, ""))} if found.values else {}
        return {"type": "object", **values}
    properties = {name.removesuffix("?"): schema(each) for name, each in found.fields.items()}
    required = [name for name in found.fields if not name.endswith("?")]
    return {"type": "object", "properties": properties, "required": required}


def lines(fields: Mapping[str, Field], above: str = "") -> Iterator[tuple[str, Field]]:
    """Each field under its path, such as `rows[].layer`; a name that ends in ? isn't in every document."""
    for name, each in fields.items():
        path = f"{above}{name}"
        yield path, each
        yield from lines(each.fields, f"{path.removesuffix('?')}{'[]' if each.type.startswith('object[]') else ''}.")
