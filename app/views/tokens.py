"""One response token by token: the table of rollouts, and the lens grid of the chosen one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import address
import lens_grid
import pandas as pd
import scans
import show
import streamlit as st

from internal_policy.errors import InputError, counted
from internal_policy.look import recipe, theme, view
from internal_policy.look.lens_grid import page, payload
from internal_policy.look.view import View
from internal_policy.measure.sites import SITES
from internal_policy.scans import store
from internal_policy.tasks.marks import MARK

CHOICES = {"rollout": int, "layer": int, "position": int, "site": str, "measure": str}
"""What the address holds besides the sidebar's choices."""
ROWS, HEAD, ROW = 4, 35, 28
"""Most rows of the table before it scrolls, and the heights of its head and of a row in pixels."""
PROBLEM = 300
"""Characters after which a problem is cut; the grid shows the whole prompt."""
SITE = "resid_post"
"""The site that the grid opens on."""
NATS = "of the model's own policy over the response, in nats"


def draw(looked: View) -> None:
    """Draw the page."""
    before = st.session_state.get("rollout")
    if address.read(CHOICES):
        st.session_state["part"] = None
        if st.session_state.get("rollout") != before and "position" not in st.query_params:
            st.session_state["position"] = None  # of another response
    address.write(CHOICES)
    try:
        known = scans.rollouts(looked)
    except InputError as error:
        show.refuse(error)
        offer_to_clear(looked)
    else:
        choose_rollout(looked, known)


def offer_to_clear(looked: View) -> None:
    """Draw a button that clears the filter, if there is one."""
    if view.words(looked):
        st.button("Clear the filter", key="clear_filter", on_click=clear_filter)


def clear_filter() -> None:
    """Choose all rollouts and positions."""
    st.session_state["where"] = ""
    st.session_state["outcome"], st.session_state["first"] = "all", 0.0
    st.session_state["last"] = st.session_state.get("end")


def choose_rollout(looked: View, known: pd.DataFrame) -> None:
    """Draw the table of rollouts, the buttons to the next one, and the grid of the chosen one, by default the first."""
    numbers = known["rollout"].tolist()
    asked = st.session_state.get("rollout")
    rollout = numbers[0] if asked is None else asked
    place = numbers.index(rollout) if rollout in numbers else None
    if place is not None:
        heading(known.loc[place].to_dict(), place, numbers)
    above = st.container()  # filled last, because the table takes every token of the scan
    if place is None:
        show.refuse(missing(looked, rollout))
        offer_to_clear(looked)
    else:
        with show.refusing():
            grid(looked, rollout)
    if len(numbers) > 1:
        with above, show.refusing():
            table(scans.by_rollout(looked), place)


def missing(looked: View, rollout: int) -> InputError:
    """Why a rollout isn't in the table."""
    n, which = store.record(looked.source)["rollouts"], view.words(looked)
    if rollout < n and which:
        return InputError(f"Rollout {rollout} isn't among the {which}. Choose one from the table.")
    return InputError(f"This scan has no rollout {rollout}. Choose one from the table.")


def heading(row: dict[Any, Any], place: int, numbers: list[int]) -> None:
    """Draw the buttons to the previous and the next rollout, and the problem and answer of this one."""
    with st.container(horizontal=True, vertical_alignment="center", key="heading"):
        if len(numbers) > 1:
            steps = {"Previous": (-1, "chevron_left"), "Next": (1, "chevron_right")}
            for label, (step, icon) in steps.items():
                there = place + step
                exists = 0 <= there < len(numbers)
                st.button(
                    label,
                    key=label.lower(),
                    on_click=open_rollout,
                    args=[numbers[there] if exists else None],
                    disabled=not exists,
                    icon=f":material/{icon}:",
                )
        of = f" ({place + 1} of {len(numbers)})" if len(numbers) > 1 else ""
        reward = [] if pd.isna(row["reward"]) else [marked(row["reward"])]
        answer = [] if pd.isna(row["answer"]) else [f"answer {show.line(str(row['answer'])[:80])}"]
        said = [f"Rollout {row['rollout']}{of}", *reward, counted(row["tokens"], "token"), *answer]
        problem = [show.line(row["problem"][:PROBLEM])] if row["problem"] else []
        st.text("\n".join([" · ".join(said), *problem]))


