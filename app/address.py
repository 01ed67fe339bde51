"""Choices in the page's address that no widget holds. The session keeps them too, under their names."""

from collections.abc import Mapping
from functools import cache

import show
import streamlit as st
from streamlit.components.v2 import component
from streamlit.components.v2.types import ComponentRenderer

KNOWN = "address"
"""The choices that were last read from the address and last written to it."""

LONGEST = 100
"""Most characters of a choice."""
ONE_ENTRY_A_PAGE = """
export default function () {
  if (history.onePerPage) return;
  const push = history.pushState.bind(history);
  history.pushState = (state, title, url) => {
    const same = new URL(url, location.href).pathname === location.pathname;
    return same ? history.replaceState(state, title, url) : push(state, title, url);
  };
  history.onePerPage = true;
}
"""


@cache
def _one_entry_a_page() -> ComponentRenderer:
    return component("one_entry_a_page", js=ONE_ENTRY_A_PAGE)


def one_entry_a_page() -> None:
    """Make one press of the browser's back button leave a page: Streamlit adds an entry for every choice on it."""
    _one_entry_a_page()(key="one_entry_a_page")


def entered(page: str) -> None:
    """Read the address again if the last run was of another page."""
    if st.session_state.get("page") != page:
        st.session_state["page"] = page
        st.session_state.pop(KNOWN, None)


def read(names: Mapping[str, type]) -> bool:
    """Take the choices in the address, unless `write` put them there; return whether there were any.

    Values that aren't of a name's type are ignored. If the user acts before the browser has the last address that
    `write` set, it still sends the one before, which isn't a new choice either.
    """
    texts = _given(names)
    values = {name: _parsed(text, names[name]) for name, text in texts.items()}
    choices = {name: value for name, value in values.items() if value is not None}
    if texts in st.session_state.get(KNOWN, ()):
        choices = {}
    for name, value in choices.items():
        st.session_state[name] = value
    st.session_state[KNOWN] = [texts, texts]
    return bool(choices)


def write(names: Mapping[str, type]) -> None:
    """Put the choices of the session into the address."""
    chosen = {name: st.session_state.get(name) for name in names}
    texts = {name: str(value) for name, value in chosen.items() if value is not None}
    for name in names:
        if name not in texts and name in st.query_params:
            del st.query_params[name]
    if any(st.query_params.get(name) != text for name, text in texts.items()):
        st.query_params.update(texts)
    st.session_state[KNOWN] = [st.session_state[KNOWN][0], _given(names)]


def _given(names: Mapping[str, type]) -> dict[str, str | None]:
    return {name: st.query_params.get(name) for name in names}


def _parsed(text: str | None, kind: type) -> int | str | None:
    """A whole number from 0, or a word; None for anything else."""
    if not text or len(text) > LONGEST:
        return None
    if kind is str:
        return text
    return int(text) if text.isdecimal() and int(text) <= show.LARGEST else None
