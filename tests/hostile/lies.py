"""Hypothesis strategies that make a sound file lie: damaged bytes, wrong values, hostile texts and file systems."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Place = tuple[str | int, ...]
"""Keys that lead to a value in JSON."""

TEXTS = (
    "",
    " ",
    "x",
    "\x00",
    "\x1b]0;owned\x07",
    "\x1b]8;;http://evil.invalid/\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m",
    "\u202eevil",
    "\ud800",
    "\U0001f642\u200d\u0301",
    "../../secret.json",
    "/etc/passwd",
    "~nobody/x",
    "file:///etc/passwd",
    "s3://bucket/x",
    "http://127.0.0.1:9/x",
    "a/b@c",
    "evil/model--evil.Model",
    "<script>alert(1)</script>",
    "![x](http://evil.invalid/x.png)",
    "=cmd|' /C calc'!A0",
    "{{ 7 * 7 }}{% for i in range(9**9) %}{% endfor %}",
    "%s%n{0.__class__}",
    "9" * 5000,
    "٣",
    "²",
    "-0",
    "1e400",
    "NaN",
    "True",
    "x" * 100_000,
    "\\" * 999,
)
"""Texts that break careless readers: escapes, paths, addresses, markup, formulas, templates and numbers in disguise."""
NUMBERS = (0, -1, 1, 2, 7, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, -(10**18), 10**4200, 0.5, -0.0, 1e308, 5e-324)
SPECIAL = (float("nan"), float("inf"), float("-inf"))
VALUES = (*TEXTS, *NUMBERS, *SPECIAL, None, True, False, [], {}, [[]], {"": ""}, [None], [1, "x"], {"x": {"y": [0]}})
"""Values in place of others."""
GIVEN = ("argument", "recipe.yaml")
"""Files that a user names: a pipe in their place is the user's own, as in `--config <(...)`."""
DEEP = 3000
"""Levels of nesting, more than Python's stack."""
HELD = "held back"
"""A folder beside a case, whose files no reader may open."""


@dataclass(frozen=True)
class Special:
    """Something that isn't a plain file in the place of one."""

    kind: str
    """folder, fifo, missing, or link."""
    target: str = ""
    """Where a link points to."""


Content = bytes | Special
SPECIALS = (
    Special("missing"),
    Special("folder"),
    Special("fifo"),
    Special("link", "/dev/zero"),
    Special("link", "/etc/shadow"),
    Special("link", "itself"),
    Special("link", f"../{HELD}/nowhere"),
)


def put(path: Path, content: Content) -> None:
    """Write a lie to a path that doesn't exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content.kind == "folder":
        path.mkdir()
    elif content.kind == "fifo":
        os.mkfifo(path)
    elif content.kind == "link":
        path.symlink_to(path.name if content.target == "itself" else content.target)


@st.composite
def of_bytes(draw: st.DrawFn, sound: bytes) -> bytes:
    """Bytes that were flipped, cut, inserted, repeated or overwritten in one to four places."""
    found = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        size = len(found)
        start = draw(
            st.one_of(st.integers(0, size), st.integers(max(0, size - 64), size), st.integers(0, min(64, size)))
        )
        change = draw(st.sampled_from(("flip", "cut", "insert", "repeat", "number", "zero", "end")))
        if change == "flip" and start < size:
            found[start] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del found[start : start + draw(st.sampled_from((1, 4, 64, 4096)))]
        elif change == "insert":
            found[start:start] = draw(st.binary(max_size=12))
        elif change == "repeat":
            found[start:start] = found[start : start + draw(st.sampled_from((8, 512, 4096)))]
        elif change == "number":
            form, number = draw(st.sampled_from((("<i", -1), ("<I", 2**32 - 1), ("<q", 2**40), ("<Q", 2**64 - 1))))
            found[start : start + struct.calcsize(form)] = struct.pack(form, number)
        elif change == "zero":
            found[start : start + 16] = bytes(16)
        else:
            del found[start:]
    return bytes(found)


def places(value: Any, before: Place = (), most: int = 40) -> Iterator[Place]:
    """The places in a JSON value; of long lists and objects only the first and last few."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(len(value))) if isinstance(value, list) else []
    for key in keys if len(keys) <= most else [*keys[:4], *keys[-4:]]:
        yield (*before, key)
        if len(before) < 6:
            yield from places(value[key], (*before, key), most)


def _at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


@st.composite
def of_value(draw: st.DrawFn, sound: Any) -> Any:
    """A JSON value with one to three others at places in it, or with parts left out, doubled or renamed."""
    found = deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(found))
        if not known:
            return draw(st.sampled_from(VALUES))
        place = draw(st.sampled_from(known))
        inside, key = _at(found, place[:-1]), place[-1]
        change = draw(st.sampled_from(("value", "value", "value", "number", "drop", "wrap", "rename", "swap")))
        if change == "value":
            inside[key] = deepcopy(draw(st.sampled_from(VALUES)))
        elif change == "number":
            inside[key] = draw(st.one_of(st.integers(-5, 2**34), st.floats(), st.text(max_size=6)))
        elif change == "drop":
            del inside[key]
        elif change == "wrap":
            inside[key] = draw(st.sampled_from(([inside[key]], {"x": inside[key]}, str(inside[key]))))
        elif change == "rename" and isinstance(inside, dict):
            inside[draw(st.sampled_from(TEXTS))] = inside.pop(key)
        else:
            inside[key] = deepcopy(_at(found, draw(st.sampled_from(known))))
    return found


