"""Scans that can't be compared are refused, and differences between the others are listed."""

import shutil

import pandas as pd
import pytest

from internal_policy import bundle, files
from internal_policy.errors import InputError
from internal_policy.look.comparison import comparable, differences, partner, relative
from internal_policy.look.view import View
from internal_policy.scans import records, store

DEMO = bundle.DATA / "scans" / "demo-qwen3"


def test_different_readouts_are_only_compared_within_one_scan():
    assert len(comparable([View(DEMO, "raw"), View(DEMO, "norm")])) == 2
    with pytest.raises(InputError, match="Choose one readout"):
        comparable([View(DEMO, "raw"), View(bundle.DATA / "scans" / "demo-llama", "norm")])


def test_a_scan_without_the_measure_cannot_be_compared(copied):
    record = records.read(copied / store.RECORD)
    record["selection"]["measures"] = ["norm"]
    files.write_json(copied / store.RECORD, record)
    with pytest.raises(InputError, match=r"has no entropy\. Scan again with --measures all"):
        comparable([View(DEMO), View(copied)])


def test_scans_without_a_site_in_common_cannot_be_compared(copied):
    record = records.read(copied / store.RECORD)
    shutil.copytree(copied, copied.parent / "other")
    for folder, sites in ((copied, ["attn_out"]), (copied.parent / "other", ["mlp_out"])):
        files.write_json(folder / store.RECORD, {**record, "selection": {**record["selection"], "sites": sites}})
    with pytest.raises(InputError, match="have no site in common"):
        comparable([View(copied), View(copied.parent / "other")])


def test_the_demo_scans_can_be_compared_without_caveats():
    records = comparable([View(bundle.DATA / "scans" / name) for name in ("demo-llama", "demo-qwen3")])
    assert differences(records) == []


RECORD = {
    "rollouts": 20,
    "d_vocab": 448,
    "dtype": "bfloat16",
    "selection": {},
    "asked": {"content": {"a.jsonl": {"sha256": "1"}}, "temperature": 1.0, "max_new_tokens": 64},
}


def test_differences_between_scans_are_listed():
    other = {**RECORD, "d_vocab": 151936, "asked": {**RECORD["asked"], "content": {"b.jsonl": {"sha256": "2"}}}}
    said = " ".join(differences([RECORD, other]))
    assert "the problems" in said
    assert "448, 151936" in said
    assert "temperature" not in said


def of_hub(**content):
    return {**RECORD, "asked": {**RECORD["asked"], "content": content}}


def test_other_hub_data_sets_or_commits_are_other_problems():
    one, other = {"org/a@train": {"revision": "1" * 40}}, {"org/b@train": {"revision": "1" * 40}}
    assert differences([of_hub(**one), of_hub(**one)]) == []
    assert differences([of_hub(**one), of_hub(**other)]) == [
        "The scans differ in the problems: org/a@train (commit 111111111111), org/b@train (commit 111111111111)."
    ]
    later = {"org/a@train": {"revision": "2" * 40}}
    assert "commit 222222222222" in differences([of_hub(**one), of_hub(**later)])[0]


def test_other_hub_data_sets_without_commits_are_other_problems():
    assert differences([of_hub(**{"org/a@train": None}), of_hub(**{"org/b@train": None})]) == [
        "The scans differ in the problems: org/a@train, org/b@train."
    ]


def test_lenses_are_not_part_of_the_problems():
    content = {**RECORD["asked"]["content"], "mine.safetensors": {"sha256": "3"}}
    lensed = {**RECORD, "asked": {**RECORD["asked"], "content": content, "lens": "mine.safetensors"}}
    assert differences([RECORD, lensed]) == []


def test_the_same_problems_under_another_path_do_not_differ():
    moved = {**RECORD, "asked": {**RECORD["asked"], "content": {"elsewhere/a.jsonl": {"sha256": "1"}}}}
    assert differences([RECORD, moved]) == []


def test_relative_depth_is_the_share_of_layers_passed():
    frame = pd.DataFrame({"layer": [0, 0, 3, 4], "site": ["resid_pre", "mlp_out", "resid_post", "final"]})
    assert list(relative(frame, 4)["depth"]) == [0.0, 0.25, 1.0, 1.0]
    assert list(relative(frame[["layer"]], 8)["depth"]) == [1 / 8, 1 / 8, 4 / 8, 5 / 8]


SHAPE = {"family": "qwen3", "n_layers": 8, "d_model": 128, "d_vocab": 448}


def test_the_partner_of_a_scan_has_the_same_problems_or_a_model_of_the_same_shape():
    one = {**RECORD, **SHAPE}
    trained = {**one, "asked": {"content": {"r.parquet": {"sha256": "9"}}}}
    other = {**one, "family": "llama"}
    stranger = {**trained, "d_vocab": 49152}
    assert partner(one, {"stranger": stranger}) is None
    assert partner(one, {}) is None
    assert partner(one, {"stranger": stranger, "other": other}) == "other"
    assert partner(one, {"stranger": stranger, "trained": trained}) == "trained"
    assert partner(one, {"trained": trained, "other": other, "same": one}) == "same"
