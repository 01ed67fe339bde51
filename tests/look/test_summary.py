"""Readable tables of a scan have its numbers, in the words of the figures."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from internal_policy import bundle, files
from internal_policy.errors import InputError
from internal_policy.look import summary, targets, view
from internal_policy.look.view import View
from internal_policy.scans import store

DEMO = View(bundle.DATA / "scans" / "demo-qwen3")


def test_entropies_by_layer_are_the_means_of_the_figures():
    table = summary.by_layer(DEMO).set_index("layer")
    means = view.means(DEMO, "entropy").pivot(index="layer", columns="site", values="mean")
    assert table["FFN"].to_numpy() == pytest.approx(means["mlp_out"].to_numpy(), nan_ok=True)
    assert table.loc[8, "final"] == pytest.approx(means.loc[8, "final"])
    assert (table["FFN"] - table["FFN input"] - table["Δ FFN"])[:8].to_numpy() == pytest.approx(np.zeros(8))


def test_entropies_by_layer_can_weigh_rollouts_equally():
    means = view.means(DEMO, "entropy", "rollouts").pivot(index="layer", columns="site", values="mean")
    table = summary.by_layer(DEMO, "rollouts")
    assert table["attention"].to_numpy() == pytest.approx(means["attn_out"].to_numpy(), nan_ok=True)
    assert not np.allclose(table["attention"], summary.by_layer(DEMO)["attention"], equal_nan=True)


def test_a_scan_without_entropies_has_no_table_by_layer(tmp_path):
    folder = Path(shutil.copytree(str(DEMO.source), tmp_path / "scan"))
    record = store.record(folder)
    for path in store.parts(folder, "layers"):
        store.write_table(path, pq.read_table(path).drop_columns("entropy"))
        record["files"][path.name] = files.fingerprint(path)
    record["selection"]["measures"].remove("entropy")
    (folder / store.RECORD).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"has no entropy. Scan again with --measures all."):
        summary.by_layer(View(folder))


def test_target_layers_count_from_0_like_hook_points():
    table = summary.targets(view.changes(DEMO))
    target = targets.target(targets.stages(view.changes(DEMO)))
    assert table["FFN's entropy change"].tolist() == ["as measured (paper)", "direction alone", "norm alone"]
    assert target is not None
    assert table["target layer"][0] == target
    assert table["hook point"][0] == f"{target}.resid_post"


def test_stages_are_spans_of_layers():
    assert summary.stages_in_words([("exploration", 0, 5), ("integration", 6, 6)]) == (
        "exploration 0 to 5, integration 6"
    )


def test_the_table_has_no_target_if_no_layer_explores():
    changes = view.changes(DEMO)
    flat = changes.assign(low=-1.0, high=1.0, low_all=-1.0, high_all=1.0)
    table = summary.targets(flat)
    assert pd.isna(table["target layer"]).all()
    assert table["hook point"].isna().all()
    assert set(table["stages"]) == {"integration 0 to 7"}


def test_provenance_names_weights_problems_sampling_and_the_command():
    entries = summary.provenance(DEMO)
    assert entries["weights"].startswith("sha256 ")
    assert entries["problems"] == "data/problems/heldout.jsonl, at most 20"
    assert entries["sampling"] == "1 per problem, temperature 1.0, top-p 1.0, seed 0, at most 1024 tokens"
    assert entries["command"].startswith("internal-policy scan --model demo-qwen3")
    assert "lens" not in entries


def test_provenance_says_what_of_the_scan_is_shown():
    assert summary.provenance(DEMO)["shown here"] == "all of them"
    assert summary.provenance(replace(DEMO, outcome="correct"))["shown here"] == view.words(
        replace(DEMO, outcome="correct")
    )
