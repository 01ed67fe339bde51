"""`internal-policy families`: list the supported model families and prove each, or look at one model or all types."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import tyro
from rich import box
from rich.markup import escape
from rich.table import Table

from internal_policy.cli import progress
from internal_policy.cli.common import JsonOptions
from internal_policy.cli.console import document, out, paragraph
from internal_policy.errors import InputError
from internal_policy.measure.sites import SITES
from internal_policy.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ADDING = (
    "Norms: before a module's input, after its output, or both.\n\n"
    "The `model_type` in a model's config.json is its family. A model of another type is tried\n"
    "with these rows; `internal-policy families MODEL` shows the result. To add a family, add a\n"
    "row with its layers, final norm, sites and the settings of a tiny model to a file of\n"
    "internal_policy/models/rows. This command then proves it."
)


@dataclass(frozen=True, kw_only=True)
class Families(JsonOptions):
    """List the supported model families, and prove each of them.

    Every family is checked on a tiny random model with the installed version of transformers: what is read must equal
    what the model adds to its residual stream, bit for bit. The exit code is 1 if a family fails. It also says how to
    add a family.

    With MODEL, show how that model is read, or why it can't be. A type without a row is tried with the known rows on a
    tiny model of the same configuration class and features. The exit code is 1 if no row passes every proof.

    For example:
    $ internal-policy families
    $ internal-policy families ./my-model
    $ internal-policy families Qwen/Qwen3-4B
    $ internal-policy families arcee --json
    $ internal-policy families --all
    """

    group: ClassVar = "Model"
    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """A folder, a hub id, or a model type such as arcee, which is tried in its default configuration. By default list
    all families."""
    all: bool = False
    """Also try every other causal model type of the installed transformers, in its default configuration."""
    revision: str = "main"
    """Branch, tag or commit of a model on the hub."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""


def run(options: Families) -> bool:
    """List the families and prove each of them, or look at one model; True if a proof fails."""
    if options.model is not None and options.all:
        raise InputError("--all tries every model type. Leave out the model, or --all.")
    progress.quiet()
    if options.model is not None:
        return _check_model(options, options.model)
    from internal_policy.models.proofs import prove
    from internal_policy.models.rows import FAMILIES

    found = {name: prove(name) for name in progress.tracked("Proving", FAMILIES)}
    rows = {name: {**dataclasses.asdict(row), "contradictions": found[name]} for name, row in FAMILIES.items()}
    types = every_type() if options.all else {}
    if options.json:
        entries = {name: {**row, "proved": not any(row["contradictions"].values())} for name, row in rows.items()}
        document({"families": entries, "types": types} if options.all else entries)
    else:
        printed(rows, metadata.version("transformers"))
        if options.all:
            _print_types(types)
    return any(text for proofs in found.values() for text in proofs.values())


def printed(found: Mapping[str, Mapping[str, Any]], version: str) -> None:
    """Print the families, the proofs that fail, and how to add a family."""
    claims = list(next(iter(found.values()))["contradictions"])
    numbers = "".join(str(number) for number, _ in enumerate(claims, 1))
    table = Table("family", numbers, "sites", "norms", box=box.SIMPLE_HEAD)
    table.add_column("what is different", overflow="fold")
    for name, row in found.items():
        marks = "".join("[red]✗[/]" if text else "[green]✓[/]" for text in row["contradictions"].values())
        table.add_row(name, marks, str(len(all_sites(row))), row["norms"], escape("; ".join(differences(row))))
    out.print(table)
    for name, row in found.items():
        for number, text in enumerate(row["contradictions"].values(), 1):
            if text:
                out.print(f"[red]{name}, {number}:[/] {escape(text)}")
    out.print(f"Proved just now on tiny random models in float64 with transformers {version}. ✓ means exactly equal,")
    out.print("in 8 and 9 up to rounding:")
    for number, claim in enumerate(claims, 1):
        out.print(f"  {number}  {claim}")
    out.print(ADDING)


def all_sites(row: Mapping[str, Any]) -> list[str]:
    """The sites that some layer of a family has, in the order of a forward pass."""
    return [site for site in SITES if any(site in sites for sites in (row["sites"], *row["kinds"].values()))]


def differences(row: Mapping[str, Any]) -> list[str]:
    """How a family differs from others, besides the places of its modules, in words."""
    return [
        *(f"where {name} is {' or '.join(map(str, values))}" for name, values in row["needs"].items()),
        *([row["note"]] if row["note"] else []),
        *_absences(row),
        *([f"attn_out and mlp_out multiplied by {row['multiplier']}"] if row["multiplier"] else []),
        *([f"logits multiplied by {row['factor']}"] if row["factor"] else []),
        *([f"logits divided by {row['divisor']}"] if row["divisor"] else []),
        *([f"logits capped at {row['cap']}"] if row["cap"] else []),
    ]


