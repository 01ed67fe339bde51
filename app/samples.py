"""The responses that a model wrote while it was trained, step by step."""

from pathlib import Path

import choices
import pandas as pd
import show
import streamlit as st

from internal_policy.look import samples

MOST = 16
"""Most responses on the page."""
LONGEST = 20_000
"""Longest text on the page in characters; the rest is cut."""


def draw(folder: Path) -> None:
    """Draw the responses of a step, if any were kept."""
    if not (folder / samples.SAMPLES).exists():
        return
    st.subheader("Responses")
    with show.refusing():
        kept = samples.read(folder)
        steps = [str(step) for step in sorted(kept["step"].unique())]
        step = choices.choose(st.columns(4)[0], "Step", steps, key="training_step", name=str, first=steps[-1])
        chosen = kept[kept["step"] == int(step)].head(MOST)
        for problem, rows in chosen.groupby("problem", sort=False):
            with st.container(border=True):
                show.long_text(_cut(str(problem)))
                responses(rows)


def responses(rows: pd.DataFrame) -> None:
    """Draw the responses to a problem side by side, each with its reward and advantage."""
    columns = st.columns(max(len(rows), 2))
    for column, row in zip(columns, rows.itertuples(), strict=False):
        with column:
            st.caption(f"Reward {row.reward:.4g}, advantage {row.advantage:+.2f}")
            show.long_text(_cut(str(row.response)) or "(empty)")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