def written(value: Any) -> bytes:
    """A value as JSON; half a surrogate pair is written as an escape, other letters as UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value).encode() if any("\ud800" <= letter <= "\udfff" for letter in text) else text.encode()


@st.composite
def of_json(draw: st.DrawFn, sound: bytes) -> bytes:
    """A JSON file with other values, keys twice, deep nesting, or damaged bytes."""
    change = draw(st.sampled_from(("value",) * 6 + ("bytes", "twice", "deep", "whole", "long")))
    if change == "bytes":
        return draw(of_bytes(sound))
    value = json.loads(sound)
    if change == "value":
        return written(draw(of_value(value)))
    if change == "twice" and isinstance(value, dict) and value:
        key = draw(st.sampled_from(list(value)))
        return written(value)[:-1] + b", " + written({key: draw(st.sampled_from(VALUES))})[1:]
    if change == "deep":
        return b'{"x": ' + draw(st.sampled_from((b"[", b'{"x": '))) * DEEP
    if change == "long":
        return b'{"x": ' + b"9" * draw(st.sampled_from((5000, 10**6))) + b"}"
    return written(draw(st.sampled_from(VALUES)))


@st.composite
def of_lines(draw: st.DrawFn, sound: bytes) -> bytes:
    """A file of JSON lines in which some lie."""
    lines = sound.splitlines()[:6]
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = draw(of_json(lines[at]))
    return b"\n".join(lines) if draw(st.booleans()) else draw(of_bytes(b"\n".join(lines)))


@st.composite
def of_text(draw: st.DrawFn, sound: bytes) -> bytes:
    """A text with hostile ones inside, or damaged bytes."""
    if draw(st.integers(0, 3)) == 0:
        return draw(of_bytes(sound))
    text = sound.decode(errors="surrogateescape")
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 12)))
        new = draw(
            st.one_of(st.sampled_from(TEXTS), st.text(max_size=8), st.sampled_from((",", '"', "\n", "\r", "\t", "-")))
        )
        text = text[:start] + new + text[end:]
    return text.encode(errors="surrogatepass")


@st.composite
def of_safetensors(draw: st.DrawFn, sound: bytes) -> bytes:
    """A safetensors file whose header lies about sizes, offsets, types and names, or its own length."""
    if draw(st.integers(0, 3)) == 0:
        return draw(of_bytes(sound))
    length = int.from_bytes(sound[:8], "little")
    header, data = json.loads(sound[8 : 8 + length]), sound[8 + length :]
    if "internal_policy" in header.get("__metadata__", {}) and draw(st.booleans()):  # JSON inside of JSON
        told = draw(of_value(json.loads(header["__metadata__"]["internal_policy"])))
        changed = {**header, "__metadata__": {"internal_policy": written(told).decode()}}
    else:
        changed = draw(of_value(header))
    if draw(st.booleans()) and isinstance(changed, dict) and (names := [name for name in header if name in changed]):
        entry = changed[draw(st.sampled_from(names))]
        if isinstance(entry, dict):  # two tensors in one place, or one past the end
            entry["data_offsets"] = draw(
                st.sampled_from(([0, 4], [0, 2**62], [-4, 4], [8, 0], [len(data), len(data) + 4]))
            )
            entry["shape"] = draw(st.sampled_from(([1], [2**62], [0], [-1], [2**32, 2**32], [])))
    head = written(changed)
    told = draw(st.sampled_from((len(head),) * 6 + (0, 1, 2**32, 2**63, 2**64 - 1, 100_000_001)))
    return told.to_bytes(8, "little") + head + data[: draw(st.sampled_from((len(data),) * 4 + (0, len(data) // 2)))]


Lie = Callable[[bytes], st.SearchStrategy[bytes]]
BY_ENDING: dict[str, Lie] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".safetensors": of_safetensors,
    ".parquet": of_bytes,
    ".pt": of_bytes,
}
"""How a name ends -> how its file lies; all others are texts."""


@st.composite
def of_folder(draw: st.DrawFn, sound: dict[str, bytes], lying: tuple[str, ...]) -> dict[str, Content]:
    """One or two files of a folder that lie; the others are sound."""
    names = draw(st.lists(st.sampled_from(lying), min_size=1, max_size=2, unique=True))
    found: dict[str, Content] = {}
    for name in names:
        if name not in GIVEN and draw(st.integers(0, 24)) == 0:
            found[name] = draw(st.sampled_from(SPECIALS))
        else:
            found[name] = draw(BY_ENDING.get(Path(name).suffix, of_text)(sound[name]))
    return found


@st.composite
def cases(
    draw: st.DrawFn, sound: dict[str, dict[str, bytes]], lying: tuple[str, ...]
) -> tuple[str, dict[str, Content]]:
    """One of several sound folders by its name, and its files that lie."""
    name = draw(st.sampled_from(sorted(sound)))
    return name, draw(of_folder(sound[name], tuple(file for file in lying if file in sound[name])))
