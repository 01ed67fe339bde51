"""Merge Jacobian lenses that were fitted on different sequences."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from internal_policy.errors import InputError, counted
from internal_policy.lenses import card, file
from internal_policy.lenses.header import header
from internal_policy.lenses.lens import FittedLens, Jacobian
from internal_policy.tasks.prompts import Ids

SAME = ("identity", "d_model", "n_layers", "max_length", "skip", "probes")
"""What lenses that are merged must have in common."""


def digests(sequences: Sequence[Ids]) -> list[str]:
    """What identifies each sequence, so that none counts twice."""
    return [hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] for ids in sequences]


def merge(lenses: Mapping[str, FittedLens]) -> FittedLens:
    """The Jacobian lens of all sequences together: the mean of the lenses, each weighted by its number of sequences.

    It equals the lens that is fitted on all of them at once, up to the rounding of the given ones, unless they have
    probes: then both are unbiased estimates. The keys name the lenses in errors. Raises InputError unless there are two
    or more, of the same model, hook points and settings, and on different sequences.
    """
    if len(lenses) < 2:
        raise InputError("There is nothing to merge. Name 2 or more lenses.")
    for name, lens in lenses.items():
        check(name, lens.about, lens.kind)
    (first, reference), *others = lenses.items()
    for name, lens in others:
        if different := [key for key in SAME if lens.about.get(key) != reference.about.get(key)]:
            was, now = (one.about.get(different[0]) for one in (reference, lens))
            raise InputError(
                f"{name} has another {different[0]} than {first} ({now!s:.60} and {was!s:.60}). Merge lenses of one "
                "model, fitted with the same options."
            )
        if lens.at.keys() != reference.at.keys():
            point = min(lens.at.keys() ^ reference.at.keys(), key=str)
            raise InputError(f"Only one of {first} and {name} has a map for {point}. Fit them with the same --sites.")
    total = Counter(digest for lens in lenses.values() for digest in lens.about["digests"])
    if twice := sum(number > 1 for number in total.values()):
        raise InputError(
            f"{counted(twice, 'sequence')} would count twice, because two of the lenses were fitted on the same. Fit "
            "them on different texts."
        )
    weights = [len(lens.about["digests"]) for lens in lenses.values()]
    at = {}
    for point, one in reference.at.items():
        each = [weight * lens.at[point][0].double() for weight, lens in zip(weights, lenses.values(), strict=True)]
        at[point] = Jacobian((torch.stack(each).sum(0) / sum(weights)).to(one[0].dtype))
    return FittedLens(at, reference.n_layers, _about([lens.about for lens in lenses.values()]))


def check(name: str, about: Mapping[str, Any], kind: str) -> None:
    """Raise InputError for a lens that can't be merged."""
    if kind != "jacobian":
        raise InputError(
            f"{name} is a {kind} lens, but only Jacobian lenses can be merged. Fit it on all texts at once."
        )
    if not about.get("digests") or any(about.get(key) is None for key in ("identity", "d_model", "n_layers")):
        raise InputError(
            f"{name} doesn't record what it was fitted on. Merge files that `fit-lens --kind jacobian` wrote."
        )


def read(paths: Sequence[Path | str]) -> dict[str, FittedLens]:
    """The lenses in files, by their names, to be merged. Raises InputError; see `file.read`."""
    if twice := [name for name, number in Counter(map(str, paths)).items() if number > 1]:
        raise InputError(f"{twice[0]} is named twice. Name each lens once.")
    lenses = {}
    for name in map(str, paths):
        head = header(Path(name))
        check(name, head.about, head.kind)
        lenses[name] = file.read(Path(name), head.about["n_layers"], head.about["d_model"])
    return lenses


def _about(every: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the file of a merged lens tells: its KL isn't known, because no held-out text was read."""
    fitted = [about["fitted_on"] for about in every]
    sums = {key: sum(one[key] for one in fitted) for key in ("rollouts", "sequences", "tokens")}
    names = ", ".join(dict.fromkeys(str(one["file"]) for one in fitted))
    left_out = (*card.TABLES, "maps", "held_out", "fitted_on", "digests")
    return {
        **{key: value for key, value in every[0].items() if key not in left_out},
        "fitted_on": {"file": names, **sums},
        "merged": len(every),
        "digests": [digest for about in every for digest in about["digests"]],
    }
