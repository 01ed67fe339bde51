"""Check which scans can be compared, and what differs between them besides the model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from internal_policy.errors import InputError
from internal_policy.look.view import View, absent, check
from internal_policy.scans import positions, records


def comparable(views: Sequence[View], measure: str = "entropy") -> list[Mapping[str, Any]]:
    """The records of views that can be compared. Otherwise raises InputError with the reason.

    Different readouts can only be compared within one scan, where nothing else differs.
    """
    records = [check(view) for view in views]
    one_scan = all(view.source == views[0].source for view in views)
    for view, record in zip(views, records, strict=True):
        if view.readout != views[0].readout and not one_scan:
            raise InputError(
                f"Can't compare {views[0].source} with the readout {views[0].readout} to {view.source} with "
                f"{view.readout}. Choose one readout."
            )
        if measure not in record["selection"]["measures"]:
            raise absent(view, measure)
    common = set.intersection(*({*record["selection"]["sites"]} for record in records))
    if not common:
        raise InputError(
            f"{' and '.join(str(v.source) for v in views)} have no site in common. Scan again with --sites all."
        )
    return records


def relative(frame: pd.DataFrame, n_layers: int) -> pd.DataFrame:
    """Add `depth`, the share of the model's layers up to and including this one: 1 is after the last layer.

    A layer's input has the depth of the previous layer's output, and `final` has depth 1.
    """
    passed = frame["layer"] + (frame["site"] != "resid_pre" if "site" in frame else 1)
    return frame.assign(depth=np.minimum(passed / n_layers, 1.0))


def _problems(asked: Mapping[str, Any]) -> Any:
    """What identifies the problems or texts: the contents of their files, or texts given as options.

    A hub data set is identified by its name and commit. Lenses are left out, because every model has its own.
    """
    lenses = set(records.lenses(asked).values())
    held = {path: found for path, found in (asked.get("content") or {}).items() if path not in lenses}
    found = [content if "sha256" in (content or {}) else named(path, content) for path, content in held.items()]
    return (found[0] if len(found) == 1 else sorted(found, key=str)) or asked.get("text") or asked.get("problems")


def named(path: str, content: dict[str, Any] | None) -> str:
    """A source of problems in words: its path, or the name and commit of a hub data set."""
    revision = (content or {}).get("revision")
    return f"{path} (commit {revision[:12]})" if revision else path


def differences(records: Sequence[Mapping[str, Any]], same_tokens: bool = False) -> list[str]:
    """What differs between compared scans besides the model, as sentences: the caveats of the comparison.

    Where the scans have the `same_tokens`, it doesn't matter how those were sampled.
    """
    sampling: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "the problems": lambda r: _problems(r["asked"]),
        "the number of rollouts": lambda r: r["rollouts"],
        "the temperature": lambda r: r["asked"].get("temperature"),
        "the maximum length of a response": lambda r: r["asked"].get("max_new_tokens"),
    }
    questions = {} if same_tokens else sampling
    questions |= {
        "the size of the vocabulary, which sets the largest possible entropy": lambda r: r["d_vocab"],
        "the positions that were measured": lambda r: str(positions.of_record(r)) or "all",
        "the precision of the weights": lambda r: r["dtype"],
        "the quantization of the weights": lambda r: r.get("quantization", {}).get("scheme", "none"),
    }
    found = []
    for what, ask in questions.items():
        answers = [ask(record) for record in records]
        if any(answer != answers[0] for answer in answers):
            plain = all(isinstance(answer, int | float | str) for answer in answers)
            found.append(f"The scans differ in {what}{': ' + ', '.join(map(str, answers)) if plain else ''}.")
    return found


def partner(record: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The name of the scan to compare with first: one with the same problems or a model of the same shape, best both.

    `others` holds the records of the other scans by name, newest first. None if there is no such scan.
    """

    def alike(other: Mapping[str, Any]) -> tuple[bool, bool]:
        shape = all(record[name] == other[name] for name in ("family", "n_layers", "d_model", "d_vocab"))
        return shape, _problems(record["asked"]) == _problems(other["asked"])

    best = max(others, key=lambda name: sum(alike(others[name])), default=None)
    return best if best is not None and any(alike(others[best])) else None