def marked(reward: float | None) -> str:
    """A reward in words."""
    if reward is None or pd.isna(reward):
        return "not marked"
    return {0.0: "incorrect", 1.0: "correct"}.get(reward, f"reward {reward:.3g}")


def table(known: pd.DataFrame, place: int | None) -> None:
    """Draw the rollouts as rows to choose from, with the one at `place` selected."""
    texts = {name: [show.line(text) for text in known[name]] for name in ("begins", "problem")}
    shown = known.assign(**texts)
    if (known["reward"].isin([0, 1]) | known["reward"].isna()).all():
        shown["reward"] = [marked(reward) for reward in known["reward"]]
    drawn = [name for name in columns(known) if known[name].notna().any()]
    if known["problem"].nunique() == 1:
        drawn.remove("problem")
    select({"rows": [] if place is None else [place], "columns": [], "cells": []})
    st.dataframe(
        shown[drawn],
        key="table",
        hide_index=True,
        height=HEAD + ROW * min(len(known), ROWS) + 2,
        row_height=ROW,
        placeholder="–",
        on_select=lambda: open_row(known["rollout"].tolist()),
        selection_mode=["single-row", "single-cell"],  # a click selects a row in its first column, elsewhere a cell
        alt="The rollouts of the scan",
        column_config=columns(known),
    )


def columns(known: pd.DataFrame) -> dict[str, Any]:
    """The columns of the table, in order."""
    number, text, highest = st.column_config.NumberColumn, st.column_config.TextColumn, known["highest"].max()
    top = None if pd.isna(highest) else float(highest)
    settles = "The first layer by which half of the tokens have the model's own top token and keep it."
    along = "Entropy along the response"
    return {
        "rollout": number("Rollout", width=70),
        "reward": st.column_config.Column("Reward", width=80),
        "tokens": number("Tokens", width=70),
        "entropy": number("Mean entropy", format="%.2f", width=105, help=f"Mean entropy {NATS}."),
        "highest": number("Highest", format="%.2f", width=75, help=f"Highest entropy {NATS}."),
        "settles": number("Settles at layer", width=110, help=settles),
        **{
            name: number(show.line(name.removeprefix(MARK)), width=90)
            for name in map(str, known)
            if name.startswith(MARK)
        },
        "line": st.column_config.LineChartColumn(along, width=190, y_min=0, y_max=top, color=theme.PURPLE),
        "begins": text("Response", width="large"),
        "problem": text("Problem", width="large"),
    }


def select(selection: dict[str, list[Any]]) -> None:
    """Select the row of the rollout on screen, however it was chosen."""
    if st.session_state.get("table", {}).get("selection") != selection:
        st.session_state["table"] = {"selection": selection}


def open_row(numbers: list[int]) -> None:
    """Choose the rollout of the row that was clicked."""
    selected = st.session_state["table"]["selection"]
    if rows := [row for row, _ in selected["cells"]] or selected["rows"]:
        open_rollout(numbers[rows[0]])


def open_rollout(rollout: int) -> None:
    """Choose a rollout. The position is forgotten, because another response has other positions."""
    if rollout != st.session_state.get("rollout"):
        st.session_state["rollout"], st.session_state["position"], st.session_state["part"] = rollout, None, None


def grid(looked: View, rollout: int) -> None:
    """Draw the lens grid around the chosen cell, and the numbers behind it."""
    measured = store.record(looked.source)["selection"]
    site = st.session_state.get("site")
    if site is not None and site not in measured["sites"]:
        if site in SITES:
            show.refuse(view.absent(looked, "entropy", site))
        site = None
    readouts, sites = planes(looked, site)
    plain = replace(looked, readout=measured["readouts"][0])
    start = part(view.positions_of(looked, rollout))
    numbers = lens_grid.numbers(plain, rollout, readouts, sites, start, scans.name_of(Path(str(looked.source))))
    chosen = {"site": site, "readout": looked.readout}
    with show.refusing():
        chosen |= cell(looked, numbers)
    with show.refusing():
        chosen |= measure(looked, numbers, site or SITE)
    given = {name: value for name, value in chosen.items() if value is not None}
    lens_grid.show("lens", page.data([numbers], **given), {"kept": keep, "wanted": want, "read": scans.read_with})
    shown = site or SITE
    made = recipe.of_response(looked, rollout, shown, given.get("measure"))
    show.below_grid("cells", made, scans.at_site(looked, rollout, shown))


