"""The scan on screen: chosen in the sidebar, kept in the URL, read once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args

import confined
import pandas as pd
import show
import streamlit as st

from internal_policy import bundle
from internal_policy.errors import InputError
from internal_policy.look import catalogue, headings, theme, tokens, view
from internal_policy.look import rollouts as summaries
from internal_policy.look.catalogue import Choice, Data
from internal_policy.look.statistics import Average
from internal_policy.look.view import About, Outcome, View
from internal_policy.scans import store
from internal_policy.tasks.marks import MARK

CAPTIONS = {
    "raw": "hidden states as they are (the paper)",
    "norm": "through the final norm (the logit lens)",
    "tuned": "through fitted translators, then the final norm (the tuned lens)",
    "jacobian": "through the average Jacobian, then the final norm (the Jacobian lens)",
}
"""What is shown below a readout; other lenses only show their names."""
F = TypeVar("F", bound=Callable[..., Any])
OF_ONE_SCAN = ("rollout", "layer", "position")
"""Choices within a scan, which are dropped when another scan is opened."""


def listed() -> dict[str, Path]:
    """Finished scans by their names in the URL: those that the command line names, those of the cache, newest first,
    and the bundled ones.
    """
    root = store.root()
    mine = {str(folder): folder for folder in confined.named(store.RECORD)}
    cached = {folder.relative_to(root).as_posix(): folder for folder in store.scans() if confined.holds(folder)}
    return mine | cached | {folder.name: folder for folder in bundle.scans()}


def find(name: str) -> Path:
    """The folder of a scan by its name in the list, the start of its digest, or its path.

    Raises InputError, also for a folder that is outside the cache and isn't named on the command line.
    """
    known = listed()
    if name in known:
        return known[name]
    try:
        inside = store.root() / name
        if name and confined.holds(inside) and (inside / store.ASKED).exists():
            return inside
        if len(PurePath(name).parts) > 1 or name.startswith("~"):
            return store.find(str(confined.allowed(Path(name)).expanduser()))
        return confined.allowed(store.find(name))
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # an impossible file name, or ~ of an unknown user
        why = error.strerror if isinstance(error, OSError) else error  # str(error) has the whole name in it
        raise InputError(f"'{name[:80]}' isn't a folder ({why}). Choose a scan from the list.") from error


def name_of(folder: Path) -> str:
    """The name of a scan in the list, or its path if it isn't listed there."""
    return next((name for name, path in listed().items() if path == folder), str(folder))


def stamp(folder: Path) -> tuple[str, int, int]:
    """A value that differs between a scan and another one that replaced it in the same folder."""
    try:
        status = (folder / store.RECORD).stat()
    except OSError:
        return str(folder), 0, 0
    return str(folder), status.st_mtime_ns, status.st_size


def _identity(looked: View) -> tuple[Any, ...]:
    return (*stamp(Path(str(looked.source))), looked.readout, looked.outcome, looked.first, looked.last, looked.where)


def kept(entries: int) -> Callable[[F], F]:
    """Cache a function's last results for as long as the scans it reads don't change."""
    return st.cache_data(  # pyright: ignore[reportReturnType]
        max_entries=entries, show_spinner="Reading the scan", hash_funcs={View: _identity}
    )


def labelled(known: Mapping[str, Path]) -> dict[str, str]:
    """A label for each scan by its name, which tells it from other scans of the same model."""
    return _labels(tuple((name, stamp(folder)) for name, folder in known.items()))


@st.cache_data(max_entries=10, show_spinner=False)
def _labels(known: Sequence[tuple[str, tuple[str, int, int]]]) -> dict[str, str]:
    views = {name: whole for name, of in known if (whole := _whole(Path(of[0])))}
    full = headings.labels([*views.values()])
    brief = [" · ".join([PurePath(model).name, *facts]) for model, *facts in (label.split(" · ") for label in full)]
    named = dict(zip(views, brief if len({*brief}) == len(brief) else full, strict=True))
    return {name: named.get(name) or f"{theme.short(name)} · broken" for name, _ in known}


