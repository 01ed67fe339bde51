"""The tables of a scan, worked by hand: 2 rollouts of 2 and 1 tokens, 2 layers, invented numbers."""

import numpy as np
import pytest

from internal_policy.models.hooks import FINAL, HookPoint
from internal_policy.scans.selection import Selection, plan
from internal_policy.scans.tables import layers_table, policies_table

SELECTION = Selection(
    (0, 1), ("attn_out",), ("raw", "norm"), ("entropy", "rank", "topk", "entropy_at_input_norm"), top_k=2
)
PLAN = plan(SELECTION)
MEASURED = [range(2), range(1)]
NAN = np.nan


def numbers():
    """Rows are the three tokens; columns are final, 0.attn_out, 1.attn_out, and the inputs of the norm control."""
    raw = {
        "entropy": np.array([[1.0, 2, 3, 90, 91], [4, 5, 6, 92, 93], [7, 8, 9, 94, 95]], dtype=np.float32),
        "rank": np.array([[1, 2, 1, 90, 91], [1, 1, 4, 92, 93], [3, 1, 1, 94, 95]], dtype=np.int32),
        "entropy_at_input_norm": np.array([[NAN, 0.5, 1.5], [NAN, 2.5, 3.5], [NAN, 4.5, 5.5]], dtype=np.float32),
        "topk_ids": np.arange(30, dtype=np.int32).reshape(3, 5, 2),
        "topk_probs": np.arange(30, dtype=np.float32).reshape(3, 5, 2) / 32,
    }
    normed = {name: values + np.array(100, dtype=values.dtype) for name, values in raw.items()}
    return {**{("raw", name): v for name, v in raw.items()}, **{("norm", name): v for name, v in normed.items()}}


@pytest.fixture
def policies():
    return policies_table(numbers(), SELECTION, PLAN, 2, MEASURED, first=4)


@pytest.fixture
def layers():
    return layers_table(numbers(), SELECTION, PLAN, 2, MEASURED, first=4)


def test_the_example_matches_its_plan():
    assert PLAN.points[:3] == (FINAL, HookPoint(0, "attn_out"), HookPoint(1, "attn_out"))
    assert (PLAN.unembedded, len(PLAN.points)) == (3, 5)


# policies


def test_policies_have_one_row_per_rollout_position_readout_and_layer(policies):
    # tokens 4.0, 4.1 and 5.0; each raw and norm; each layers 0, 1, and 2 for final
    assert policies["rollout"].to_pylist() == [4] * 12 + [5] * 6
    assert policies["position"].to_pylist() == [0] * 6 + [1] * 6 + [0] * 6
    assert policies["readout"].to_pylist() == (["raw"] * 3 + ["norm"] * 3) * 3
    assert policies["layer"].to_pylist() == [0, 1, 2] * 6


def test_policies_have_one_column_per_site_and_measure(policies):
    assert policies.column_names == [
        *("rollout", "position", "layer", "readout"),
        *("attn_out.entropy", "attn_out.rank", "attn_out.topk_ids", "attn_out.topk_probs"),
        "attn_out.entropy_at_input_norm",
        *("final.entropy", "final.rank", "final.topk_ids", "final.topk_probs"),
    ]


def test_a_sites_numbers_are_null_at_final(policies):
    assert policies["attn_out.entropy"].to_pylist() == [
        *(2, 3, None, 102, 103, None),
        *(5, 6, None, 105, 106, None),
        *(8, 9, None, 108, 109, None),
    ]
    assert policies["attn_out.rank"].to_pylist()[:6] == [2, 1, None, 102, 101, None]


def test_the_numbers_of_final_are_null_at_the_layers(policies):
    assert policies["final.entropy"].to_pylist() == [
        *(None, None, 1, None, None, 101),
        *(None, None, 4, None, None, 104),
        *(None, None, 7, None, None, 107),
    ]


def test_the_norm_control_is_null_under_the_norm_readout(policies):
    assert policies["attn_out.entropy_at_input_norm"].to_pylist() == [
        *(0.5, 1.5, None, None, None, None),
        *(2.5, 3.5, None, None, None, None),
        *(4.5, 5.5, None, None, None, None),
    ]


def test_the_likeliest_tokens_are_lists_of_k(policies):
    # token 0: points final (0, 1), 0.attn_out (2, 3), 1.attn_out (4, 5); token 1: ten further
    assert policies["attn_out.topk_ids"].to_pylist()[:9] == [
        *([2, 3], [4, 5], None, [102, 103], [104, 105], None),
        *([12, 13], [14, 15], None),
    ]
    assert policies["final.topk_probs"].to_pylist()[:3] == [None, None, [0, 1 / 32]]


