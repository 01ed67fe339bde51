"""Compare two responses cell by cell: which have the same tokens, and how their numbers differ."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds

from internal_policy.errors import InputError
from internal_policy.look import comparison, tokens
from internal_policy.look.view import View, absent, check, check_rollout, how, rollouts, within
from internal_policy.scans import positions, store

ELSEWHERE = (
    "A and B were measured at different positions, so only their layers are linked and nothing is subtracted. Scan "
    "again with the same --positions and --every."
)
"""Why two responses with the same tokens can't be subtracted if other tokens of them were measured."""


@dataclass(frozen=True)
class Side:
    """One response of a scan, read with one readout."""

    view: View
    """The scan and the readout."""
    rollout: int
    """The number of the response."""


def partners(a: View, b: View) -> dict[int, list[int]]:
    """For each rollout of A, the rollouts of B whose responses have the same tokens, best first.

    Rollouts with the same prompt come before others. Tokens are the same if their texts are, because two models may
    number them differently.
    """
    mine, others = texts(a), texts(b)
    by_response: dict[tuple[str, ...], list[int]] = {}
    for rollout, (_, response) in others.items():
        by_response.setdefault(response, []).append(rollout)
    return {
        rollout: sorted(by_response.get(response, []), key=lambda other: (others[other][0] != prompt, other != rollout))
        for rollout, (prompt, response) in mine.items()
    }


def texts(view: View) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Rollout of a view -> the texts of the tokens of its prompt and of its response."""
    check(view)
    found = rollouts(view, ["prompt_ids", "response_ids"])
    known = store.read(view.source, "vocabulary").set_index("id")["token"]
    return {
        int(row["rollout"]): (_named(known, row["prompt_ids"]), _named(known, row["response_ids"]))
        for row in found.to_dict("records")
    }


def _named(known: "pd.Series[str]", ids: Sequence[int] | np.ndarray) -> tuple[str, ...]:
    return tuple(known.reindex(np.asarray(ids, dtype=int)).astype(str))


def best(a: View, b: View, rollout: int | None = None) -> tuple[Side, Side]:
    """The two sides to show first: a rollout of A, by default its first with a partner, and one of B.

    B's has the same tokens if there is such a one. Otherwise it has the same number, or is the first.
    """
    found = partners(a, b)
    if rollout is None:
        rollout = next((number for number, same in found.items() if same), next(iter(found)))
    check_rollout(a, rollout)
    if found[rollout]:
        return Side(a, rollout), Side(b, found[rollout][0])
    known = [int(number) for number in rollouts(b)["rollout"]]
    return Side(a, rollout), Side(b, rollout if rollout in known else known[0])


def same_tokens(a: Side, b: Side) -> bool:
    """Whether two responses have the same tokens."""
    return _of(a)[1] == _of(b)[1]


def _of(side: Side) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of the tokens of the prompt and of the response."""
    found = store.of_rollout(side.view.source, "rollouts", side.rollout, ["prompt_ids", "response_ids"])
    known = store.read(side.view.source, "vocabulary").set_index("id")["token"]
    return _named(known, found["prompt_ids"][0].as_py()), _named(known, found["response_ids"][0].as_py())


def obstacle(a: Side, b: Side) -> str | None:
    """Why two responses can't be subtracted cell by cell, in a sentence with the remedy; None if they can be."""
    if a == b:
        return "A and B are the same response with the same readout. Choose another readout, scan or rollout for B."
    one, other = check(a.view), check(b.view)
    if one["n_layers"] != other["n_layers"]:
        return (
            f"A has {one['n_layers']} layers and B has {other['n_layers']}, so their cells can't be subtracted. "
            "The two grids are linked by relative depth instead."
        )
    if not {*one["selection"]["layers"]} & {*other["selection"]["layers"]}:
        return "A and B have no layer in common. Scan again with --layers all."
    if not {*one["selection"]["sites"]} & {*other["selection"]["sites"]}:
        return "A and B have no site in common. Scan again with --sites all."
    if same_tokens(a, b):
        length = len(_of(a)[1])
        is_same = positions.of_record(one).of(length) == positions.of_record(other).of(length)
        return None if is_same else ELSEWHERE
    said = "A and B have different tokens, so only their layers are linked and nothing is subtracted."
    words = [store.read(side.view.source, "vocabulary") for side in (a, b)]
    if a.view.source == b.view.source or not words[0].equals(words[1]):  # another tokenizer can't read A's token ids
        return said
    return f"{said} {_remedy(a.view, other['model'])}"


