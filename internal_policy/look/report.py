"""Write every figure and table of one or more scans as one HTML file that needs no network."""

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

import internal_policy
from internal_policy.errors import DamageError, InputError, joined
from internal_policy.look import (
    ablation,
    catalogue,
    check,
    comparison,
    export,
    findings,
    highlights,
    summary,
    targets,
    theme,
    view,
)
from internal_policy.look.catalogue import Choice
from internal_policy.look.lens_grid import page, response
from internal_policy.look.view import View

SECTIONS = {
    "flow": ("flow", Choice()),
    "readouts": ("readouts", Choice()),
    "readouts_kl": ("readouts", Choice(measure="kl")),
    "change": ("change", Choice()),
    "norm_control": ("norm-control", Choice()),
    "residual": ("residual", Choice()),
    "convergence": ("convergence", Choice()),
    "layers_spread": ("distribution", Choice(site="resid_post")),
    "ffn_spread": ("distribution", Choice(site="mlp_out")),
    "ablation": ("ablation", Choice()),
}
"""Name in report.html -> name and choice of a figure of one scan."""
COMPARISONS = {"entropy": ("compare", Choice()), "change": ("compare", Choice(measure="change"))}
"""The same for several scans."""


def report(views: Sequence[View]) -> str:
    """The page as HTML. A figure that can't be drawn is replaced by the reason. Raises InputError for a broken scan."""
    from jinja2 import Environment

    template = resources.files("internal_policy.look").joinpath("report.html").read_text()
    scans = [_scan(one) for one in views]
    models = ", ".join(dict.fromkeys(scan["about"].model for scan in scans))
    environment = Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(template).render(
        title=f"Internal policies of {models}",
        written=time.strftime("%Y-%m-%d"),
        version=internal_policy.__version__,
        policy=page.POLICY,
        plotly_js=get_plotlyjs(),
        grid_style=page.style(),
        grid_script=page.boot(),
        scans=scans,
        comparison=_comparison(views) if len(views) > 1 else None,
    )


def _scan(one: View) -> dict[str, Any]:
    about, readouts = view.about(one), view.check(one)["selection"]["readouts"]
    found = findings.findings(one)
    return {
        "about": about,
        "findings": found.sentences,
        "readouts": joined([view.how(name) for name in readouts]),
        "several_readouts": len(readouts) > 1,
        "grid": _grid(one),
        "caption": theme.caption(about),
        "outcome": summary.marks(one),
        "targets": _targets(one),
        "check": _check(one),
        "ablation": _ablation(one),
        "figures": {called: _figure(name, [one], choice) for called, (name, choice) in SECTIONS.items()},
        "table": _table(one),
        "provenance": summary.provenance(one),
    }


def _ablation(one: View) -> list[str]:
    """What an ablation of the scan shows; nothing if there is none."""
    try:
        return ablation.sentences(ablation.newest(one), one)
    except DamageError:
        raise
    except InputError:
        return []


def _grid(one: View) -> dict[str, Any]:
    """The lens grid of the least certain response, through the final norm if that was measured."""
    read = replace(one, readout=view.for_tokens(one.source).readout)
    try:
        found = highlights.least_certain_response(read)
        drawn = response.drawn(read, found.rollout)
    except DamageError:
        raise
    except InputError as error:
        return {"why": str(error)}
    return {"html": page.element(drawn), "rollout": found.rollout, "entropy": f"{found.entropy:.2f}"}


def _figure(name: str, views: Sequence[View], choice: Choice) -> dict[str, str]:
    try:
        drawn = catalogue.draw(name, views, choice)
    except DamageError:
        raise
    except InputError as error:
        return {"why": str(error)}
    caption = drawn.layout.to_plotly_json()["meta"]["caption"]
    plain = theme.untitled(theme.on_page(drawn))
    return {
        "html": plain.to_html(full_html=False, include_plotlyjs=False, config=dict(export.CONFIG)),
        "caption": caption,
    }


def _targets(one: View) -> dict[str, Any]:
    try:
        changes = view.changes(one)
    except DamageError:
        raise
    except InputError as error:
        return {"why": str(error)}
    frame = summary.targets(changes)
    said = targets.in_words(targets.suggestion(changes))
    known = frame[frame["stages"] != ""]
    if not len(known):
        return {"why": said}
    rows = [["–" if pd.isna(cell) else str(cell) for cell in row] for row in known.to_numpy(dtype=object)]
    return {"said": said, "columns": list(known.columns), "rows": rows, "dashes": summary.dashes(known)}


def _check(one: View) -> dict[str, Any]:
    found = check.check(one)
    return {
        "verdicts": found.verdicts.to_dict("records"),
        "columns": ["", *found.matrix.columns[1:]],
        "rows": found.matrix.to_numpy().tolist(),
        "legend": check.LEGEND,
        "notes": found.notes,
        "again": found.command or " ".join(found.options),
    }


def _table(one: View) -> dict[str, Any]:
    try:
        columns, *rows = summary.cells(summary.by_layer(one))
    except DamageError:
        raise
    except InputError as error:
        return {"why": str(error)}
    return {"columns": columns, "rows": rows}


def _comparison(views: Sequence[View]) -> dict[str, Any]:
    try:
        caveats = comparison.differences(comparison.comparable(views))
    except DamageError:
        raise
    except InputError as error:
        return {"caveats": [str(error)], "figures": {}}
    drawn = {called: _figure(name, views, choice) for called, (name, choice) in COMPARISONS.items()}
    return {"caveats": caveats, "figures": drawn}
