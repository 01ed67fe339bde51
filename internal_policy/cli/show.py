"""Print scans, rollouts and families, as tables for people or as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import progress
from internal_policy.cli.console import Terminal, visible_json
from internal_policy.errors import InputError
from internal_policy.look import statistics, view
from internal_policy.scans import store
from internal_policy.tasks import pass_at_k

if TYPE_CHECKING:
    from internal_policy.tasks.rollouts import Rollout

out = Terminal(soft_wrap=True, highlight=False)

BY_LAYER = {
    "resid_post": "layer",
    "attn_out": "attention",
    "mlp_out": "FFN",
    "change_layer": "Δ layer",
    "change_attn": "Δ attention",
    "change_mlp": "Δ FFN",
}
"""Column of `analysis.by_layer` -> what the table calls it."""


def document(value: Any) -> None:
    """A value as JSON on stdout; numbers that are not finite become null."""
    print(visible_json(json.dumps(_finite(value), indent=2, ensure_ascii=False, default=str, allow_nan=False)))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scan(folder: Path, readout: str | None, *, as_json: bool = False, extra: Mapping[str, Any] | None = None) -> None:
    """A scan: what was measured, and the entropies by layer. Raises InputError for a readout that was not measured."""
    record = store.record(folder)
    readouts = record["selection"]["readouts"]
    if readout not in (None, *readouts):
        raise InputError(f"{folder} was not measured under the readout '{readout}', only {', '.join(readouts)}.")
    chosen: str = readout or readouts[0]
    rollouts = store.read(folder, "rollouts", ["reward", "finished"])
    frame, suggested, layers = pd.DataFrame(), None, store.read(folder, "layers")
    if "entropy" in record["selection"]["measures"]:
        frame = statistics.by_layer(layers, chosen)
        suggested = _suggested(layers[layers["readout"] == chosen])
    if warning := statistics.not_finite(layers, record["dtype"]):
        progress.note(warning)
    if as_json:
        kept = {name: value for name, value in record.items() if name not in ("files", "asked", "chat_template")}
        rows = frame.reset_index().to_dict("records")
        found = {"readout": chosen, "suggested": suggested, "entropy": rows}
        document({"scan": str(folder), **(extra or {}), **kept, **found})
        return
    if len(frame):
        out.print(_entropies(frame, record, chosen))
    if suggested:
        out.print(statistics.target_in_words(suggested))
    solved = _outcome(rollouts["reward"])
    unfinished = float((~rollouts["finished"]).mean())
    sampled = record["asked"].get("rollouts") is None
    cut = f", {unfinished:.0%} cut at the length limit" if unfinished and sampled else ""
    out.print(f"{record['rollouts']} rollouts{solved}{cut}; {record['tokens']:,} response tokens.")
    others = [other for other in readouts if other != chosen]
    if others:
        command = f"internal-policy show {folder} --readout {others[0]}"
        out.print(escape(f"Also measured: {', '.join(others)}; `{command}`"))
    out.print(f"Scan: {escape(str(folder))}")


def _suggested(layers: pd.DataFrame) -> dict[str, Any] | None:
    """The target layer and runner-up; None if the FFN's entropy change wasn't measured."""
    changes = statistics.changes(layers[layers["site"].isin(statistics.CHANGES["mlp"])])
    return statistics.suggestion(changes) if len(changes) else None


def _outcome(rewards: pd.Series) -> str:
    """How responses were marked, as part of a sentence; empty if none were."""
    found = pass_at_k.outcome(rewards)
    if found is None:
        return ""
    name, value = found
    return f", {value} of them correct" if name == "correct" else f", {name} {value}"


def _entropies(frame: pd.DataFrame, record: Mapping[str, Any], readout: str) -> Table:
    title = f"{record['model']}: entropy in nats and its change, {view.how(readout)}"
    table = Table(
        title=escape(title),
        caption="layers from 0; final: the model's own policy",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", justify="right")
    shown = {name: label for name, label in BY_LAYER.items() if name in frame}
    for label in shown.values():
        table.add_column(label, justify="right")
    for layer, row in frame.iterrows():
        if layer == record["n_layers"]:
            table.add_section()
            table.add_row("final", f"{row['final']:.3f}", *[""] * (len(shown) - 1))
        else:
            cells = [f"{row[name]:{'+.3f' if name.startswith('change') else '.3f'}}" for name in shown]
            table.add_row(str(layer), *cells)
    return table


def forecast(found: Mapping[str, Any], folder: Path, cached: bool, *, as_json: bool = False) -> None:
    """What a scan would measure and need."""
    if as_json:
        document({**found, "scan": str(folder), "cached": cached})
        return
    table = Table(title="What would be measured", show_header=False, title_justify="left", box=None)
    for name, value in found.items():
        words = name.replace("_bytes", "").replace("_", " ")
        if name.endswith("bytes") or "_bytes_" in name:
            value = f"{value / 1e6:,.1f} MB"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, int | float):
            value = f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"
        table.add_row(words, escape(str(value)))
    out.print(table)
    out.print(f"Scan: {escape(str(folder))} ({'there already' if cached else 'not there yet'}). Nothing was written.")


def rollouts(path: Path, at: str, written: "Sequence[Rollout]", *, as_json: bool = False) -> None:
    """What was generated."""
    marks = [rollout.reward for rollout in written if rollout.reward is not None]
    found = {
        "output": str(path),
        "at": at,
        "rollouts": len(written),
        "tokens": sum(len(rollout.response_ids) for rollout in written),
        "reward": sum(marks) / len(marks) if marks else None,
        "finished": sum(rollout.finished for rollout in written) / len(written),
    }
    if as_json:
        document(found)
        return
    first = written[0]
    out.print(f"{escape(first.problem)}\n→ {escape(first.response)}\n", emoji=False)
    right = _outcome(pd.Series(marks, dtype=float))
    out.print(
        f"{len(written)} responses from the policy at {at}{right}, {found['finished']:.1%} ended by themselves; "
        f"{found['tokens']:,} tokens."
    )
    out.print(f"Written to {escape(str(path))}")


def evaluation(
    folder: Path,
    label: str,
    curves: pd.DataFrame,
    samples: int,
    responses: Mapping[str, int],
    cut: Mapping[str, float],
    *,
    as_json: bool = False,
) -> None:
    """What was evaluated: a row a set of problems. `cut` is the share of responses that the length limit cut."""
    sets = {name: rows.set_index("k") for name, rows in curves.groupby("problems", sort=False)}
    found = [
        {
            "problems": name,
            "number": responses[str(name)] // samples,
            "samples": samples,
            "avg": rows[["mean", "low", "high"]].to_dict("records")[0],  # Avg@K is Pass@1, the first row
            "pass_at_k": dict(zip(rows.index.tolist(), rows["mean"].tolist(), strict=True)),
            "cut": cut[str(name)],
        }
        for name, rows in sets.items()
    ]
    if as_json:
        document({"output": str(folder), "label": label, "evaluated": found})
        return
    table = Table(title=escape(label), title_justify="left", box=box.SIMPLE_HEAD)
    ks = [k for k in found[0]["pass_at_k"] if k > 1]
    table.add_column("", no_wrap=True)
    for name in ("problems", f"Avg@{samples}", "95 %", *(f"Pass@{k}" for k in ks), "cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found:
        mean, low, high = (f"{100 * share:.1f}" for share in row["avg"].values())
        between = "" if low == "nan" else f"{low} to {high}"
        passed = [f"{100 * row['pass_at_k'][k]:.1f}" for k in ks]
        table.add_row(escape(row["problems"]), f"{row['number']:,}", mean, between, *passed, f"{100 * row['cut']:.1f}")
    wanted = out.measure(table, options=out.options.update(width=1000)).maximum
    out.print(table, width=max(out.width, wanted))  # no number is left out on a narrow terminal
    out.print(
        f"Percentages over {samples} responses per problem, with 95 % Wilson intervals over problems; "
        "cut: stopped at the length limit."
    )
    out.print(f"Written to {escape(str(folder))}")


def scans(folders: Sequence[Path], *, as_json: bool = False) -> None:
    """The scans in the cache."""
    rows = []
    for folder in folders:
        try:
            record = store.record(folder)
            state, size = "whole", sum(file["bytes"] for file in record["files"].values())
        except InputError as error:
            record, state, size = {"model": folder.parent.name}, "unfinished", 0
            if (folder / store.RECORD).exists():
                state = str(error)
        rows.append(
            {"scan": folder.name, "model": record["model"], "state": state, "folder": str(folder), "bytes": size}
            | {name: record.get(name) for name in ("rollouts", "tokens", "created")}
        )
    if as_json:
        document(rows)
    elif not rows:
        out.print(f"No scans in {escape(str(store.root()))} yet; `internal-policy scan` makes one.")
    else:
        table, broken = Table(box=box.SIMPLE_HEAD), []
        for name in ("scan", "model", "rollouts", "tokens", "MB", "created", "state"):
            right = name in ("rollouts", "tokens", "MB")
            table.add_column(name, overflow="fold", no_wrap=name == "scan", justify="right" if right else "left")
        for row in rows:
            counts = [f"{row[name]:,}" if row[name] else "" for name in ("rollouts", "tokens")]
            size = f"{row['bytes'] / 1e6:,.1f}" if row["bytes"] else ""
            created = (row["created"] or "").replace("T", " ")[:16]
            state = row["state"] if row["state"] in ("whole", "unfinished") else "broken"
            broken += [row["state"]] if state == "broken" else []
            table.add_row(row["scan"], escape(row["model"]), *counts, size, created, state)
        out.print(table)
        for why in broken:
            out.print(escape(why))
        out.print(f"In {escape(str(store.root()))}")


def families(found: Mapping[str, Mapping[str, Any]], version: str, *, as_json: bool = False) -> None:
    """The rows of the families with what contradicts each of their proofs, and how to add one."""
    if as_json:
        document({name: {**row, "proved": not any(row["contradictions"].values())} for name, row in found.items()})
        return
    claims = list(next(iter(found.values()))["contradictions"])
    numbers = "".join(str(number) for number, _ in enumerate(claims, 1))
    table = Table("family", numbers, "sites", "norms", box=box.SIMPLE_HEAD)
    table.add_column("what is different", overflow="fold")
    for name, row in found.items():
        marks = "".join("[red]✗[/]" if text else "[green]✓[/]" for text in row["contradictions"].values())
        table.add_row(name, marks, str(len(row["sites"])), row["norms"], escape("; ".join(_differences(row))))
    out.print(table)
    for name, row in found.items():
        for number, text in enumerate(row["contradictions"].values(), 1):
            if text:
                out.print(f"[red]{name}, {number}:[/] {escape(text)}")
    out.print(f"Tried just now on tiny random models in float64, with transformers {version}; ✓ is exact:")
    for number, claim in enumerate(claims, 1):
        out.print(f"  {number}  {claim}")
    out.print(
        "Norms stand before what a module reads, after what it wrote, or both.\n\n"
        "A model belongs to the family that `model_type` in its config.json names. To add\n"
        "one, add a row to FAMILIES in internal_policy/models/families.py: where its layers, its\n"
        "final norm and its sites are; and to OWN in internal_policy/models/proofs.py what makes\n"
        "its model tiny. This command then proves it."
    )


def _differences(row: Mapping[str, Any]) -> list[str]:
    """What a row says besides where its modules are, in words."""
    return [
        *(f"where {name} is {' or '.join(map(str, values))}" for name, values in row["needs"].items()),
        *([row["note"]] if row["note"] else []),
        *(f"no {site}: {why}" for site, why in row["absent"].items()),
        *([f"attn_out and mlp_out times {row['multiplier']}"] if row["multiplier"] else []),
        *([f"logits over {row['divisor']}"] if row["divisor"] else []),
        *([f"logits capped by {row['cap']}"] if row["cap"] else []),
    ]


def fitted(path: Path, about: Mapping[str, Any], kl: pd.DataFrame, *, as_json: bool = False) -> None:
    """A lens: how far each readout is from the model's own policy, hook point by hook point, on held-out problems.

    `kl` has layer, site, readout, mean, low and high, in the order of the table's columns.
    """
    if as_json:
        document({"lens": str(path), **about})
        return
    table = Table(title="KL from the model's own policy, in nats", title_justify="left", box=box.SIMPLE_HEAD)
    readouts = list(dict.fromkeys(kl["readout"]))
    for name in ("", *readouts, f"{readouts[-1]}, 95 %"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for (layer, site), rows in kl.groupby(["layer", "site"], sort=False):
        last = rows.iloc[-1]
        between = "" if math.isnan(last["low"]) else f"{last['low']:.3f} to {last['high']:.3f}"
        table.add_row(f"{layer}.{site}", *(f"{mean:.3f}" for mean in rows["mean"]), between)
    out.print(table)
    fitted, held = about["fitted_on"], about["held_out"]
    out.print(
        f"Of {held['rollouts']:,} held-out responses ({held['tokens']:,} tokens), fitted on {fitted['rollouts']:,} "
        f"({fitted['tokens']:,}); the interval is over responses."
    )
    command = f"internal-policy scan --model {about['model']} --lens {path} --sites {about['sites']}"
    out.print(f"Lens: {escape(str(path))}. Scan with it: {escape(command)}")


def trained(folder: Path, metrics: pd.DataFrame, seconds: float, *, as_json: bool = False) -> None:
    """A training run: the reward in tenths of it, and what to do with the model."""
    tenth = max(1, len(metrics) // 10)
    told = []
    for start in range(0, len(metrics), tenth):
        part = metrics.iloc[start : start + tenth]
        steps = [int(step) for step in part["step"]]
        means = part.reindex(columns=["reward", "entropy", "clip_fraction"]).mean().to_dict()
        told.append({"steps": f"{steps[0]}-{steps[-1]}", "trained": ", ".join(dict.fromkeys(part["target"])), **means})
    if as_json:
        document({"run": str(folder), "model": str(folder / "model"), "seconds": seconds, "steps": told})
        return
    table = Table(title="Means over steps", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("steps", "trained", "reward", "entropy", "clip_fraction"):
        table.add_column(name.replace("_", " "), justify="left" if name == "trained" else "right")
    for row in told:
        numbers = [f"{row[name]:.3f}" for name in ("reward", "entropy", "clip_fraction")]
        table.add_row(row["steps"], row["trained"], *numbers)
    out.print(table)
    out.print(f"{len(metrics)} steps in {seconds:.0f} s. Model: {escape(str(folder / 'model'))}")
    out.print(f"Measure it: internal-policy evaluate --model {escape(str(folder / 'model'))}")
