"""Tell which scans can be compared, and what differs between them besides the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from internal_policy.errors import InputError
from internal_policy.look.view import View, absent, check


def comparable(views: Sequence[View], measure: str = "entropy") -> list[Mapping[str, Any]]:
    """The records of scans that can be compared. Raises InputError that says why if they cannot."""
    records = [check(view) for view in views]
    for view, record in zip(views, records, strict=True):
        if view.readout != views[0].readout:
            raise InputError(
                f"{views[0].source} has the readout {views[0].readout} but {view.source} has {view.readout}, and their "
                "entropies can't be compared. Choose one readout."
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
    """The frame with `depth`, the share of the model's layers that has been passed after a layer: 1 is all of them.

    A layer's input is drawn where the layer before ended; `final` stands at 1.
    """
    passed = frame["layer"] + (frame["site"] != "resid_pre" if "site" in frame else 1)
    return frame.assign(depth=np.minimum(passed / n_layers, 1.0))


def _problems(asked: Mapping[str, Any]) -> Any:
    """What identifies the problems or texts: the contents of their files, except the lens, which is each model's own.

    A hub data set is identified by its name and commit, and texts given as options by themselves.
    """
    held = {path: found for path, found in (asked.get("content") or {}).items() if path != asked.get("lens")}
    found = [content if "sha256" in (content or {}) else named(path, content) for path, content in held.items()]
    return (found[0] if len(found) == 1 else sorted(found, key=str)) or asked.get("text") or asked.get("problems")


def named(path: str, content: dict[str, Any] | None) -> str:
    """A source of problems in words: its path, or the name and commit of a hub data set."""
    revision = (content or {}).get("revision")
    return f"{path} (commit {revision[:12]})" if revision else path


def differences(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What else than the model differs between scans that are compared, in sentences: caveats of the comparison."""
    questions = {
        "the problems": lambda r: _problems(r["asked"]),
        "how many rollouts": lambda r: r["rollouts"],
        "the temperature": lambda r: r["asked"].get("temperature"),
        "the length limit of a response": lambda r: r["asked"].get("max_new_tokens"),
        "the size of the vocabulary, and so the largest possible entropy": lambda r: r["d_vocab"],
        "the weights' precision": lambda r: r["dtype"],
    }
    found = []
    for what, ask in questions.items():
        answers = [ask(record) for record in records]
        if any(answer != answers[0] for answer in answers):
            plain = all(isinstance(answer, int | float | str) for answer in answers)
            found.append(f"The scans differ in {what}{': ' + ', '.join(map(str, answers)) if plain else ''}.")
    return found
