"""The lens grid as an element of a page. It answers in the browser; only a kept cell and new numbers need a rerun."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

import scans
import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

from internal_policy.look.lens_grid import page, payload
from internal_policy.look.view import View

Events = Mapping[str, Callable[[Any], None]]
NONE: Events = MappingProxyType({})


@cache
def _component() -> ComponentRenderer:
    return component("lens_grid", html='<div class="lens-grid"></div>', css=page.style(), js=page.module())


@scans.kept(8)
def numbers(
    looked: View, rollout: int, readouts: Sequence[str], sites: Sequence[str], position: int, name: str
) -> dict[str, Any]:
    """The numbers of a response around a position, with some readouts and at some sites."""
    return payload.payload(looked, rollout, readouts, sites, position=position, name=name)


def show(key: str, drawn: Mapping[str, Any], on: Events = NONE) -> None:
    """Draw one grid or two linked ones, from what `page.data` returns. `key` keeps the selection from rerun to rerun.

    A change of `drawn["chosen"]` moves the grid. `on` has what is called, by event: `kept` with the chosen cell when
    the user presses Enter, `wanted` with a readout and site that the grid lacks, and `read` with another readout.
    """
    callbacks: dict[str, Any] = {f"on_{event}_change": _telling(key, event, on[event]) for event in on}
    _component()(key=key, data={**drawn, "events": [*on]}, **callbacks)


def _telling(key: str, event: str, called: Callable[[Any], None]) -> Callable[[], None]:
    """A callback that passes on the value of an event."""
    return lambda: called(st.session_state[key][event])
