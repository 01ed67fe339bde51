"""The documents of every command."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from internal_policy.cli.schemas import common, lenses, results, studies
from internal_policy.cli.schemas.field import DRAFT, Field, schema, text


@dataclass(frozen=True)
class Document:
    """What a command prints."""

    when: str
    """Which call prints it."""
    value: Field


def _object(when: str, fields: Mapping[str, Field]) -> Document:
    return Document(when, Field("object", when, fields))


def _list(when: str, fields: Mapping[str, Field]) -> Document:
    return Document(when, Field("object[]", when, fields))


WRITTEN = {"output": text("file that was written"), "bytes": common.BYTES}
SCAN = _object("of a scan", common.SCAN)
ABLATION, ALIGNMENT = _object("of an ablation", common.ABLATION), _object("of an alignment", common.ALIGNMENT)
STUDY = _object("of a study", studies.STUDY)
CARD = _object("of a lens", lenses.CARD)
ERROR = _object(
    "of a command that failed",
    {
        "error": Field(
            "object",
            "why it failed",
            {
                "message": text("one sentence, with what to do; the same as on stderr after `error:`"),
                "exit_code": Field("integer", "1: it failed; 2: wrong usage or input; 130: it was interrupted"),
            },
        )
    },
)
DOCUMENTS: Mapping[str, tuple[Document, ...]] = {
    "lens": (_object("of texts", lenses.TEXTS),),
    "scan": (
        SCAN,
        _object("with `--dry-run`", results.FORECAST),
        STUDY,
        _object("of checkpoints with `--dry-run`", studies.SERIES),
    ),
    "ablate": (ABLATION,),
    "align": (ALIGNMENT,),
    "generate": (_object("of responses", results.GENERATED),),
    "evaluate": (
        _object("of an evaluation", results.EVALUATED),
        _object("with `--paired`", results.PAIRED),
        _object("with `--plan`", results.PLAN),
    ),
    "fit-lens": (CARD, _object("with `--merge`", lenses.MERGED)),
    "show": (SCAN, ABLATION, ALIGNMENT, _object("of a training run", results.RUN), STUDY, CARD),
    "plot": (_object("of a figure", {**WRITTEN, "figure": text("name of the figure")}),),
    "check": (_object("of a scan", results.CHECKED),),
    "compare": (_object("of two scans", results.COMPARED),),
    "report": (_object("of a report", {**WRITTEN, "scans": Field("string[]", "folders or addresses of the scans")}),),
    "train": (_object("of a training run", results.TRAINED),),
    "ls": (_list("of everything", results.ITEM),),
    "verify": (_list("of scans and ablations", results.VERIFIED),),
    "rm": (_list("of what was removed", results.REMOVED),),
    "export": (
        _object(
            "of a table",
            {
                **WRITTEN,
                "format": text("csv, json or parquet"),
                "scan": text("folder or address of the scan"),
                "table": text("name of the table"),
                "rows": Field("integer", "number of rows"),
            },
        ),
    ),
    "push": (_object("of an upload", results.PUSHED), _object("with `--dry-run`", results.CARD)),
    "families": (
        _object("of one model", lenses.FAMILY),
        Document("of all families", lenses.FAMILIES),
        _object("with `--all`", lenses.EVERY),
    ),
}
"""Command -> each document that it may print with --json, besides `ERROR`."""
WITHOUT = {"dashboard": "It serves pages until it is stopped.", "mcp": "It speaks JSON-RPC until it is stopped."}
"""Command without --json -> why."""


def json_schema(command: str) -> dict[str, Any]:
    """The JSON Schema of what a command prints with --json, its errors included."""
    documents = [{**schema(each.value), "title": f"{command}: {each.when}"} for each in DOCUMENTS[command]]
    error = {**schema(ERROR.value), "title": "error"}
    return {"$schema": DRAFT, "title": f"internal-policy {command} --json", "anyOf": [*documents, error]}
