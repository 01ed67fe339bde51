"""Records from others are refused in a sentence when what they hold has another type than it should."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from internal_policy import bundle, files
from internal_policy.cli import contents, inventory
from internal_policy.errors import InputError
from internal_policy.look import alignment
from internal_policy.scans import effects, records, schema, settings, store

SCANS = bundle.DATA / "scans"


def changed(tmp_path: Path, folder: Path, name: str, **changes: Any) -> Path:
    """A folder with links to the files of another one, and a record with other values and without a checksum."""
    for path in folder.iterdir():
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    record = {**json.loads((folder / name).read_text()), **changes}
    (tmp_path / name).write_text(json.dumps({key: value for key, value in record.items() if key != "checksum"}))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"asked": {"model": ["x"]}}, "'asked.model' holds ['x']; expected text"),
        ({"asked": {"content": {"a": 1}}}, "'asked.content' holds {'a': 1}; expected an object"),
        ({"asked": {"lens": [["a"]]}}, "expected a name and a file for each lens"),
        ({"asked": {"text": "abc"}}, "'asked.text' holds 'abc'; expected a list of texts"),
        ({"command": ["internal-policy", 1]}, "'command' holds"),
        ({"quantization": "nf4"}, "'quantization' holds 'nf4'; expected an object"),
        ({"n_layers": 10**12}, "'n_layers' is 1000000000000; expected at most 10,000"),
        ({"selection": {"layers": [99], "sites": ["mlp_out"]}}, "'selection.layers' holds 99, but the layers are 0"),
        ({"selection": {"sites": ["nowhere"]}}, "'selection.sites' holds 'nowhere'; expected some of resid_pre"),
        ({"selection": {"positions": {"begin": 1}}}, "'selection.positions' holds {'begin': 1}; expected first"),
        ({"files": {"../../secret.parquet": {}}}, "'files' lists '../../secret.parquet', which isn't a file of a scan"),
    ],
)
def test_a_scan_with_a_lying_record_is_refused(tmp_path, changes, said):
    own = json.loads((SCANS / "demo-qwen3" / "scan.json").read_text())
    if "selection" in changes:
        changes = {"selection": {**own["selection"], **changes["selection"]}}
    folder = changed(tmp_path, SCANS / "demo-qwen3", store.RECORD, **changes)
    with pytest.raises(InputError) as error:
        store.record(folder)
    assert said in str(error.value)


def test_a_pipe_in_place_of_the_table_of_an_alignment_is_refused(tmp_path):
    folder = changed(tmp_path, SCANS / "demo-qwen3-alignment", alignment.RECORD)
    (folder / alignment.TABLE).unlink()
    os.mkfifo(folder / alignment.TABLE)
    with pytest.raises(InputError, match="is damaged or missing"):
        alignment.table(folder)
    assert contents.described(inventory.Item("alignment", folder, str(folder)))["state"] == "broken"


def test_an_ablation_with_an_effect_twice_is_refused(tmp_path):
    folder = changed(tmp_path, SCANS / "demo-qwen3-ablation", effects.RECORD)
    path = folder / "effects-00000.parquet"
    table = pq.read_table(path)
    store.write_table(path, pa.concat_tables([table, table.slice(0, 1)]))
    record = records.read(folder / effects.RECORD)
    record["files"][path.name] = files.fingerprint(path)
    records.write(folder / effects.RECORD, record)
    with pytest.raises(InputError, match=r"damaged tables \(an effect is listed twice\)"):
        effects.read(folder, effects.EFFECTS)


@pytest.mark.parametrize(
    "changes",
    [{"asked": []}, {"scan": "x"}, {"files": {"effects-/../../secret": {}}}, {"model": 3}, {"scan": {"digest": "a"}}],
)
def test_an_ablation_with_a_lying_record_is_refused(tmp_path, changes):
    folder = changed(tmp_path, SCANS / "demo-qwen3-ablation", effects.RECORD, **changes)
    with pytest.raises(InputError, match="is damaged"):
        effects.record(folder)


@pytest.mark.parametrize("changes", [{"asked": []}, {"asked": {}}, {"model": None}, {"responses": "many"}])
def test_an_alignment_with_a_lying_record_is_refused(tmp_path, changes):
    folder = changed(tmp_path, SCANS / "demo-qwen3-alignment", alignment.RECORD, **changes)
    with pytest.raises(InputError, match="is damaged"):
        alignment.record(folder)


@pytest.mark.parametrize(
    ("value", "kind", "right"),
    [
        (1, float, True),
        (True, int, False),
        (10**400, float, False),
        (None, str | None, True),
        (["a", 1], list[str], False),
        ({"a": [1]}, dict[str, list[int]], True),
        ({"a": None}, dict[str, dict[str, Any] | None], True),
    ],
)
def test_a_value_fits_its_type(value, kind, right):
    assert settings.fits(value, kind) is right


def test_the_shipped_records_fit():
    for path in (*SCANS.glob("*/scan.json"), *SCANS.glob("*/ablation.json"), *SCANS.glob("*/alignment.json")):
        assert settings.complaint(records.read(path)["asked"]) is None


def test_a_pipe_in_place_of_a_record_or_a_table_is_refused_unread(copied):
    path = copied / store.VOCABULARY
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="it isn't a file"):
        store.read(copied, "vocabulary")
    (copied / store.RECORD).unlink()
    os.mkfifo(copied / store.RECORD)
    with pytest.raises(InputError, match="it isn't a file"):
        store.record(copied)


def test_top_tokens_in_lists_of_any_length_are_refused():
    table = pa.table({"layer": [0], "final.topk_ids": [[1, 2]]})
    assert schema.complaint("policies", table.schema) == "its column final.topk_ids is list<item: int64>"


def test_a_table_of_a_scan_without_its_columns_is_refused(copied):
    store.write_table(copied / store.VOCABULARY, pa.table({"id": ["0"], "token": ["a"]}))
    record = records.read(copied / store.RECORD)
    record["files"][store.VOCABULARY] = files.fingerprint(copied / store.VOCABULARY)
    records.write(copied / store.RECORD, {name: value for name, value in record.items() if name != "footers"})
    with pytest.raises(InputError, match="its column id is string"):
        store.read(copied, "vocabulary")
