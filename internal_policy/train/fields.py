"""Read a YAML file of fields, checking each against its type and range."""

import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from internal_policy.errors import InputError
from internal_policy.secrecy import HIDDEN, is_secret, redacted
from internal_policy.train.limits import CHOICES, RANGES

LARGEST, DEEPEST = 64 * 1024, 8
"""Largest size in bytes and deepest nesting of a configuration file."""
PATHS = {"deepspeed", "fsdp_config", "accelerator_config"}
"""Fields that take a mapping, or the name of a file with one."""

REQUIRED = {"max_completion_length", "num_generations"}
"""Fields that TRL lets be null, but `train` needs."""
EVALUATED = "train doesn't evaluate. Remove it, and run `internal-policy evaluate` on the trained model"
UNHEEDED = {
    **dict.fromkeys(("do_eval", "do_predict", "eval_strategy", "eval_on_start", "load_best_model_at_end"), EVALUATED),
    "resume_from_checkpoint": "--resume continues a run. Remove it",
    "model_init_kwargs": "the model is loaded with --dtype, --device-map and --attn-implementation. Remove it",
    "auto_find_batch_size": "a step needs all responses to a prompt. Remove it, and lower --micro-batch",
}
"""Fields that have no effect on `train` -> why, and what to use instead."""


def read(file: str | None) -> dict[str, Any]:
    """The fields of BuPOConfig in a YAML file. Raises InputError for an invalid field, and one that `train` ignores."""
    if file is None:
        return {}
    from internal_policy.train.configuration import BuPOConfig

    path, loaded = Path(file), _loaded(Path(file))
    defaults = {field.name: field.default for field in dataclasses.fields(BuPOConfig)}
    for name in loaded:
        if name not in defaults:
            near = get_close_matches(str(name), defaults, 1)
            remedy = f"Did you mean {near[0]}?" if near else "Remove it."
            raise InputError(f"{path} has {_shown(name)}, which isn't a field of BuPOConfig. {remedy}")
    types = get_type_hints(BuPOConfig)
    values = {name: _checked(path, name, types[name], value) for name, value in loaded.items()}
    for name in REQUIRED & values.keys():
        if values[name] is None:
            raise InputError(f"{path} has {name}: null. Give a number, or remove it.")
    for name, remedy in UNHEEDED.items():
        if values.get(name) not in (defaults[name], None):
            raise InputError(f"{path} has {name}: {values[name]}, but {remedy}.")
    return values


def _loaded(path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file. Its size, nesting and aliases are checked before anything is built."""
    import yaml

    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST // 1024} KiB. Use a YAML file of fields.")
        _check_shape(path, yaml.parse(text, yaml.SafeLoader))
        node = yaml.compose(text, yaml.SafeLoader)
        loaded = yaml.safe_load(text)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}. Check the path.") from error
    except OSError as error:
        raise InputError(f"{str(path)[:200]} can't be read ({error.strerror}). Use a YAML file.") from error
    except Exception as error:  # PyYAML passes on all exceptions of int, datetime and others
        raise InputError(f"{path} can't be read ({' '.join(str(error).split())[:200]}). Use a YAML file.") from error
    if not isinstance(loaded, dict):
        kind = "nothing" if loaded is None else type(loaded).__name__
        raise InputError(f"{path} contains {kind}, not fields. Write one NAME: VALUE line per field.")
    names = [key.value for key, _ in node.value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path} has {_shown(twice[0])} twice. Remove one.")
    return loaded


def _check_shape(path: Path, events: Iterator[Any]) -> None:
    """Raise InputError for aliases and deep nesting, which let a few lines expand into gigabytes."""
    import yaml

    depth = 0
    for event in events:
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{path} uses the alias *{event.anchor}. Write out its value instead.")
        if depth > DEEPEST:
            raise InputError(f"{path} is nested more than {DEEPEST} levels deep. Use a YAML file of fields.")


def _checked(path: Path, name: str, kind: Any, value: Any) -> Any:
    """The value of a field, corrected where YAML reads 1e-6 as text or `no` as false. Raises InputError."""
    members: tuple[Any, ...] = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    enums = [member for member in members if isinstance(member, type) and issubclass(member, Enum)]
    if value is False and bool not in members and any(item.value == "no" for enum in enums for item in enum):
        value = "no"
    if isinstance(value, str) and float in members and str not in members:
        with suppress(ValueError):
            value = float(value)
    if not any(_fits(value, member) for member in members):
        expected = " or ".join(dict.fromkeys(_named(member) for member in members))
        shown = HIDDEN if is_secret(name, value) else _shown(redacted(value))
        expected += f", such as [{shown}]" if isinstance(value, str) and list[str] in members else ""
        raise InputError(f"{path} has {name}: {shown}; expected {expected}.")
    if isinstance(value, str) and name not in PATHS and any((get_origin(m) or m) is dict for m in members):
        value = _json(path, name, value)
    low, high = RANGES.get(name, (-math.inf, math.inf))
    if isinstance(value, int | float) and not (low <= value <= high and abs(value) < 2**63):  # NaN is in no range
        raise InputError(f"{path} has {name}: {_shown(value)}; expected {_range(float(low), float(high))}.")
    if name in CHOICES and isinstance(value, str) and value not in CHOICES[name]:
        raise InputError(f"{path} has {name}: {_shown(value)}; expected one of {', '.join(CHOICES[name])}.")
    return value


def _json(path: Path, name: str, text: str) -> dict[str, Any]:
    """The mapping in a JSON text, as TRL's command line accepts it. Raises InputError."""
    try:
        mapping = json.loads(text)
    except (ValueError, RecursionError):
        mapping = None
    if not isinstance(mapping, dict) or not _plain(mapping):
        raise InputError(f"{path} has {name}: {_shown(text)}; expected a mapping, such as {{name: value}}.")
    return mapping


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from YAML has a type."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(origin, type) and issubclass(origin, Enum):
        return value in [item.value for item in origin]
    if isinstance(value, str) and "\0" in value:  # not allowed in a path
        return False
    return type(value) is origin or (origin is float and type(value) is int)


def _plain(value: Any) -> bool:
    """Whether JSON can hold a value: no date, no NaN."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return isinstance(value, str | int | NoneType) or (isinstance(value, float) and math.isfinite(value))


def _named(kind: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is list:
        return f"a list of {_named(inner[0])}"
    if origin is dict:
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Enum):
        return "one of " + ", ".join(str(item.value) for item in origin)
    return {NoneType: "null"}.get(origin, origin.__name__)


def _range(low: float, high: float) -> str:
    """The numbers from `low` to `high` in words."""
    least = "a finite number" if low == -math.inf else "a number above 0" if 0 < low < 1 else f"{low:g} or more"
    most = "" if high > 2**32 else ", less than 1" if 0 < high < 1 else f", at most {high:.0f}"
    return least + most


def _shown(value: Any) -> str:
    """A value for a message, shortened if it is long."""
    try:
        text = repr(value) if not isinstance(value, str) else value
    except ValueError:  # an integer with more digits than Python will print
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."
