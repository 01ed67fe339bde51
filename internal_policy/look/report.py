"""One HTML file that needs no network: every figure of one or more scans, the table and the provenance."""

import shlex
import time
from collections.abc import Sequence
from importlib import metadata, resources
from typing import Any

import pandas as pd
from plotly.offline import get_plotlyjs

from internal_policy.errors import InputError
from internal_policy.look import catalogue, export, statistics, theme, view
from internal_policy.look.catalogue import Choice
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.tasks import pass_at_k

SECTIONS = {
    "flow": ("flow", Choice()),
    "change": ("change", Choice()),
    "norm_control": ("norm-control", Choice()),
    "residual": ("residual", Choice()),
    "convergence": ("convergence", Choice()),
    "layers_spread": ("distribution", Choice(site="resid_post")),
    "ffn_spread": ("distribution", Choice(site="mlp_out")),
    "tokens": ("tokens", Choice()),
}
"""What report.html calls a figure of a scan -> its name and what it shows."""
COMPARISONS = {"entropy": ("compare", Choice()), "change": ("compare", Choice(measure="change"))}
"""The same of several scans."""


def report(views: Sequence[View]) -> str:
    """The page. Raises InputError for what is no whole scan; a figure that a scan cannot give says why in its place."""
    from jinja2 import Environment

    template = resources.files("internal_policy.look").joinpath("report.html").read_text()
    scans = [_scan(one) for one in views]
    models = ", ".join(dict.fromkeys(scan["about"].model for scan in scans))
    page = Environment(autoescape=True, trim_blocks=True).from_string(template)
    return page.render(
        title=f"Internal policies of {models}",
        written=time.strftime("%Y-%m-%d"),
        version=metadata.version("internal-policy"),
        plotly_js=get_plotlyjs(),
        scans=scans,
        comparison=_comparison(views) if len(views) > 1 else None,
    )


def _scan(one: View) -> dict[str, Any]:
    about = view.about(one)
    outcome = pass_at_k.outcome(view.rollouts(one)["reward"])
    record = store.record(one.folder)
    return {
        "about": about,
        "caption": theme.caption(about),
        "outcome": outcome and " ".join(reversed(outcome) if outcome[0] == "correct" else outcome),
        "targets": _targets(one),
        "figures": {called: _figure(name, [one], choice) for called, (name, choice) in SECTIONS.items()},
        "table": _table(one),
        "provenance": provenance(one),
        "command": shlex.join(record.get("command", [])),
    }


def _figure(name: str, views: Sequence[View], choice: Choice) -> dict[str, str]:
    try:
        drawn = catalogue.draw(name, views, choice)
    except InputError as error:
        return {"why": str(error)}
    drawn.update_layout(font={"color": theme.GREY})  # the page paints it over, in its own ink
    return {"html": drawn.to_html(full_html=False, include_plotlyjs=False, config=dict(export.CONFIG))}


def _targets(one: View) -> list[dict[str, Any]]:
    try:
        found = statistics.targets(catalogue.changes(one))
    except InputError:
        return []
    names = {"total": "the change as it is (paper)", "direction": "its direction part", "norm": "its norm part"}
    return [
        {
            "part": names[row["part"]],
            "stages": stages_in_words(row["spans"]),
            "layer": "none" if pd.isna(row["target"]) else row["target"] + 1,
            "runner_up": "none" if pd.isna(row["runner_up"]) else row["runner_up"] + 1,
            "point": "" if pd.isna(row["target"]) else f"{row['target']}.resid_post",
        }
        for row in found.to_dict("records")
        if row["spans"]
    ]


def stages_in_words(spans: Sequence[tuple[str, int, int]]) -> str:
    """Such as `exploration 1-6, integration 7-26`, layers from 1."""
    return ", ".join(f"{stage} {first + 1}" + (f"-{last + 1}" if last > first else "") for stage, first, last in spans)


def _table(one: View) -> dict[str, Any]:
    layers = view.layers(one)
    if "entropy" not in layers:
        return {"columns": [], "rows": []}
    frame = statistics.by_layer(layers, one.readout)
    named = {site: mark.name for site, mark in theme.SITES.items() if site in frame}
    named |= {f"change_{key}": f"Δ {mark.name}" for key, mark in theme.CHANGES.items() if f"change_{key}" in frame}
    n_layers = store.record(one.folder)["n_layers"]
    rows = [
        [
            "the model" if layer == n_layers else str(int(str(layer)) + 1),
            *("" if pd.isna(v) else f"{v:.3f}" for v in row[list(named)]),
        ]
        for layer, row in frame.iterrows()
    ]
    return {"columns": ["layer", *named.values()], "rows": rows}


def provenance(one: View) -> dict[str, str]:
    """What a scan says of how it was made, for people: name -> value."""
    record = store.record(one.folder)
    asked = record["asked"]
    given = asked.get("rollouts")
    size = f"{record['n_layers']} layers, d_model {record['d_model']}, vocabulary {record['d_vocab']:,}"
    drawn = f"temperature {asked.get('temperature')}, top-p {asked.get('top_p')}, seed {asked.get('seed')}"
    limit = f"at most {asked.get('max_new_tokens')} tokens"
    said = {
        "model": record["model"],
        "weights": asked.get("identity"),
        "family": f"{record['family']}, {size}",
        "precision": f"{record['dtype']} on {record['device']}",
        "readout": view.how(one.readout),
        "lens": asked.get("lens"),
        "responses": f"{record['rollouts']:,}, {record['tokens']:,} tokens",
        "looked at": view.words(one) or "all of them",
        "problems": ", ".join(
            statistics.named(path, content)
            for path, content in asked.get("content", {}).items()
            if path != asked.get("lens")
        )
        or asked.get("problems"),
        "sampling": f"{drawn}, {limit}" if given is None else "the responses were given",
        "measured": record["created"],
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "scan": f"{one.folder} ({record['digest']}, schema {record['schema']})",
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def _comparison(views: Sequence[View]) -> dict[str, Any]:
    try:
        caveats = statistics.differences(view.comparable(views))
    except InputError as error:
        return {"caveats": [str(error)], "figures": {}}
    drawn = {called: _figure(name, views, choice) for called, (name, choice) in COMPARISONS.items()}
    return {"caveats": caveats, "figures": drawn}
