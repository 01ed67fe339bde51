"""Two responses are compared cell by cell only if they have the same tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from internal_policy import bundle, files
from internal_policy.errors import InputError
from internal_policy.look import tokens
from internal_policy.look.lens_grid import pair
from internal_policy.look.pairs import Side, best, caveats, differences, obstacle, partners
from internal_policy.look.scan import open_scan
from internal_policy.look.view import View
from internal_policy.scans import records, store

DEMO, OTHER = (View(bundle.DATA / "scans" / name) for name in ("demo-qwen3", "demo-llama"))
NORM = replace(DEMO, readout="norm")


def changed(folder: Path, name: str, change: Callable[[pa.Table], pa.Table], **facts) -> View:
    """A scan after its files called `name`-something and its record were changed."""
    record = records.read(folder / store.RECORD)
    for path in folder.glob(f"{name}*.parquet"):
        store.write_table(path, change(pq.read_table(path)))
        record["files"][path.name] = files.fingerprint(path)
    files.write_json(folder / store.RECORD, {**record, **facts})
    return View(folder)


def with_ids(table: pa.Table, name: str, change: Callable[[np.ndarray], np.ndarray]) -> pa.Table:
    lists = pa.array(
        [None if ids is None else change(np.array(ids)) for ids in table[name].to_pylist()],
        table.schema.field(name).type,
    )
    return table.set_column(table.schema.get_field_index(name), name, lists)


def test_a_rollout_has_the_same_tokens_in_every_readout():
    assert partners(DEMO, NORM) == {rollout: [rollout] for rollout in range(20)}
    assert best(DEMO, NORM) == (Side(DEMO, 0), Side(NORM, 0))


def test_responses_of_other_models_have_other_tokens():
    assert not any(partners(DEMO, OTHER).values())
    assert best(DEMO, OTHER, 3) == (Side(DEMO, 3), Side(OTHER, 3))


def test_tokens_are_the_same_if_their_texts_are(copied):
    """The copy's tokenizer numbers all tokens in reverse."""
    last = len(store.read(copied, "vocabulary")) - 1
    for name in ("prompt_ids", "response_ids"):
        changed(copied, "rollouts", lambda table, name=name: with_ids(table, name, lambda ids: last - ids))
    renamed = changed(
        copied,
        "vocabulary",
        lambda t: t.set_column(0, "id", pa.array(last - t["id"].to_numpy(), t.schema.field(0).type)),
    )
    assert partners(DEMO, renamed) == {rollout: [rollout] for rollout in range(20)}
    assert obstacle(Side(DEMO, 0), Side(renamed, 0)) is None
    assert obstacle(Side(DEMO, 0), Side(View(copied), 1)) is not None


def test_the_same_response_to_another_prompt_can_be_subtracted_with_a_caveat(copied):
    other = changed(copied, "rollouts", lambda table: with_ids(table, "prompt_ids", lambda ids: ids[1:]))
    assert partners(DEMO, other)[0] == [0]
    assert obstacle(Side(DEMO, 0), Side(other, 0)) is None
    assert caveats(Side(DEMO, 0), Side(other, 0)) == [
        "The prompts differ, so the responses have the same tokens in another context."
    ]


def test_a_cell_is_the_value_of_b_minus_that_of_a():
    found = differences(Side(DEMO, 2), Side(NORM, 2), "attn_out", "entropy").set_index(["layer", "position"])
    values = [tokens.cells(view, 2, "attn_out").set_index(["layer", "position"])["value"] for view in (DEMO, NORM)]
    assert len(found) == len(values[0])
    assert np.array_equal(found["difference"], (values[1] - values[0])[found.index])


def test_top_tokens_and_their_probabilities_are_those_at_the_cell():
    found = differences(Side(DEMO, 0), Side(NORM, 0), measure="probability").set_index(["layer", "position"])
    for view, side in ((DEMO, "a"), (NORM, "b")):
        there = tokens.predictions(view, 0, 5, 3).query("site == 'resid_post' and rank == 1").iloc[0]
        assert found[f"top_{side}"][3, 5] == there["token"]
        assert found[f"value_{side}"][3, 5] == pytest.approx(there["probability"])


def test_the_models_own_policy_is_the_same_for_two_readouts_of_one_scan():
    found = differences(Side(DEMO, 0), Side(NORM, 0))
    own = found[found["layer"] == 8]
    assert own["same_top"].all()
    assert (own["difference"] == 0).all()