def part(measured: range) -> int:
    """The first position of the part of a long response that is drawn. Draws buttons to the other parts."""
    at = st.session_state.get("part")
    at = st.session_state.get("position") if at is None else at
    begin = 0 if at is None or at not in measured else measured.index(at) // payload.MOST * payload.MOST
    shown = measured[begin : begin + payload.MOST]
    if len(shown) < len(measured):
        before, after = measured[max(begin - 1, 0)], measured[min(begin + payload.MOST, len(measured) - 1)]
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button("Previous tokens", key="before", on_click=go_to, args=[before], disabled=begin == 0)
            st.button("Next tokens", key="after", on_click=go_to, args=[after], disabled=shown[-1] == measured[-1])
            st.text(f"Positions {shown[0]} to {shown[-1]} of {measured[0]} to {measured[-1]}.")
    return shown[0]


def go_to(position: int) -> None:
    """Draw the part of the response that has this position."""
    st.session_state["part"] = position


def planes(looked: View, site: str | None) -> tuple[list[str], list[str]]:
    """The readouts and sites that the grid has: the chosen ones, those of the panel, and what it asked for."""
    measured = store.record(looked.source)["selection"]
    if st.session_state.get("planes_of") != looked.source:
        st.session_state["planes_of"], st.session_state["planes"] = looked.source, []
    asked = [(looked.readout, site), *st.session_state["planes"]]
    readouts = [name for name in measured["readouts"] if name in {readout for readout, _ in asked}]
    shown = {*payload.PANEL, *(name for _, name in asked)}
    return readouts, [name for name in measured["sites"] if name in shown]


def cell(looked: View, numbers: dict[str, Any]) -> dict[str, Any]:
    """The chosen layer and position. Raises InputError for one that the response lacks."""
    layer, position = st.session_state.get("layer"), st.session_state.get("position")
    layers = [*store.record(looked.source)["selection"]["layers"], numbers["n_layers"]]
    if layer is not None and layer not in layers:
        raise InputError(
            f"There is no layer {layer}. Choose one from {layers[0]} to {layers[-2]}, or {layers[-1]} for the model's "
            "own policy."
        )
    first, last = numbers["ends"]
    if position is not None and position not in range(first, last + 1, numbers["every"]):
        measured = " that was measured" if numbers["every"] > 1 else ""
        choose = f"Choose one from {first} to {last}{measured}."
        raise InputError(f"There is no position {position} in this response. {choose}")
    shown = range(numbers["first"], last + 1, numbers["every"])[: len(numbers["tokens"])]
    here = position is not None and position in shown
    return {"layer": layer, "position": position if here else None}


def measure(looked: View, numbers: dict[str, Any], site: str) -> dict[str, Any]:
    """The chosen measure. Raises InputError if it doesn't exist at the chosen site."""
    asked = st.session_state.get("measure")
    found = next((known for known in numbers["measures"] if known["name"] == asked), None)
    if found and site not in found["sites"]:
        raise view.absent(looked, found["name"], site)
    return {"measure": asked if found else None}


def keep(cell: dict[str, Any]) -> None:
    """Put the cell that was kept in the grid into the session, and with it into the address."""
    scans.stay()
    for name in ("layer", "position", "site", "measure"):
        st.session_state[name] = cell.get(name)
    st.session_state["part"] = None
    scans.read_with(cell.get("readout"))


def want(plane: dict[str, Any]) -> None:
    """Remember a readout and site that the grid asked for, to send their numbers."""
    scans.read_with(plane.get("readout"))
    st.session_state["planes"] = [*st.session_state.get("planes", []), (plane.get("readout"), plane.get("site"))]


if __name__ == "__main__":
    draw(scans.chosen())
