"""Scans compared: two responses cell by cell, and curves of up to four scans at relative depth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import address
import lens_grid
import pandas as pd
import scans
import show
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from internal_policy.errors import InputError, counted
from internal_policy.look import catalogue, comparison, difference_figure, differences, headings, pairs, recipe, view
from internal_policy.look.catalogue import Choice
from internal_policy.look.lens_grid import page, pair, payload
from internal_policy.look.pairs import Side
from internal_policy.look.statistics import Average
from internal_policy.look.view import View
from internal_policy.scans import store

OF_B = {"against": str, "against_readout": str, "against_rollout": int}
CHOICES = {"rollout": int, "layer": int, "position": int, "site": str, "measure": str, **OF_B}
"""What the address holds besides the sidebar's choices and the scans."""
SITE = "resid_post"
"""The site that the grids open on."""
BEGINNING = 60
"""Characters of a response in a list."""


def draw(looked: View, average: Average) -> None:
    """Draw the page."""
    st.markdown(
        "A is the scan that is open in the sidebar. Compare it with other scans, or with another of its readouts or "
        "responses: [cell by cell](#cell-by-cell) and [by layer](#by-layer)."
    )
    others = choose_scans(looked)
    st.subheader("Cell by cell")
    address.read(CHOICES)
    address.write(CHOICES)
    with show.refusing():
        cells(looked, others)
    st.subheader("By layer")
    with show.refusing():
        curves(looked, others, average)


def choose_scans(looked: View) -> list[View]:
    """Draw the choice of up to three other scans, by default one that is worth comparing with."""
    mine = scans.name_of(Path(str(looked.source)))
    known = {name: folder for name, folder in scans.listed().items() if name != mine}
    chosen = [name for name in st.session_state.get("compare") or [] if name != mine]
    if st.session_state.get("compare_with", mine) != mine and not chosen:
        st.session_state["compare"] = default(looked, known)  # another scan was opened
    if st.session_state.get("compare_with", mine) != mine:
        forget_side()
        st.session_state["against"] = None
    st.session_state["compare_with"] = mine
    labels = scans.labelled(known)
    names = st.multiselect(
        "Compare with",
        [*known],
        default=default(looked, known),
        format_func=lambda name: labels.get(name) or show.line(name),
        key="compare",
        bind="query-params",
        max_selections=catalogue.MOST,
        accept_new_options=True,
        placeholder="Choose another scan",
        help="Choose from the list, or type the folder of a scan.",
    )
    folders = dict.fromkeys(scans.find(name) for name in names)
    return [replace(looked, source=folder) for folder in folders if folder != looked.source]


def default(looked: View, known: Mapping[str, Path]) -> list[str]:
    """The scan to compare with first, if one has the same problems or a model of the same shape."""
    folders = [Path(str(looked.source)), *known.values()]
    found = _partner(tuple(zip(["", *known], map(scans.stamp, folders), strict=True)))
    return [] if found is None else [found]


@st.cache_data(max_entries=10, show_spinner=False)
def _partner(known: Sequence[tuple[str, tuple[str, int, int]]]) -> str | None:
    """The name of the scan to compare the first one with, if any."""
    records = {}
    for name, of in known:
        try:
            records[name] = store.record(Path(of[0]))
        except InputError:  # a broken scan is listed, but nothing is compared with it
            continue
    return comparison.partner(records.pop(""), records)


def cells(looked: View, others: Sequence[View]) -> None:
    """Draw the choice of two responses, and their linked grids with the difference."""
    a, b = choose_sides(looked, others)
    reason, caveats = about(a.view, a.rollout, b.view, b.rollout)
    for sentence in caveats:
        st.text(f"• {show.line(sentence)}")
    site = st.session_state.get("site")
    if site not in common_sites(a, b):
        site = None
    position = st.session_state.get("position")
    more = [*st.session_state.get("pair_sites", []), site]
    grids = [numbers(a, more, position), numbers(b, more, None if reason else position)]
    chosen = {"site": site, "position": position} | {name: st.session_state.get(name) for name in ("layer", "measure")}
    given = {name: value for name, value in chosen.items() if value is not None}
    drawn = {**page.data(grids, pair.names(a, b), **given), "why": reason}
    lens_grid.show("pair", drawn, {"kept": keep, "wanted": want})
    shown = site or SITE
    behind = None if reason else by_cell(a.view, a.rollout, b.view, b.rollout, shown)
    made = recipe.of_pair(a, b, shown, given.get("measure"))
    named = replace(made, address=(*made.address, ("against", name_of(b.view))))  # as in the page's list
    show.below_grid("differences", named, behind)


