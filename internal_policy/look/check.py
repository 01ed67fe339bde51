"""Judge whether an entropy pattern is real: which claims about a scan survive which controls."""

import shlex
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from internal_policy.errors import DamageError, InputError, counted, joined
from internal_policy.jupyter import notebook
from internal_policy.look import control, evidence, view
from internal_policy.look.claim import CLAIMS, Judged
from internal_policy.look.control import Control
from internal_policy.look.evidence import Evidence
from internal_policy.look.view import View
from internal_policy.measure.sites import CHANGES
from internal_policy.scans import repeat, store

SURVIVES, FAILS, UNTESTED = "survives", "fails", "not tested"
HOLDS, DOES_NOT_HOLD = "holds", "does not hold"
MARKS = {SURVIVES: "✓", FAILS: "✗", UNTESTED: "–"}
LEGEND = (
    "✓ survives, ✗ doesn't, – wasn't tested. The flow is in nats; changes and stages are the share of layers that keep "
    "their sign or stage (in the first row the share with a sign); the target is a layer."
)
"""What the cells of `Check.matrix` mean."""


@dataclass(frozen=True, repr=False)
class Check:
    """Which claims about a scan are real."""

    verdicts: pd.DataFrame
    """One row per claim: claim, title, verdict, reason (a sentence), tested and untested (how many controls)."""
    results: pd.DataFrame
    """One row per claim and control: claim, control, outcome (survives, fails, not tested), text, value."""
    controls: pd.DataFrame
    """One row per control: control, title, rule, tested (whether it was), note (what it left out, or why not)."""
    options: tuple[str, ...] = ()
    """Options of `scan` that measure what untested controls need."""
    command: str = ""
    """The command of the scan with these options; empty if it isn't known."""

    @property
    def matrix(self) -> pd.DataFrame:
        """The outcomes as a table of texts: one row per control, one column per claim. `LEGEND` explains the cells."""
        cells = {(row["claim"], row["control"]): _cell(row) for row in self.results.to_dict("records")}
        columns = {claim.heading: [cells[claim.name, name] for name in self.controls["control"]] for claim in CLAIMS}
        return pd.DataFrame({"control": self.controls["title"].to_list(), **columns})

    @property
    def notes(self) -> list[str]:
        """What the controls left out, or why they weren't tested, in sentences."""
        return [f"{row['title']}: {row['note']}." for row in self.controls.to_dict("records") if row["note"]]

    def sentences(self) -> list[str]:
        """The verdict on each claim, with its reason."""
        return [f"{row.title}: {row.verdict}. {row.reason}" for row in self.verdicts.itertuples()]

    def __repr__(self) -> str:
        """The verdicts and the outcomes."""
        return "\n".join(["<Check>", *self.sentences(), self.matrix.to_string(index=False), LEGEND])

    def _repr_html_(self) -> str:
        """The same, for a notebook."""
        return notebook.page(
            lambda: notebook.sentences(self.sentences()),
            lambda: notebook.table(self.matrix),
            lambda: notebook.sentences([LEGEND]),
        )


def _cell(row: Mapping[Hashable, Any]) -> str:
    """The outcome of a claim under a control as a mark, with its value."""
    form = next(claim.form for claim in CLAIMS if claim.name == row["claim"])
    value = "" if row["outcome"] == UNTESTED else "none" if np.isnan(row["value"]) else form.format(row["value"])
    return f"{MARKS[row['outcome']]} {value}".rstrip()


def check(one: View) -> Check:
    """Judge every claim under every control, for one readout of a scan.

    docs/check.md defines the claims, the controls and what surviving means. Raises InputError for a broken scan.
    """
    view.check(one)
    listed = control.controls_of(one)
    shown: dict[str, Evidence] = {}
    notes: dict[str, str] = {}
    for each in listed:
        try:
            shown[each.name] = evidence.of(one, each)
            notes[each.name] = shown[each.name].note
        except DamageError:
            raise
        except InputError as error:
            notes[each.name] = str(error)
    results = judged(shown, notes)
    rows = [
        {"control": each.name, "title": each.title, "rule": each.rule, "tested": each.name in shown}
        | {"note": notes[each.name]}
        for each in listed
    ]
    record = store.record(one.source)
    options = missing(record, [each for each in listed if each.name not in shown])
    return Check(verdicts(results, listed, one.readout), results, pd.DataFrame(rows), options, again(record, options))


