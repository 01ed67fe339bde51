"""Show a figure with its data, a table, or the reason why there is none."""

import csv
import html
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import figure_tools
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from internal_policy.errors import InputError
from internal_policy.look import catalogue, export, summary, theme
from internal_policy.look import recipe as recipes
from internal_policy.look.catalogue import Data
from internal_policy.look.recipe import Recipe
from internal_policy.look.targets import in_words, suggestion
from internal_policy.tasks import formulas

LOG = logging.getLogger(__name__)
FIRST_SCAN = "internal-policy scan"
COLOURS = {theme.INK: "#000001", theme.SOFT: "#000002"}
"""Colour of a figure on white -> a placeholder, which Streamlit replaces with the first or second of the theme's
`chartCategoricalColors` in app/.streamlit/config.toml when the browser first draws the figure. If the theme changes
later, style.css recolours it."""
LARGEST = 2**31 - 1
"""Largest position or rollout number that a box accepts."""
JOINER = "\u2060"
"""An invisible character without width, which breaks an address."""
LINKS = re.compile(r"https?(?=\\:\\/)|www(?=\\\.)|\\@", re.IGNORECASE)
"""Where markdown recognizes an address in escaped text, escaped or not: http:, www. and mail addresses."""
LONGEST = 600
"""Longest line in characters; longer ones are cut."""
TALLEST = 240
"""Height in pixels of the box for a long text."""
OWN_SCAN = "internal-policy scan --model ./my-model --problems problems.jsonl --limit 100"


def figure(
    key: str,
    drawn: go.Figure,
    data: pd.DataFrame,
    *,
    recipe: Recipe | None = None,
    clicked: Callable[[], None] | None = None,
) -> None:
    """Draw a chart, with buttons and its data below. A click on a point calls `clicked`."""
    meta = drawn.layout.to_plotly_json()["meta"]
    st.plotly_chart(
        on_page(drawn),
        key=key,
        theme="streamlit",
        config={**export.CONFIG, "modeBarButtonsToRemove": ["toImage"]},  # its images have the page's colours
        alt=f"{meta['title']}: {meta['caption']}",
        on_select=clicked or "ignore",
        selection_mode="points",
    )
    below(key, drawn, data, recipe or Recipe(key, "", ()))


def on_page(drawn: go.Figure) -> go.Figure:
    """The figure in the colours of the page, light or dark, which the browser knows."""
    shown = theme.on_page(drawn)
    layout = str(pio.json.to_json_plotly(shown.layout))
    for colour, placeholder in COLOURS.items():
        layout = layout.replace(f'"{colour}"', f'"{placeholder}"')
        for trace in theme.traces(shown):
            for part in ("line", "marker", "header.font", "cells.font"):
                if part in trace and trace[part].color == colour:
                    trace[part].color = placeholder
    shown.layout = json.loads(layout)
    return shown


def catalogued(name: str, data: Data) -> None:
    """Draw a chart of the catalogue, with its data below."""
    frames = [frame.assign(measure=measure) for measure, frame in data.frames.items()]
    table = pd.concat(frames, ignore_index=True)
    numbers = table if len(frames) > 1 else table.drop(columns="measure")
    figure(name, catalogue.FIGURES[name].draw(data), numbers, recipe=recipes.of_scan(name, data))


@st.fragment
def below(key: str, drawn: go.Figure, data: pd.DataFrame, recipe: Recipe) -> None:
    """The buttons of a chart, and the data behind it, which is only sent to the browser on request."""
    with st.container(key=f"{key}-below", horizontal=True, gap="small", vertical_alignment="center"):
        figure_tools.buttons(key, drawn, recipe)
        download(key, "CSV", data, recipe.file)
    box = st.expander("Data", key=f"{key}-data", on_change="rerun")
    if box.open:
        with box:
            rows(f"{key}-table", data)


@st.fragment
def below_grid(key: str, recipe: Recipe, data: pd.DataFrame | None = None) -> None:
    """The buttons of a lens grid, and the data behind it, which is only sent to the browser on request."""
    with st.container(key=f"{key}-below"):
        figure_tools.buttons(key, None, recipe)
    if data is None:
        return
    box = st.expander("Data", key=f"{key}-data", on_change="rerun")
    if box.open:
        with box:
            rows(f"{key}-table", data)
            download(key, "Download as CSV", data, recipe.file, icon=":material/download:")


def table(key: str, data: pd.DataFrame) -> None:
    """Draw a table of plain text and numbers, with a download button."""
    rows(key, data)
    download(key, "Download as CSV", data, key, icon=":material/download:")