def choose_sides(looked: View, others: Sequence[View]) -> tuple[Side, Side]:
    """Draw the choice of A's response, and of B's scan, readout and response.

    B is by default the first scan that has A's tokens, or else A's own with another readout.
    """
    places = st.columns(4)
    mine = responses(looked)
    a = Side(looked, pick(places[0], "Response of A", "rollout", [*mine], next(iter(mine)), mine.get, forget_response))
    b = choose_view(places[1:3], a, others)
    theirs, alike = responses(b), partners(a.view, b)[a.rollout]
    best = pairs.best(a.view, b, a.rollout)[1].rollout
    if (b, best) == (a.view, a.rollout):  # without another readout, with another response
        best = next((number for number in theirs if number != a.rollout), best)

    def label(number: int) -> str:
        return theirs[number].replace(" · ", " · same tokens · ", 1) if number in alike else theirs[number]

    order = [*dict.fromkeys([*alike, *theirs])]
    return a, Side(b, pick(places[3], "Response of B", "against_rollout", order, best, label))


def choose_view(places: Sequence[DeltaGenerator], a: Side, others: Sequence[View]) -> View:
    """Draw the choice of B's scan and readout."""
    scan, readout = places
    views = {name_of(one): one for one in (*others, a.view)}
    own, labels = name_of(a.view), dict(zip(views, headings.labels([*others, a.view]), strict=True))
    fits = next((name for name, one in views.items() if name != own and partners(a.view, one)[a.rollout]), None)
    measured = readouts_of(a.view)
    usual = fits or (own if len(measured) > 1 or not others else name_of(others[0]))

    def label(name: str) -> str:
        return f"{labels[name]} (A itself)" if name == own else labels[name]

    name = pick(scan, "Scan of B", "against", [*views], usual, label, forget_side)
    measured = readouts_of(views[name])
    other = next((each for each in measured if each != a.view.readout), measured[0])
    usual = a.view.readout if name != own and a.view.readout in measured else other
    with_readout = pick(readout, "Readout of B", "against_readout", measured, usual, view.how, forget_response)
    return replace(views[name], readout=with_readout)


def pick(
    place: DeltaGenerator,
    label: str,
    name: str,
    options: Sequence[Any],
    usual: Any,
    text: Callable[[Any], str | None],
    changed: Callable[[], None] = lambda: None,
) -> Any:
    """Draw a list whose choice is kept in the session under `name`, and from there in the address.

    Raises InputError for a response that doesn't exist. Any other choice that doesn't exist becomes the `usual` one.
    """
    asked = st.session_state.get(name)
    st.session_state[f"{name}_list"] = asked if asked in options else usual

    def take() -> None:
        st.session_state[name] = st.session_state[f"{name}_list"]
        changed()

    place.selectbox(
        label, options, format_func=lambda one: show.line(text(one) or str(one)), key=f"{name}_list", on_change=take
    )
    if isinstance(asked, int) and asked not in options:
        raise InputError(f"{label[-1]} has no rollout {asked}. Choose one from the list.")
    return st.session_state[f"{name}_list"]


def forget_side() -> None:
    """Forget B's readout and response, because another scan has others."""
    st.session_state["against_readout"] = None
    forget_response()


def forget_response() -> None:
    """Forget B's response and the position, because another response has others."""
    st.session_state["against_rollout"] = st.session_state["position"] = None


def keep(cell: Mapping[str, Any]) -> None:
    """Put the cell that was kept in the grids into the session, and with it into the address."""
    scans.stay()
    for name in ("layer", "position", "site", "measure"):
        st.session_state[name] = cell.get(name)


def want(plane: Mapping[str, Any]) -> None:
    """Remember a site that the grids asked for, to send its numbers."""
    st.session_state["pair_sites"] = [*st.session_state.get("pair_sites", []), plane.get("site")]


def name_of(one: View) -> str:
    """The name of a view's scan in the list."""
    return scans.name_of(Path(str(one.source)))