def test_cells_whose_top_tokens_differ_are_marked(copied):
    def reversed_lists(table: pa.Table) -> pa.Table:
        return with_ids(table, "resid_post.topk_ids", lambda ids: ids[::-1])

    other = changed(copied, "policies", reversed_lists)
    found = differences(Side(DEMO, 0), Side(other, 0))
    own = found["layer"] == 8
    assert found[own]["same_top"].all()
    assert not found[~own]["same_top"].any()
    assert (found[~own]["top_a"] != found[~own]["top_b"]).all()


def test_a_window_of_positions_is_respected():
    found = differences(Side(replace(DEMO, first=2, last=4), 0), Side(replace(NORM, first=2, last=4), 0))
    assert found["position"].unique().tolist() == [2, 3, 4]


def test_scans_without_top_tokens_have_no_columns_for_them(copied):
    def without(table: pa.Table) -> pa.Table:
        return table.drop_columns([name for name in table.column_names if "topk" in name])

    selection = {**store.record(copied)["selection"], "top_k": 0}
    bare = changed(copied, "policies", without, selection=selection)
    assert "top_a" not in differences(Side(DEMO, 0), Side(bare, 0))
    with pytest.raises(InputError, match="has no top-k tokens"):
        differences(Side(DEMO, 0), Side(bare, 0), measure="probability")


def test_different_tokens_are_refused_with_the_command_that_gives_the_same_ones(copied):
    said = obstacle(Side(DEMO, 0), Side(View(copied), 1)) or ""
    assert said.startswith("A and B have different tokens")
    assert f"`internal-policy export {DEMO.source} --table rollouts -o rollouts.parquet`" in said
    assert "`internal-policy scan --model demo-qwen3 --rollouts rollouts.parquet`" in said


def test_a_model_with_another_tokenizer_is_not_advised_to_read_the_same_ids():
    said = "A and B have different tokens, so only their layers are linked and nothing is subtracted."
    assert obstacle(Side(DEMO, 0), Side(OTHER, 0)) == said
    with pytest.raises(InputError, match="A and B have different tokens"):
        open_scan("demo-qwen3").compare_tokens(open_scan("demo-llama"))


def test_two_rollouts_of_one_scan_are_only_linked():
    said = obstacle(Side(DEMO, 0), Side(DEMO, 1))
    assert said == "A and B have different tokens, so only their layers are linked and nothing is subtracted."


def test_models_of_different_depth_are_not_subtracted(copied):
    deeper = changed(copied, "vocabulary", lambda table: table, n_layers=9)
    assert "A has 8 layers and B has 9" in (obstacle(Side(DEMO, 0), Side(deeper, 0)) or "")


def test_a_response_is_not_compared_with_itself():
    assert "the same response" in (obstacle(Side(DEMO, 0), Side(DEMO, 0)) or "")


def test_a_scan_compares_its_readouts_by_token():
    raw = open_scan("demo-qwen3")
    found = raw.compare_tokens(raw.view(readout="norm"), rollout=1, measure="kl")
    assert [*found][:7] == ["layer", "position", "id", "token", "value_a", "value_b", "difference"]
    assert found["layer"].max() == 7


def test_linked_grids_are_named_by_what_differs():
    assert pair.names(Side(DEMO, 0), Side(NORM, 0)) == [
        "demo-qwen3 · raw hidden states",
        "demo-qwen3 · through the final norm",
    ]
    assert pair.names(Side(DEMO, 0), Side(DEMO, 1)) == ["demo-qwen3 · rollout 0", "demo-qwen3 · rollout 1"]
    assert pair.names(Side(DEMO, 0), Side(OTHER, 2)) == ["demo-qwen3 · rollout 0", "demo-llama · rollout 2"]


def test_linked_grids_have_one_readout_each_and_the_reason_why_nothing_is_subtracted():
    drawn = pair.drawn(Side(DEMO, 0), Side(NORM, 0), site="attn_in", layer=3)
    assert [[*grid["planes"]] for grid in drawn["grids"]] == [["raw"], ["norm"]]
    assert all("attn_in" in plane for grid in drawn["grids"] for plane in grid["planes"].values())
    assert drawn["why"] == ""
    assert pair.drawn(Side(DEMO, 0), Side(OTHER, 0))["why"].startswith("A and B have different tokens")


def test_a_notebook_draws_the_compared_tokens_as_linked_grids():
    raw = open_scan("demo-qwen3")
    found = raw.compare_tokens(raw.view(readout="norm"))
    assert "<iframe" in found._repr_html_()
    assert r"demo-qwen3 \u00b7 through the final norm" in found._repr_html_()
    assert "<iframe" not in (found.head()._repr_html_() or "")