def _remedy(a: View, model: str) -> str:
    """How to measure another model on the responses of A."""
    if not isinstance(a.source, Path):
        return "Scan both models with the same rollouts."
    export = f"internal-policy export {shlex.quote(str(a.source))} --table rollouts -o rollouts.parquet"
    return (
        f"To scan {model} on the responses of A, run `{export}` and then "
        f"`internal-policy scan --model {shlex.quote(model)} --rollouts rollouts.parquet`."
    )


def caveats(a: Side, b: Side) -> list[str]:
    """What else differs between two responses, as sentences."""
    one, other = check(a.view), check(b.view)
    said = []
    if a.view.readout != b.view.readout:
        said.append(f"A reads {how(a.view.readout)}, B reads {how(b.view.readout)}.")
    if same_tokens(a, b) and _of(a)[0] != _of(b)[0]:
        said.append("The prompts differ, so the responses have the same tokens in another context.")
    if a.view.source != b.view.source:
        said += comparison.differences([one, other], same_tokens(a, b))
    return said


def differences(a: Side, b: Side, site: str = "resid_post", measure: str = "entropy") -> pd.DataFrame:
    """B minus A of a measure at each token and layer of two responses with the same tokens.

    The measure is one of `tokens.cells`, or `probability`, that of the top token. Columns: layer, position, id and
    token (of A), value_a, value_b, difference, and if both scans kept top tokens, top_a, top_b (their texts) and
    same_top. Raises InputError if they can't be subtracted or a scan lacks the measure.
    """
    if reason := obstacle(a, b):
        raise InputError(reason)
    mine, other = (_values(side, site, measure) for side in (a, b))
    found = mine.merge(other, on=["layer", "position"], suffixes=("_a", "_b"))
    found["difference"] = found["value_b"] - found["value_a"]
    found = found.merge(tokens.response(a.view, a.rollout), on="position")
    names = ["layer", "position", "id", "token", "value_a", "value_b", "difference"]
    if "top_a" in found and "top_b" in found:
        found["same_top"] = found["top_a"] == found["top_b"]
        names += ["top_a", "top_b", "same_top"]
    return found[names].sort_values(["position", "layer"], ignore_index=True)


def _values(side: Side, site: str, measure: str) -> pd.DataFrame:
    """A measure at each layer and position, and the text of the top token if it was kept: value, top."""
    has_top = f"{site}.topk_ids" in store.columns(side.view.source, "policies")
    if measure == "probability":
        if not has_top:
            raise absent(side.view, "topk_probs", site)
        return _top(side, site).rename(columns={"probability": "value"})
    values = tokens.cells(side.view, side.rollout, site, measure)
    if not has_top:
        return values
    return values.merge(_top(side, site).drop(columns="probability"), on=["layer", "position"], how="left")


def _top(side: Side, site: str) -> pd.DataFrame:
    """The top token at each layer and position, and at layer outputs of the model's own: top, probability."""
    sites = [site, *(["final"] if site == "resid_post" else [])]
    names = [f"{one}.{name}" for one in sites for name in ("topk_ids", "topk_probs")]
    here = (ds.field("readout") == side.view.readout) & within(side.view)
    rows = store.of_rollout(side.view.source, "policies", side.rollout, ["layer", "position", *names], here).to_pandas()
    # a row has either the layer's list or, past the last layer, that of the model's own policy
    first = {name: rows[name].map(lambda found: found[0], na_action="ignore") for name in names}
    ids, probabilities = (first[names[n]].fillna(first[names[n - 2]]) for n in (0, 1))
    known = store.read(side.view.source, "vocabulary").set_index("id")["token"]
    found = rows[["layer", "position"]].assign(top=ids.map(known), probability=probabilities.astype(float))
    return found[ids.notna()].reset_index(drop=True)
