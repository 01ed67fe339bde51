"""A training run: how the layers' policies move while one of them is trained."""

from pathlib import Path

import pandas as pd
import show
import streamlit as st

from internal_policy import cache, heatmaps, plots
from internal_policy.analysis import CHANGES
from internal_policy.errors import InputError

DYNAMICS, METRICS, PASS_AT_K = "dynamics.parquet", "metrics.parquet", "pass_at_k.parquet"
HOLDS = (
    f"The folder of a training run holds {METRICS} (a row a step: step, reward, entropy, ...) and {DYNAMICS} "
    "(a row a step, layer and site: entropy, cosine and kl to the trained layer); there is none here yet."
)
NEEDED = {DYNAMICS: {"step", "layer", "site"}, METRICS: {"step"}, PASS_AT_K: {"label", "k", "mean"}}
NOT_MEASURES = ("step", "layer", "site")


def page() -> None:
    """Draw the page."""
    st.markdown(
        "What training does to the policy of every layer, step by step, with the reward below, and the step at which "
        "the whole policy takes over from the internal one (Figs. 5 to 7 of the paper)."
    )
    folder = choose()
    if folder is None:
        with st.container(key="no-run"):
            st.text(HOLDS)
        return
    metrics = read(folder, METRICS)
    layers(read(folder, DYNAMICS), metrics, folder.name)
    with show.refusing():
        show.figure("training", heatmaps.training(metrics, folder.name), metrics)
    if (folder / PASS_AT_K).exists():
        with show.refusing():
            passed = read(folder, PASS_AT_K)
            show.figure("pass-at-k", plots.pass_at_k(passed, folder.name), passed)


def choose() -> Path | None:
    """The folder of the URL or the list; None if none was named and none is known."""
    found = runs()
    above = st.container()
    typed = st.text_input("Folder of a training run", key="run", bind="query-params")
    if not typed and not found:
        return None
    folder = Path(typed).expanduser() if typed else found[0]
    if found:
        st.session_state["listed_run"] = folder if folder in found else None
        above.selectbox(
            "Run", found, format_func=lambda run: run.name, index=None, key="listed_run", on_change=open_listed
        )
    return folder


def runs() -> list[Path]:
    """Training runs in the cache, newest first."""
    found = [path.parent for depth in ("*", "*/*") for path in cache.root().glob(f"{depth}/{METRICS}")]
    return sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def open_listed() -> None:
    """Take the run that was chosen in the list."""
    st.session_state["run"] = str(st.session_state["listed_run"] or "")


def read(folder: Path, name: str) -> pd.DataFrame:
    """A table of a run. Raises InputError if it is not there, damaged, or of other columns."""
    path = folder / name
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        there = False
    if not there:
        raise InputError(f"{str(folder)[:200]} has no {name}; name the folder of a training run.")
    found = cache.read_part(path).to_pandas()
    if missing := NEEDED[name] - {*found.columns}:
        raise InputError(f"{path} has no column {', '.join(sorted(missing))}; it was not written by a training run.")
    if not len(found):
        raise InputError(f"{path} has no rows yet; look again after the first step.")
    return found


def layers(dynamics: pd.DataFrame, metrics: pd.DataFrame, title: str) -> None:
    """The heatmap of layers and steps."""
    changed = with_change(dynamics)
    measures = [name for name in changed.columns if name not in NOT_MEASURES]
    left, right = st.columns(2)
    measure = left.selectbox("Measure", measures, key="training_measure", bind="query-params")
    sites = sorted(changed.loc[changed[measure].notna(), "site"].unique(), key=lambda site: site != "resid_post")
    site = right.selectbox("Site", sites, key="training_site", bind="query-params")
    if site is None or not len(changed):
        raise InputError(f"{DYNAMICS} has no values of {measure}; choose another measure.")
    with show.refusing():
        drawn = heatmaps.dynamics(changed, metrics, title, measure, site)
        show.figure("dynamics", drawn, changed[changed["site"] == site])


def with_change(dynamics: pd.DataFrame) -> pd.DataFrame:
    """The same with `change`: the entropy at a site less that at its input (Eqs. 11 to 13)."""
    if "entropy" not in dynamics:
        return dynamics
    at = dynamics.set_index(["step", "layer", "site"])["entropy"]
    inputs = dynamics["site"].map({after: before for before, after in CHANGES.values()})
    where = pd.MultiIndex.from_arrays([dynamics["step"], dynamics["layer"], inputs])
    return dynamics.assign(change=dynamics["entropy"].to_numpy() - at.reindex(where).to_numpy())


if __name__ == "__main__":
    page()
