"""What commands print with --json is as the schemas and docs/json.md say."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import jsonl

from internal_policy.__main__ import main
from internal_policy.cli import commands
from internal_policy.cli.schemas import documents, field
from internal_policy.cli.schemas.documents import DOCUMENTS, WITHOUT, json_schema
from internal_policy.cli.schemas.field import Field
from internal_policy.scans import store

pytestmark = pytest.mark.usefixtures("here")
EVERY = {f"{command} {each.when}": each.value for command, found in DOCUMENTS.items() for each in found}
TINY = ["--limit", "2", "--max-new-tokens", "6"]


def strict(schema: Any) -> Any:
    """A schema that refuses fields which it doesn't describe."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return {**{name: strict(value) for name, value in schema.items()}, **closed}


def printed(capsys, *words: str) -> Any:
    """The document that a command prints."""
    capsys.readouterr()
    assert main([*words, "--json"]) in (0, 1), capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def check(value: Any, which: str) -> None:
    """A document has the fields of its schema and no others, and fits that of its command."""
    jsonschema.validate(value, strict(field.schema(EVERY[which])))
    jsonschema.validate(value, json_schema(which.split()[0]))


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_json_and_a_schema_or_a_reason(name):
    options = {option.name for group in commands.reference()[name].groups.values() for option in group}
    assert ("json" in options) == (name in DOCUMENTS) == (name not in WITHOUT)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_is_a_schema_of_its_draft(name):
    jsonschema.Draft202012Validator.check_schema(json_schema(name))


READ = {
    "show of a scan": ["show", "demo-qwen3"],
    "show of an ablation": ["show", "demo-qwen3-ablation"],
    "show of an alignment": ["show", "demo-qwen3-alignment"],
    "show of a training run": ["show", "experiments/bupo"],
    "check of a scan": ["check", "demo-qwen3"],
    "compare of two scans": ["compare", "demo-qwen3", "--against-readout", "norm"],
    "verify of scans and ablations": ["verify", "demo-qwen3", "demo-qwen3-ablation"],
    "ls of everything": ["ls"],
    "export of a table": ["export", "demo-qwen3", "-o", "layers.csv"],
    "plot of a figure": ["plot", "demo-qwen3", "flow", "-o", "flow.html"],
    "push with `--dry-run`": ["push", "demo-qwen3", "org/name", "--license", "mit", "--dry-run", "card"],
    "evaluate with `--plan`": ["evaluate", "--plan", "--samples", "4"],
    "families of one model": ["families", "llama"],
}
"""Document -> a command that prints it about what comes with the package."""


@pytest.mark.parametrize("which", READ)
def test_a_document_about_bundled_results_is_as_described(which, capsys):
    check(printed(capsys, *READ[which]), which)


def test_a_report_is_as_described(capsys, monkeypatch):
    monkeypatch.setattr("internal_policy.look.report.report", lambda _: "page")  # drawing takes long
    check(printed(capsys, "report", "demo-qwen3", "-o", "report.html"), "report of a report")


def test_an_error_fits_the_schema_of_every_command(capsys):
    assert main(["show", "nothing", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)
    jsonschema.validate(error, strict(field.schema(documents.ERROR.value)))
    for name in DOCUMENTS:
        jsonschema.validate(error, json_schema(name))


def test_documents_about_a_small_scan_are_as_described(asked, capsys):
    check(printed(capsys, "scan", *asked[1:], *TINY[:2], "--dry-run"), "scan with `--dry-run`")
    check(printed(capsys, "scan", *asked[1:], *TINY[:2], "-o", "mine"), "scan of a scan")
    check(printed(capsys, "rm", "mine", "--yes"), "rm of what was removed")


def test_documents_about_a_study_are_as_described(folder, here, capsys):
    shutil.copytree(folder, here / "run" / "checkpoint-1")
    shutil.copytree(folder, here / "run" / "checkpoint-2")
    words = ["scan", "--checkpoints", "run", "--text", "1 + 2 = 3", "--layers", "0", "--readout", "raw"]
    check(printed(capsys, *words, "--dry-run"), "scan of checkpoints with `--dry-run`")
    check(printed(capsys, *words, "-o", "mine"), "scan of a study")
    check(printed(capsys, "show", "mine"), "show of a study")


def test_documents_about_responses_are_as_described(asked, capsys):
    check(printed(capsys, "generate", *asked[1:], *TINY[:2], "-o", "mine.jsonl"), "generate of responses")
    for name in ("a", "b"):
        asks = ["evaluate", *asked[1:], *TINY[:2], "--samples", "2", "-o", name]
        check(printed(capsys, *asks), "evaluate of an evaluation")
        rows = pq.read_table(f"{name}/rollouts.parquet").to_pandas().assign(response="\\boxed{7}")
        store.write_table(Path(name) / "rollouts.parquet", pa.Table.from_pandas(rows, preserve_index=False))
    check(printed(capsys, "evaluate", "a", "b", "--paired"), "evaluate with `--paired`")


def test_a_document_about_texts_is_as_described(asked, capsys):
    check(printed(capsys, "lens", "1 + 2", *asked[1:3], "--top-k", "2"), "lens of texts")


@pytest.mark.slow
def test_a_document_about_an_ablation_is_as_described(capsys):
    words = ["ablate", "demo-qwen3", "--layers", "0", "--limit", "4", "-o", "mine"]
    check(printed(capsys, *words), "ablate of an ablation")


@pytest.mark.slow
def test_documents_about_a_lens_are_as_described(capsys):
    words = ["fit-lens", "--limit", "6", "--samples", "2", "--max-new-tokens", "24", "--sites", "resid_post"]
    check(printed(capsys, *words, "-o", "one.safetensors"), "fit-lens of a lens")
    check(printed(capsys, "show", "one.safetensors"), "show of a lens")


@pytest.mark.slow
def test_a_document_about_an_alignment_is_as_described(capsys):
    rows = [{"prompt": f"{n} + 1?", "response": f"{m}", "reward": m} for n in range(4) for m in range(2)]
    jsonl(Path("responses.jsonl"), *rows)
    check(printed(capsys, "align", "--rollouts", "responses.jsonl", "-o", "mine"), "align of an alignment")


@pytest.mark.slow
def test_a_document_about_a_training_run_is_as_described(capsys):
    check(printed(capsys, "train", "--steps", "1", "--max-new-tokens", "8", "-o", "mine"), "train of a training run")
    check(printed(capsys, "show", "mine"), "show of a training run")
    check(printed(capsys, "ls"), "ls of everything")


@pytest.mark.slow
def test_a_document_about_all_families_is_as_described(capsys):
    check(printed(capsys, "families"), "families of all families")


def test_a_field_that_is_not_described_is_refused():
    one = Field("object", "", {"a": Field("integer|null", ""), "b?": Field("object[]", "", {"c": Field("string", "")})})
    schema = strict(field.schema(one))
    jsonschema.validate({"a": None}, schema)
    jsonschema.validate({"a": 1, "b": [{"c": "x"}]}, schema)
    for wrong in ({}, {"a": 1.5}, {"a": 1, "d": 2}, {"a": 1, "b": [{}]}, {"a": 1, "b": {"c": "x"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)