def test_numbers_are_stored_unchanged(policies):
    types = {name: str(policies.schema.field(name).type) for name in policies.column_names}
    assert types["attn_out.entropy"] == "float"
    assert types["attn_out.rank"] == types["layer"] == types["rollout"] == "int32"
    assert types["attn_out.topk_ids"].startswith("fixed_size_list<")


def test_nan_values_are_not_stored_as_null():
    broken = numbers()
    broken["raw", "entropy"][0, 1] = NAN
    column = policies_table(broken, SELECTION, PLAN, 2, MEASURED, first=0)["attn_out.entropy"]
    assert column.null_count == 6
    assert np.isnan(column.to_pylist()[0])


# layers


def rows(table, **values):
    return [row for row in table.to_pylist() if all(row[name] == value for name, value in values.items())]


def test_layers_have_one_row_per_rollout_readout_layer_and_site(layers):
    keys = [(row["rollout"], row["readout"], row["layer"], row["site"]) for row in layers.to_pylist()]
    places = [(0, "attn_out"), (1, "attn_out"), (2, "final")]
    assert keys == [(rollout, readout, *place) for rollout in (4, 5) for readout in ("norm", "raw") for place in places]


def test_layers_count_the_tokens(layers):
    assert layers["tokens"].to_pylist() == [2] * 6 + [1] * 6


def test_layers_contain_means_over_the_tokens_of_a_rollout(layers):
    found = [row["entropy"] for row in rows(layers, readout="raw")]
    assert found == [3.5, 4.5, 2.5, 8, 9, 7]  # (2 + 5) / 2, (3 + 6) / 2, (1 + 4) / 2; then the one token of rollout 5


def test_top1_is_the_share_of_tokens_with_rank_1(layers):
    found = [(row["rank"], row["top1"]) for row in rows(layers, readout="raw")]
    # ranks (2, 1), (1, 4), (1, 1); then 1, 1, 3
    assert found == [(1.5, 0.5), (2.5, 0.5), (1, 1), (1, 1), (1, 1), (3, 0)]


def test_layers_have_the_norm_control_only_for_the_raw_readout(layers):
    raw, normed = (
        [row["entropy_at_input_norm"] for row in rows(layers, readout=r, site="attn_out")] for r in ("raw", "norm")
    )
    assert raw == [1.5, 2.5, 4.5, 5.5]  # (0.5 + 2.5) / 2, (1.5 + 3.5) / 2
    assert np.isnan(np.array(normed, dtype=float)).all()


def test_measures_that_a_site_lacks_are_null(layers):
    assert [row["entropy_at_input_norm"] for row in rows(layers, site="final")] == [None] * 4


def test_means_are_summed_in_float64():
    selection = Selection((0,), ("attn_out",), ("raw",), measures=("entropy",))
    n = 500_000
    values = np.full((n, 2), 0.1, dtype=np.float32)
    table = layers_table({("raw", "entropy"): values}, selection, plan(selection), 1, [range(n)], first=0)
    assert str(table.schema.field("entropy").type) == "double"
    # the float32 nearest to 0.1, up to float64's rounding; a float32 sum would be off by 1e-5 or more
    assert table["entropy"].to_pylist() == pytest.approx([float(np.float32(0.1))] * 2, abs=1e-12)


def test_a_rollout_does_not_change_the_means_of_another():
    alone = layers_table({key: v[:2] for key, v in numbers().items()}, SELECTION, PLAN, 2, [range(2)], first=4)
    together = layers_table(numbers(), SELECTION, PLAN, 2, MEASURED, first=4)
    assert alone.to_pandas().equals(together.slice(0, 6).to_pandas())


def test_a_top_k_of_0_gives_no_topk_columns():
    selection = Selection((0, 1), ("attn_out",), measures=("entropy", "topk"), top_k=0)
    table = policies_table(numbers(), selection, plan(selection), 2, MEASURED, first=0)
    assert [name for name in table.column_names if "topk" in name] == []


def test_with_only_topk_the_table_layers_just_counts_tokens():
    selection = Selection((0, 1), ("attn_out",), ("raw",), measures=("topk",), top_k=2)
    table = layers_table(numbers(), selection, plan(selection), 2, MEASURED, first=0)
    assert table.column_names == ["rollout", "readout", "layer", "site", "tokens"]
    assert table["tokens"].to_pylist() == [2] * 3 + [1] * 3
