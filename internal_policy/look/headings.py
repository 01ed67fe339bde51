"""Tell the scans of a comparison apart in a few words."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from internal_policy.errors import counted
from internal_policy.look import texts
from internal_policy.look.texts import Style
from internal_policy.look.view import About, View, check, how
from internal_policy.scans.records import lenses, sampled

PHONE = {1: 60, 2: 25, 3: 15, 4: 12}
"""How many characters of a heading fit on a line above one to four columns, 390 pixels wide together."""


def _facts(view: View, record: Mapping[str, Any]) -> list[str | None]:
    """What can tell scans of one model apart, in the order in which a label uses it; None where it isn't known."""
    asked = record["asked"]
    named = ("temperature", "seed", "problems", "rollouts")
    weights = str(asked.get("identity") or "").split()  # "sha256 ...", for an adapter "sha256 ... on sha256 ..."
    return [
        how(view.readout),
        record.get("quantization", {}).get("scheme"),
        record["dtype"],
        asked.get("revision"),
        f"weights {weights[1][:8]}" if len(weights) > 1 else None,
        "sampled responses" if sampled(asked) else "given responses",
        *(None if asked.get(name) is None else f"{name} {asked[name]}" for name in named),
        *([f"lens {', '.join(files)}"] if (files := lenses(asked).values()) else [None]),
        counted(record["rollouts"], "rollout"),
        record.get("created", "")[:10] or None,  # a scan in memory has neither
        record.get("digest", "")[:8] or None,
    ]


def labels(views: Sequence[View], most: int = 48) -> list[str]:
    """A short label for each view, different from all others: the model, then what tells it from the others.

    A fact is only named if it tells apart what is still equal. Each is cut to `most` characters. The texts are plain,
    not escaped for plotly.
    """
    records = [check(view) for view in views]
    facts = [_facts(view, record) for view, record in zip(views, records, strict=True)]
    found = [(texts.short(record["model"], most),) for record in records]
    for values in zip(*facts, strict=True):
        told: dict[tuple[str, ...], set[str | None]] = {}
        for label, value in zip(found, values, strict=True):
            told.setdefault(label, set()).add(value)
        found = [
            (*label, texts.short(value, most)) if value and len(told[label]) > 1 else label
            for label, value in zip(found, values, strict=True)
        ]
    seen: Counter[tuple[str, ...]] = Counter()
    named = []
    for label in found:  # the same view twice
        seen[label] += 1
        named.append(" · ".join(label) + (f" ({seen[label]})" if seen[label] > 1 else ""))
    return named


def room(of: int, style: Style) -> int:
    """How many characters fit above each of `of` columns."""
    return (34, 24, 20, 18)[of - 1] if style == "paper" else 72 // of


def heading(about: About, of: int, style: Style) -> list[str]:
    """The lines above a column: the model, what tells it from the others, and its counts."""
    most = room(of, style)
    model, *facts = about.label.split(" · ") if about.label else [texts.short(about.model, most)]
    lines = [model]
    for number, fact in enumerate(facts):
        if number and len(lines[-1]) + 3 + len(fact) <= most:
            lines[-1] += f" · {fact}"
        else:
            lines.append(fact)
    lines.append(texts.n(about))
    if style == "screen":
        lines = [part.strip(" ·,") for line in lines for part in textwrap.wrap(line, PHONE[of])]
    return [*map(texts.inert, lines)]