def rows(key: str, data: pd.DataFrame) -> None:
    """Draw a table of plain text and numbers."""
    shown = data.copy()
    for name in shown.select_dtypes(["object", "string"]):
        safe = glyphs if name == "token" else plain
        shown[name] = [safe(value) if isinstance(value, str) else value for value in shown[name]]
    st.dataframe(shown, key=key, hide_index=True, placeholder="–")


def download(key: str, label: str, data: pd.DataFrame, file: str, icon: str | None = None) -> None:
    """A button that saves a table as CSV."""
    st.download_button(
        label,
        lambda: (
            formulas.guard(data).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode(errors="backslashreplace")
        ),
        file_name=f"{file}.csv",
        mime="text/csv",
        key=f"{key}-csv",
        on_click="ignore",
        type="tertiary",
        icon=icon,
    )


def targets(changes: Mapping[str, pd.DataFrame]) -> None:
    """Draw the target layers by each part of an entropy change, of one or more scans by name.

    A scan without stages is left out with a sentence; if it is the only one, this raises InputError.
    """
    several, found = len(changes) > 1, []
    for name, change in changes.items():
        known = summary.targets(change)
        known = known[known["stages"] != ""]
        said = suggestion(change)
        if not len(known) and not several:
            raise InputError(in_words(said))
        if several and said["target"] is None:
            st.text(f"• {line(name)}: {in_words(said)}")
        if several:
            known.insert(0, "scan", name)
        found.append(known)
    if len(shown := pd.concat(found, ignore_index=True)):
        table("targets", shown)
        if dashes := summary.dashes(shown):
            st.caption(dashes)


def number(place: DeltaGenerator, label: str, *, key: str, value: int | None = None, **given: Any) -> int | None:
    """A box for a whole number from 0 that the URL can set; invalid values in the URL are ignored.

    Streamlit's integer boxes raise OverflowError for `?first=1e400`, so this is a float box.
    """
    found = place.number_input(
        label,
        min_value=0.0,
        max_value=float(LARGEST),
        value=None if value is None else float(value),
        step=1.0,
        format="%.0f",
        key=key,
        bind="query-params",
        **given,
    )
    return None if found is None else round(found)


def glyphs(token: str, most: int | None = None) -> str:
    """A token as one line of plain text, with visible symbols for white space and invisible characters."""
    return html.unescape(theme.glyphs(token, most))


def plain(text: str) -> str:
    """Text with its lines and spaces, and visible symbols for invisible characters."""
    return "\n".join(glyphs(line).replace("␣", " ") if line else "" for line in text.split("\n"))


def unmarked(text: str) -> str:
    """Text escaped as markdown, for widgets that can't show plain text. An address in it doesn't become a link."""
    escaped = re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", glyphs(text).replace("␣", " "))
    return LINKS.sub(f"\\g<0>{JOINER}", escaped)


def line(text: str) -> str:
    """A text on one line, cut if it is long."""
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return glyphs(cut).replace("␣", " ") if cut else ""


def long_text(text: str) -> None:
    """Draw a text unchanged, in a box that scrolls if it is long."""
    with st.container(height=TALLEST if len(text) > LONGEST else "content", border=False):
        st.text(plain(text))


def refuse(error: InputError) -> None:
    """Show why something is missing, as plain text because the message can contain any name."""
    with st.container(border=True):  # without a key, because a page can refuse several things
        st.text(f"⚠ {line(str(error))}")


@contextmanager
def refusing() -> Iterator[None]:
    """Show one sentence instead of the block if the block fails.

    Every exception is caught, because files from elsewhere can contain anything. Its traceback goes to the log.
    """
    try:
        yield
    except InputError as error:
        refuse(error)
    except Exception as error:
        LOG.exception("Part of a page failed")
        why = f"{type(error).__name__}: {error}"
        refuse(InputError(f"This can't be drawn ({why[:200]}). The dashboard's terminal shows where it failed."))


def make_your_own() -> None:
    """Show how to make a scan."""
    st.markdown("Scan the bundled model or your own, then reload this page.")
    st.code(f"{FIRST_SCAN}\n{OWN_SCAN}", language="bash")


def nothing_yet() -> None:
    """Show what to do if there are no scans at all."""
    with st.container(key="nothing-yet"):
        st.markdown("There are no scans yet. This command scans the bundled model in about a minute:")
        st.code(FIRST_SCAN, language="bash")
        make_your_own()
