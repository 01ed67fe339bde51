"""The table of rollouts, checked against the rows of the demo scan."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import internal_policy as ip
from internal_policy import bundle
from internal_policy.look.rollouts import by_rollout, outline
from internal_policy.look.view import View
from internal_policy.scans import store
from internal_policy.scans.store import Tables

DEMO = View(bundle.DATA / "scans" / "demo-qwen3")


def test_a_rollouts_entropies_are_those_of_the_models_own_policy():
    (found,) = by_rollout(DEMO).query("rollout == 4").to_dict("records")
    rows = store.of_rollout(DEMO.source, "policies", 4, ["layer", "readout", "final.entropy"]).to_pandas()
    values = rows.query("layer == 8 and readout == 'raw'")["final.entropy"].astype(float)
    assert found["line"] == pytest.approx(values.tolist())
    assert [found["entropy"], found["highest"]] == pytest.approx([values.mean(), values.max()])


def test_a_rollout_settles_where_half_of_its_tokens_have_the_models_top_token_to_the_end():
    found = by_rollout(DEMO).set_index("rollout")["settles"]
    rows = store.of_rollout(
        DEMO.source, "policies", 4, ["layer", "readout", "position", "resid_post.topk_ids"]
    ).to_pandas()
    final = store.of_rollout(DEMO.source, "policies", 4, ["layer", "readout", "position", "final.topk_ids"]).to_pandas()
    top = rows.query("layer < 8 and readout == 'raw'")["resid_post.topk_ids"].str[0].to_numpy().reshape(-1, 8)
    own = final.query("layer == 8 and readout == 'raw'")["final.topk_ids"].str[0].to_numpy()
    settled = [next((n for n in range(8) if (row[n:] == token).all()), 8) for row, token in zip(top, own, strict=True)]
    half = [n for n in range(8) if np.mean(np.array(settled) <= n) >= 0.5]
    assert found[4] == half[0]


def test_the_table_has_the_rollouts_of_the_view_and_their_tokens_in_the_window():
    found = by_rollout(View(DEMO.source, outcome="incorrect", first=2, last=6))
    assert (found["reward"] < 1).all()
    assert found["line"].map(len).tolist() == found["tokens"].tolist()
    assert found["tokens"].max() == 5


def test_a_long_response_has_a_line_of_100_points_with_its_peaks():
    values = np.zeros(750)
    values[[3, 748]] = 5.0, 7.0
    line = outline(values)
    assert len(line) == 100
    assert (line[0], line[-1], sum(line)) == (5.0, 7.0, 12.0)
    assert outline(values[:100]) == values[:100].tolist()


def test_what_was_not_measured_is_missing():
    tables = {kind: pa.concat_tables(store.pieces(DEMO.source, kind)) for kind in store.KINDS}
    lost = [name for name in tables["policies"].column_names if name.startswith("final") or "topk" in name]
    scan = View(Tables(store.record(DEMO.source), {**tables, "policies": tables["policies"].drop_columns(lost)}))
    found = by_rollout(scan)
    assert len(found) == len(by_rollout(DEMO))
    assert found[["entropy", "highest", "settles", "line"]].isna().all(axis=None)
    assert found["begins"].str.len().gt(0).all()


def test_a_scan_in_python_has_the_table():
    scan = ip.open_scan("demo-qwen3").view(outcome="correct")
    pd.testing.assert_frame_equal(scan.by_rollout(), by_rollout(scan))


def test_marks_that_came_with_responses_are_columns():
    tables = {kind: pa.concat_tables(store.pieces(DEMO.source, kind)) for kind in store.KINDS}
    steps = pa.array([float(n % 3) for n in range(tables["rollouts"].num_rows)])
    marked = tables["rollouts"].append_column("mark.step", steps)
    found = by_rollout(View(Tables(store.record(DEMO.source), {**tables, "rollouts": marked})))
    assert found["mark.step"].tolist() == [float(n % 3) for n in found["rollout"]]
