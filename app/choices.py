"""A list of choices that are kept in the address by their own names, whatever the list calls them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import confined
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from internal_policy.look import theme


def choose(
    place: DeltaGenerator, label: str, options: Sequence[str], *, key: str, name: Callable[[str], str], first: str = ""
) -> str:
    """Draw a list of `options`, and return the chosen one, which is `first` unless the address has another.

    Streamlit's own binding would write the text on screen into the address, such as `layer output (resid_post)`. An
    unknown value in the address is ignored.
    """
    default, written = first or options[0], f"{key} in the address"
    asked = st.query_params.get(key)
    if asked != st.session_state.get(written, 0) or st.session_state.get(key) not in options:
        st.session_state[key] = asked if asked in options else default
    chosen = place.selectbox(label, options, format_func=name, key=key)
    if chosen != default:
        st.query_params[key] = chosen
    elif key in st.query_params:
        del st.query_params[key]
    st.session_state[written] = st.query_params.get(key)
    return chosen


def folder(found: Mapping[str, Path], title: str, typed_title: str, *, key: str) -> tuple[str, Path] | None:
    """Draw a list of folders and a box to type another into, whose `key` is in the URL; the name and folder chosen.

    None if nothing was typed and the list is empty. Raises InputError for a folder that the dashboard may not open.
    """
    above, listed = st.container(), f"listed_{key}"
    typed = st.text_input(typed_title, key=key, bind="query-params")
    if not typed and not found:
        return None
    name = typed or next(iter(found))
    path = found[name] if name in found else confined.allowed(Path(name)).expanduser()
    if found:
        shown = next((known for known, each in found.items() if each == path), name)
        st.session_state[listed] = shown
        names = list(dict.fromkeys([*found, shown]))
        above.selectbox(title, names, format_func=theme.short, key=listed, on_change=_take, args=(key, listed))
    return name if name in found else path.name, path


def _take(key: str, listed: str) -> None:
    """Put what was picked in the list into the box."""
    st.session_state[key] = st.session_state[listed] or ""