def _absences(row: Mapping[str, Any]) -> list[str]:
    """The sites that a family lacks, in all layers or in some, once for each reason."""
    found: dict[tuple[bool, str], list[str]] = {}
    for site, why in row["absent"].items():
        found.setdefault((site in all_sites(row), why), []).append(site)
    every = list(SITES)
    return [
        f"{'some layers have ' if some else ''}no {'site' if sites == every else ', '.join(sites)}: {why}"
        for (some, why), sites in found.items()
    ]


def _check_model(options: Families, model: str) -> bool:
    """Show how one model is read, or why it can't be; True if it can't."""
    from transformers import CONFIG_MAPPING, AutoConfig

    from internal_policy.models import loading, proofs
    from internal_policy.models.families import has_row, row_of
    from internal_policy.models.rows import FAMILIES
    from internal_policy.models.trial import trial

    checkpoint = Checkpoint(model, options.revision, options.trust_remote_code)
    is_type = model in CONFIG_MAPPING and not Path(model).is_dir()
    try:
        config: PreTrainedConfig = AutoConfig.for_model(model) if is_type else loading.read_config(checkpoint)
    except InputError as error:
        near = [] if "/" in model else get_close_matches(model, CONFIG_MAPPING.keys(), n=3)
        hint = f" Or did you mean the model type {' or '.join(near)}?" * bool(near)
        raise InputError(f"{error}{hint}") from error
    kind, refusal = config.model_type, ""
    if has_row(kind):
        try:
            name, where = row_of(config)[0], "table"
            contradictions = proofs.prove(name)
        except InputError as error:
            name, where, contradictions, refusal = "", "", None, str(error)
    else:
        tried = trial(config, **({} if is_type else loading.code_options(checkpoint, config)))
        name, where, contradictions, refusal = tried.row, "here", tried.contradictions, tried.refusal
    proved = where if contradictions is not None and not any(contradictions.values()) else ""
    row = dataclasses.asdict(FAMILIES[name]) if name else {}
    if options.json:
        entry = {"model_type": kind, "name": name or None, "proved": proved or None, "refusal": refusal or None}
        document({**entry, "contradictions": contradictions, "row": row or None})
        return not proved
    _print_model(kind, name, row, where, contradictions, refusal)
    return not proved


def _print_model(
    kind: str, name: str, row: Mapping[str, Any], where: str, contradictions: Mapping[str, str] | None, refusal: str
) -> None:
    if refusal:
        paragraph(refusal)
    elif where == "table":
        paragraph(f"{kind} is read with the row {name}, proved just now on the tiny model of that row:")
    else:
        paragraph(f"{kind} has no row of its own. The row {name} passes every proof on a tiny model of it:")
    for claim, text in (contradictions or {}).items():
        out.print(f"  {'[red]✗[/]' if text else '[green]✓[/]'} {escape(claim + (f': {text}' if text else ''))}")
    if not refusal:
        words = "; ".join(differences(row))
        paragraph(f"Sites: {', '.join(all_sites(row))}. Norms: {row['norms']}.{f' Different: {words}.' * bool(words)}")


def every_type() -> dict[str, dict[str, Any]]:
    """Causal model type of the installed transformers -> the row it is read with, and why it isn't, if it isn't."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from internal_policy.errors import first_line
    from internal_policy.models.families import has_row, row_of
    from internal_policy.models.rows.refused import REFUSED
    from internal_policy.models.trial import trial

    found: dict[str, dict[str, Any]] = {}
    for kind in progress.tracked("Trying", list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)):
        name, proved, refusal = None, None, None
        try:
            config = AutoConfig.for_model(kind)
            if has_row(config.model_type):
                name, proved = row_of(config)
            else:
                tried = trial(config)
                name, proved = (tried.row, "here") if not tried.why else (None, None)
                refusal = tried.why if tried.is_decoder else f"not a decoder: {tried.why}"
        except InputError as error:
            refusal = REFUSED.get(kind, str(error))
        except Exception as error:  # a default configuration may lack what its class needs
            refusal = f"its default configuration isn't valid ({first_line(error)})"
        found[kind] = {"name": name, "proved": proved, "refusal": refusal or None}
    return found


def _print_types(types: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what became of every causal model type, and how many can be read."""
    table = Table("model type", "row", "proved", box=box.SIMPLE_HEAD)
    table.add_column("why not", overflow="fold")
    words = {"table": "in the table", "here": "on the spot"}
    for kind, entry in types.items():
        proved = words.get(entry["proved"], "[red]refused[/]")
        table.add_row(kind, entry["name"] or "", proved, escape(entry["refusal"] or ""))
    out.print(table)
    known, here = (sum(entry["proved"] == where for entry in types.values()) for where in words)
    out.print(
        f"Of {len(types)} causal model types of transformers in their default configurations, {known} have a row, "
        f"{here} are read with another's row, and {len(types) - known - here} are refused."
    )
