"""A list of choices that are kept in the address by their own names, whatever the list calls them."""

from collections.abc import Callable, Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator


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
