"""Two linked lens grids and their difference: as a page of their own, and as an element of a notebook."""

from typing import Any

from internal_policy.look import headings, pairs
from internal_policy.look.lens_grid import page, payload
from internal_policy.look.pairs import Side

TITLE = "Two responses cell by cell"


def names(a: Side, b: Side) -> list[str]:
    """What the two grids are called, which is never the same unless the sides are."""
    told = headings.labels([a.view]) * 2 if a.view == b.view else headings.labels([a.view, b.view])
    if a.rollout == b.rollout and a.view != b.view:
        return told
    return [f"{label} · rollout {side.rollout}" for label, side in zip(told, (a, b), strict=True)]


def drawn(a: Side, b: Side, **chosen: Any) -> dict[str, Any]:
    """What the scripts draw of two responses. `chosen` is the layer, position, site and measure at first.

    Raises InputError for a site or position that one of them lacks.
    """
    site = chosen.get("site")
    grids = []
    for side in (a, b):
        sites = [*payload.measured(side.view), *([site] if site and site not in payload.PANEL else [])]
        position = chosen.get("position")
        grids.append(payload.payload(side.view, side.rollout, [side.view.readout], sites, position=position))
    return {**page.data(grids, names(a, b), **chosen), "why": pairs.obstacle(a, b) or ""}


def html(a: Side, b: Side, **chosen: Any) -> str:
    """Two responses as an HTML page that needs no network; see `drawn`."""
    return page.page(drawn(a, b, **chosen), TITLE)


def frame(a: Side, b: Side, **chosen: Any) -> str:
    """Two responses as an element of a notebook; see `drawn`."""
    return page.frame(drawn(a, b, **chosen), TITLE)