def _whole(folder: Path) -> View | None:
    """All of a scan; None if it can't be shown."""
    try:
        whole = view.default(folder)
        view.check(whole)
    except InputError:
        return None
    return whole


@st.cache_data(max_entries=100, show_spinner=False)
def _marked(of: tuple[str, int, int]) -> bool:
    """Whether the rollouts of a scan have rewards."""
    return bool(store.read(Path(of[0]), "rollouts", ["reward"])["reward"].notna().any())


@st.cache_data(max_entries=100, show_spinner=False)
def _marks(of: tuple[str, int, int]) -> list[str]:
    """Names of the marks of a scan's rollouts."""
    return [name.removeprefix(MARK) for name in store.columns(Path(of[0]), "rollouts") if name.startswith(MARK)]


@st.cache_data(max_entries=100, show_spinner=False)
def _longest(of: tuple[str, int, int]) -> int:
    """Tokens of the longest response of a scan."""
    return int(store.read(Path(of[0]), "rollouts", ["response_ids"])["response_ids"].map(len).max())


def choose(uses: Collection[str], *, of_tokens: bool) -> str | None:
    """Draw the sidebar with the choices that a page `uses`, and return the label of the scan.

    `chosen` returns the view. Pages `of_tokens` open on the norm readout.
    """
    known = listed()
    if opened := st.session_state.pop("opened", None):
        st.session_state["scan"] = opened
        _forget()
    default = next((name for name, folder in known.items() if _whole(folder)), next(iter(known), ""))
    with st.sidebar:
        above = st.container()  # the list is drawn above the box, whose value decides
        name = st.text_input(
            "Folder or name of a scan",
            placeholder=default,  # not its value, which Streamlit would leave out of the address
            key="scan",
            bind="query-params",
            on_change=_forget,
            help="A scan's folder, or the first digits of its digest. `internal-policy ls` lists the scans.",
        )
        name = name or default
        try:
            folder = find(name) if name else None
            st.session_state["looked"] = _filtered(folder, uses, of_tokens) if folder else None
        except InputError as error:
            folder, st.session_state["looked"] = None, error
        if not name:
            return None
        with above:
            return _list(known, name, folder)


def _list(known: dict[str, Path], name: str, folder: Path | None) -> str:
    """Draw the list of scans, and add what was typed if it isn't one of them. Returns the label of the scan."""
    named = labelled(known)
    shown = next((name for name, path in known.items() if path == folder), name)
    st.session_state["listed"] = shown
    st.selectbox(
        "Scan",
        list(dict.fromkeys([*known, shown])),
        format_func=lambda name: named.get(str(name), str(name)),
        key="listed",
        on_change=_open_listed,
    )
    return named.get(shown) or theme.short(shown)


def _readout(measured: Sequence[str], of_tokens: bool) -> str:
    """Draw the choice of a readout. Until one is picked, each page opens on its own."""
    asked = st.query_params.get("readout")
    own = measured.index("norm") if of_tokens and "norm" in measured else 0
    if asked in measured:
        st.session_state["picked_readout"] = True
    if "readout" in st.session_state and not st.session_state.get("picked_readout"):
        st.session_state["readout"] = measured[own]
    readout = st.radio(
        "Readout",
        measured,
        own,
        format_func=show.unmarked,
        captions=[CAPTIONS.get(name) or show.unmarked(view.how(name)) for name in measured],
        key="readout",
        bind="query-params",
        on_change=_pick_readout,
    )
    if asked in CAPTIONS and asked not in measured:
        st.caption(f"This scan was not measured with the {asked} readout.")
    return readout


def _pick_readout() -> None:
    st.session_state["picked_readout"] = True


def read_with(readout: str | None) -> None:
    """Choose a readout of the scan on screen, from a callback."""
    if readout in store.record(chosen().source)["selection"]["readouts"]:
        st.session_state["readout"] = readout
        _pick_readout()