def readouts_of(one: View) -> list[str]:
    """The readouts that a scan was measured with."""
    return store.record(one.source)["selection"]["readouts"]


def common_sites(a: Side, b: Side) -> set[str]:
    """The sites that both scans have."""
    return set.intersection(*({*store.record(side.view.source)["selection"]["sites"]} for side in (a, b)))


def numbers(side: Side, more: Sequence[str | None], position: int | None) -> dict[str, Any]:
    """The numbers of one side around a position, at the sites of the panel and `more` that were measured."""
    measured = store.record(side.view.source)["selection"]["sites"]
    sites = [site for site in measured if site in payload.PANEL or site in more]
    start = side.view.first if position is None else position
    return lens_grid.numbers(side.view, side.rollout, [side.view.readout], sites, start, name_of(side.view))


@scans.kept(20)
def responses(looked: View) -> dict[int, str]:
    """What the lists call the responses of a view: rollout -> its number, length and first words."""
    found = view.rollouts(looked, ["response"]).to_dict("records")
    return {
        int(row["rollout"]): f"{row['rollout']} · {counted(row['tokens'], 'token')} · {row['response'][:BEGINNING]}"
        for row in found
    }


@scans.kept(20)
def partners(a: View, b: View) -> dict[int, list[int]]:
    """For each rollout of A, those of B with the same tokens."""
    return pairs.partners(a, b)


@scans.kept(50)
def about(a: View, rollout: int, b: View, other: int) -> tuple[str, list[str]]:
    """Why two responses can't be subtracted (empty if they can), and what else differs between them."""
    sides = Side(a, rollout), Side(b, other)
    return pairs.obstacle(*sides) or "", pairs.caveats(*sides)


@scans.kept(8)
def by_cell(a: View, rollout: int, b: View, other: int, site: str) -> pd.DataFrame:
    """The differences of entropies and top tokens at a site."""
    return pairs.differences(Side(a, rollout), Side(b, other), site)


@scans.kept(16)
def subtracted(a: View, b: View, average: Average, measure: str) -> pd.DataFrame:
    """The differences of a measure by layer; none if the scans can't be subtracted."""
    if differences.obstacle(a, b, measure):
        return pd.DataFrame()
    return differences.by_layer(a, b, measure, average)


def curves(looked: View, others: Sequence[View], average: Average) -> None:
    """Draw the curves at relative depth and the target layers, of A's readouts if there is no other scan."""
    measured = sorted(readouts_of(looked), key=lambda readout: readout != looked.readout)[: catalogue.MOST]
    views = [looked, *others] if others else [replace(looked, readout=readout) for readout in measured]
    if len(views) < 2:
        st.text("This scan has a single readout. Choose another scan to compare it with.")
        return
    st.markdown(
        "Models of different depth on one scale, from before the first layer (0) to after the last (1) (Figs. 13 and "
        "14 of the paper). The rollouts and positions chosen in the sidebar apply to all of them."
    )
    same = bool(others) and all(all(partners(looked, one).values()) for one in others)
    for sentence in comparison.differences(comparison.comparable(views), same_tokens=same):
        st.text(f"• {show.line(sentence)}")
    names = headings.labels(views)
    for measure in catalogue.CHOICES["compare"]:
        with show.refusing():
            found = scans.data("compare", views, Choice(average=average, measure=measure))
            frames = [frame.assign(scan=name) for frame, name in zip(found.frames.values(), names, strict=True)]
            numbers, made = pd.concat(frames, ignore_index=True), recipe.of_scan("compare", found)
            show.figure(f"compare-{measure}", catalogue.compare(found), numbers, recipe=made)
    for number, (other, name) in enumerate(zip(views[1:], names[1:], strict=True)):
        for measure in catalogue.CHOICES["compare"]:
            with show.refusing():
                found = subtracted(views[0], other, average, measure)
                if len(found):
                    sides = view.labelled(views[0], names[0]), view.labelled(other, name)
                    drawn = difference_figure.difference(found, sides, measure)
                    st.text(differences.in_words(found, measure))
                    show.figure(f"difference-{number}-{measure}", drawn, found)
    st.subheader("Target layer")
    changes = [scans.data("change", [one], Choice(average=average)).frames["change"] for one in views]
    show.targets(dict(zip(names, changes, strict=True)))


if __name__ == "__main__":
    draw(scans.chosen(), scans.average())
