"""The lens grid of one response: as a page of its own, and as an element of a notebook."""

from collections.abc import Mapping
from typing import Any

from internal_policy.errors import InputError
from internal_policy.look import theme, view
from internal_policy.look.lens_grid import page, payload
from internal_policy.look.view import View


def drawn(one: View, rollout: int | None = None, **chosen: Any) -> dict[str, Any]:
    """What the scripts draw of one response, by default the first of the view.

    It opens on the view's readout; `chosen` is what else is chosen at first: layer, position, site or measure. Raises
    InputError for a rollout that the view leaves out, and for what the scan lacks.
    """
    number = view.first_rollout(one) if rollout is None else rollout
    view.check_rollout(one, number)
    site = chosen.get("site")
    sites = [*payload.measured(one), *([site] if site and site not in payload.PANEL else [])]
    found = payload.payload(one, number, sites=sites, position=chosen.get("position"))
    check_measure(one, found, chosen.get("measure"), site or "resid_post")
    return page.data([found], readout=one.readout, **chosen)


def check_measure(one: View, found: Mapping[str, Any], measure: str | None, site: str) -> None:
    """Raise InputError for a measure that the payload lacks at that site."""
    known = {each["name"]: each for each in found["measures"]}
    if measure in (None, *(name for name, each in known.items() if site in each["sites"])):
        return
    if measure not in (*payload.MEASURES, "change", "probability"):
        raise InputError(f"Can't colour cells by {measure!r:.60}. Choose one of {', '.join(known)}.")
    raise view.absent(one, "topk_probs" if measure == "probability" else measure, site)


def title(one: View, rollout: int) -> str:
    """The title of a response's page."""
    return f"{theme.short(view.check(one)['model'])} · response of rollout {rollout}"


def frame(one: View, rollout: int, **chosen: Any) -> str:
    """The lens grid of one response as an element of a notebook; see `drawn`."""
    return page.frame(drawn(one, rollout, **chosen), title(one, rollout))


def html(one: View, rollout: int | None = None, **chosen: Any) -> str:
    """The lens grid of one response as an HTML page that needs no network; see `drawn`."""
    found = drawn(one, rollout, **chosen)
    return page.page(found, title(one, found["grids"][0]["rollout"]))