def stay() -> None:
    """Name the scan on screen in the address, from a callback: another one may be the default tomorrow."""
    if not st.session_state.get("scan"):
        st.session_state["scan"] = name_of(Path(str(chosen().source)))


def _filtered(folder: Path, uses: Collection[str], of_tokens: bool) -> View:
    """The view of a scan that the rest of the sidebar selects. Raises InputError for a broken scan."""
    measured: list[str] = store.record(folder)["selection"]["readouts"]
    readout = _readout(measured, of_tokens) if "readout" in uses else measured[0]
    outcome: Outcome = "all"
    if "outcome" in uses and _marked(stamp(folder)):
        picked: Outcome | None = st.segmented_control(
            "Rollouts",
            get_args(Outcome),
            default="all",
            required=True,
            key="outcome",
            bind="query-params",
            help="A response is correct if its reward is 1 or more.",
        )
        outcome = picked or "all"  # an empty URL parameter selects nothing
    where = _conditions(stamp(folder)) if "outcome" in uses else ()
    first, last = _positions(_longest(stamp(folder)) - 1) if "positions" in uses else (0, None)
    if "average" in uses:
        st.segmented_control(
            "Average over",
            get_args(Average),
            default="tokens",
            required=True,
            key="average",
            bind="query-params",
            help="Every token counts the same (as in the paper), or every rollout does.",
        )
    return View(folder, readout, outcome, first, last, where)


def _conditions(of: tuple[str, int, int]) -> tuple[str, ...]:
    """Draw the box for conditions on marks, if the rollouts of the scan have any."""
    if not (marks := _marks(of)):
        return ()
    text = st.text_input(
        "Rollouts with",
        key="where",
        bind="query-params",
        max_chars=1000,
        placeholder=f"{marks[0]}>=0.5",
        help="Conditions on the numbers that came with the responses, with semicolons between them: "
        + show.plain(", ".join(marks))[:1000],
    )
    return tuple(part.strip() for part in (text or "").split(";") if part.strip())


def _positions(end: int) -> tuple[int, int | None]:
    """Draw the choice of positions, up to the `end` of the longest response. The last one is None if it is the end."""
    if st.session_state.get("last") == st.session_state.get("end"):
        st.session_state["last"] = float(end)  # another scan ends elsewhere
    st.session_state["end"] = float(end)
    left, right = st.columns(2)
    first = show.number(left, "From position", key="first", value=0)
    last = show.number(right, "to position", key="last", value=end)
    return first or 0, None if last is None or last >= end else last


def _open_listed() -> None:
    st.session_state["scan"] = st.session_state["listed"]
    _forget()


def _forget() -> None:
    for key in OF_ONE_SCAN:
        st.session_state[key] = None


def none() -> bool:
    """Whether no scan is chosen, because there are none."""
    return st.session_state["looked"] is None


def chosen() -> View:
    """The view on screen. Raises InputError if the chosen scan can't be shown."""
    looked = st.session_state["looked"]
    if isinstance(looked, InputError):
        raise looked
    return looked


def average() -> Average:
    """What averages are over: every token counts the same, or every rollout."""
    return st.session_state.get("average") or "tokens"  # an empty URL parameter selects nothing


@kept(50)
def about(looked: View) -> About:
    """The model, readout and counts of a view, for captions."""
    return view.about(looked)


@kept(50)
def data(name: str, views: Sequence[View], choice: Choice) -> Data:
    """The data of a figure of the catalogue. Raises InputError if it was not measured."""
    return catalogue.data(name, views, choice)


@kept(4)
def by_rollout(looked: View) -> pd.DataFrame:
    """The rollouts of a view with their entropies, settling layer and first words."""
    return summaries.by_rollout(looked)


@kept(8)
def at_site(looked: View, rollout: int, site: str) -> pd.DataFrame:
    """Everything that was measured at one site for a response."""
    return tokens.at_site(looked, rollout, site)


@kept(4)
def rollouts(looked: View) -> pd.DataFrame:
    """The rollouts of a view: rollout, reward, problem, answer, response, tokens."""
    return view.rollouts(looked, ["problem", "answer", "response"])