def missing(record: Mapping[str, Any], untested: Iterable[Control]) -> tuple[str, ...]:
    """Options of `scan` that measure what these controls, or claims, lack in a scan with this record."""
    chosen = record["selection"]
    some = record.get("asked", {}).get("sites", "all") != "all"  # all takes what the family has, which can be fewer
    sites = (
        ["--sites all"] if some and {site for pair in CHANGES.values() for site in pair} - {*chosen["sites"]} else []
    )
    lacked = [
        each.option
        for each in untested
        if {*each.measures} - {*chosen["measures"]} or {each.readout} - {None, *chosen["readouts"]}
    ]
    return tuple(dict.fromkeys([*lacked, *sites]))


def again(record: Mapping[str, Any], options: Sequence[str]) -> str:
    """The command that makes a scan again with more options; empty without options, or if it isn't known."""
    added = [word for option in options for word in option.split()]
    words = repeat.repeated(record.get("command"), *(word for word in added if word.startswith("--")))
    return shlex.join([*words, *added]) if words and added else ""


def judged(shown: dict[str, Evidence], notes: dict[str, str]) -> pd.DataFrame:
    """The outcome of each claim under each control: claim, control, outcome, text, value.

    `shown` has the evidence by control, first that as measured, and `notes` why a control has none. If a pattern isn't
    there as measured, other controls aren't tested.
    """
    rows = []
    measured = shown.get("simultaneous")
    for claim in CLAIMS:
        there = claim.judge(measured, measured) if measured else Judged(None, notes["simultaneous"])
        for name, note in notes.items():
            if name == "simultaneous":
                found = there
            elif not there.survives:
                found = Judged(None, "the pattern isn't there as measured" if there.survives is False else there.text)
            else:
                assert measured is not None
                found = claim.judge(measured, shown[name]) if name in shown else Judged(None, note)
            outcome = UNTESTED if found.survives is None else SURVIVES if found.survives else FAILS
            rows.append({"claim": claim.name, "control": name, "outcome": outcome, **found._asdict()})
    return pd.DataFrame(rows).drop(columns="survives").astype({"value": float})


def verdicts(results: pd.DataFrame, listed: Sequence[Control], readout: str) -> pd.DataFrame:
    """The verdict on each claim with the reason: claim, title, verdict, reason, tested, untested.

    `holds` if it survives every control that was tested. `does not hold` if it isn't significant for all layers at
    once, or vanishes without a few positions. Otherwise another reading of the same hidden states doesn't show it, and
    it holds for this readout only, such as `holds for raw only`. `not tested` if the scan can't tell.
    """
    known = {each.name: each for each in listed}
    rows = []
    for claim in CLAIMS:
        found = {row["control"]: row for row in results[results["claim"] == claim.name].to_dict("records")}
        outcome, text = found["simultaneous"]["outcome"], found["simultaneous"]["text"]
        failed = [known[name] for name, row in found.items() if row["outcome"] == FAILS]
        tested = sum(row["outcome"] != UNTESTED for row in found.values())
        if outcome == UNTESTED:
            verdict, reason = UNTESTED, f"Not tested: {text}."
        elif outcome == FAILS:
            verdict, reason = DOES_NOT_HOLD, claim.unseen.format(text)
        elif failed:
            of_data = [each for each in failed if not each.reads]
            verdict = DOES_NOT_HOLD if of_data else f"holds for {readout} only"
            why = joined([f"{each.phrase} ({found[each.name]['text']})" for each in of_data or failed])
            reason = f"{claim.seen.format(text)}, but {claim.lost} {why}."
        else:
            verdict = HOLDS
            reason = f"{claim.seen.format(text)}, and {claim.kept} under {_every(tested)} tested."
        row = {"claim": claim.name, "title": claim.title, "verdict": verdict, "reason": reason}
        rows.append({**row, "tested": tested, "untested": len(found) - tested})
    return pd.DataFrame(rows)


def _every(tested: int) -> str:
    return "the only control" if tested == 1 else f"all {counted(tested, 'control')}"
