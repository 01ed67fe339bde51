"""The paper's quantities, by hand and against slow plain code."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal_policy.look import statistics
from internal_policy.look.statistics import (
    by_layer,
    changes,
    interval,
    means,
    not_finite,
    relative,
    runner_up,
    settling,
    simultaneous,
    spans,
    stages,
    suggestion,
    target,
    target_in_words,
    targets,
)


def table(rows: list[tuple], *measures: str) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["rollout", "layer", "site", "tokens", *(measures or ("entropy",))])


THREE_TOKENS = table(  # a rollout of one token and one of two; entropies are the means over a rollout's tokens
    [
        (0, 0, "resid_pre", 1, 4.0),
        (1, 0, "resid_pre", 2, 1.0),
        (0, 0, "resid_post", 1, 5.0),
        (1, 0, "resid_post", 2, 0.5),
        (0, 0, "attn_in", 1, 2.0),
        (1, 0, "attn_in", 2, 2.0),
        (0, 0, "attn_out", 1, 3.0),
        (1, 0, "attn_out", 2, 6.0),
        (0, 0, "mlp_in", 1, 1.0),
        (1, 0, "mlp_in", 2, 4.0),
        (0, 0, "mlp_out", 1, 7.0),
        (1, 0, "mlp_out", 2, 1.0),
        (0, 1, "final", 1, 0.3),
        (1, 1, "final", 2, 0.6),
    ]
)


def changes_of(*rows: tuple) -> pd.DataFrame:
    """Changes whose intervals hold for all layers at once where no others are given."""
    columns = ["layer", "change", "part", "mean", "low", "high", "low_all", "high_all"]
    return pd.DataFrame([row if len(row) == len(columns) else (*row, *row[-2:]) for row in rows], columns=columns)


def test_entropies_are_means_over_tokens_and_changes_their_differences():
    layers = THREE_TOKENS.assign(readout="raw")
    found = by_layer(pd.concat([layers, layers.assign(readout="norm", entropy=100.0)]), "raw")
    assert found.loc[0, "resid_pre"] == pytest.approx((4 + 2 * 1) / 3)
    assert found.loc[0, "resid_post"] == pytest.approx((5 + 2 * 0.5) / 3)
    assert found.loc[0, "change_layer"] == pytest.approx(0.0)
    assert found.loc[1, "final"] == pytest.approx((0.3 + 2 * 0.6) / 3)


def test_a_change_whose_input_was_not_measured_is_left_out():
    layers = THREE_TOKENS[THREE_TOKENS["site"] != "attn_in"].assign(readout="raw")
    assert "change_attn" not in by_layer(layers, "raw")
    assert set(changes(layers)["change"]) == {"layer", "mlp"}


def test_the_mean_over_tokens_and_the_mean_over_rollouts():
    over_tokens = means(THREE_TOKENS).set_index(["layer", "site"])["mean"]
    over_rollouts = means(THREE_TOKENS, average="rollouts").set_index(["layer", "site"])["mean"]
    assert over_tokens[0, "resid_pre"] == pytest.approx((4 + 1 + 1) / 3)
    assert over_rollouts[0, "resid_pre"] == pytest.approx((4 + 1) / 2)
    assert over_tokens[1, "final"] == pytest.approx((0.3 + 0.6 + 0.6) / 3)


def test_sites_stand_in_the_order_of_a_forward_pass():
    assert list(means(THREE_TOKENS)["site"]) == [
        "resid_pre",
        "attn_in",
        "attn_out",
        "mlp_in",
        "mlp_out",
        "resid_post",
        "final",
    ]


def test_entropy_changes_are_equations_11_to_13():
    found = changes(THREE_TOKENS).set_index("change")["mean"]
    assert found["layer"] == pytest.approx(((5 - 4) + 2 * (0.5 - 1)) / 3)
    assert found["attn"] == pytest.approx(((3 - 2) + 2 * (6 - 2)) / 3)
    assert found["mlp"] == pytest.approx(((7 - 1) + 2 * (1 - 4)) / 3)


def test_the_norm_control_splits_a_change_into_direction_and_norm():
    nan = float("nan")
    layers = table(
        [
            (0, 0, "mlp_in", 1, 1.0, nan),
            (1, 0, "mlp_in", 2, 4.0, nan),
            (0, 0, "mlp_out", 1, 7.0, 3.0),
            (1, 0, "mlp_out", 2, 1.0, 2.0),
        ],
        "entropy",
        "entropy_at_input_norm",
    )
    found = changes(layers).set_index("part")["mean"]
    assert found["direction"] == pytest.approx(((3 - 1) + 2 * (2 - 4)) / 3)
    assert found["norm"] == pytest.approx(((7 - 3) + 2 * (1 - 2)) / 3)
    assert found["direction"] + found["norm"] == pytest.approx(found["total"])


def test_there_is_no_norm_control_where_it_was_not_measured():
    layers = THREE_TOKENS.assign(entropy_at_input_norm=float("nan"))  # as under the norm readout
    assert set(changes(layers)["part"]) == {"total"}


def test_a_rollout_that_is_not_a_number_makes_the_mean_not_a_number():
    layers = table([(0, 0, "resid_post", 1, float("nan")), (1, 0, "resid_post", 1, 2.0)])
    assert by_layer(layers.assign(readout="raw"), "raw")["resid_post"].isna().all()
    assert means(layers)[["mean", "low", "high"]].isna().all(axis=None)


def test_one_rollout_has_a_mean_and_no_interval_and_no_stage():
    found = changes(THREE_TOKENS[THREE_TOKENS["rollout"] == 0])
    assert found["mean"].notna().all()
    assert found[["low", "high"]].isna().all(axis=None)
    assert not len(stages(found))
    assert target(stages(found)) is None


def slow_interval(values: np.ndarray, weights: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the weighted mean of rollouts drawn anew, one draw after the other."""
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(4000):
        rows = random.integers(0, len(values), len(values))
        draws.append(sum(values[row] * weights[row] for row in rows) / sum(weights[row] for row in rows))
    return np.percentile(draws, 2.5, axis=0), np.percentile(draws, 97.5, axis=0)


def test_means_and_intervals_equal_slow_plain_ones():
    random = np.random.default_rng(1)
    values, weights = random.normal([0, 5], [1, 3], (25, 2)), random.integers(1, 60, 25).astype(float)
    mean, low, high = interval(values, weights)
    slow_low, slow_high = slow_interval(values, weights, seed=7)
    assert mean == pytest.approx(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights))
    assert low == pytest.approx(slow_low, abs=0.06 * np.ptp([slow_low, slow_high]))
    assert high == pytest.approx(slow_high, abs=0.06 * np.ptp([slow_low, slow_high]))


def test_intervals_are_wider_where_the_tokens_of_a_rollout_agree():
    """An interval over tokens would not see it: the same 100 numbers, once in 10 rollouts that agree, once spread."""
    agreeing, spread = np.repeat(np.arange(10.0), 10), np.tile(np.arange(10.0), 10)
    widths = []
    for tokens in (agreeing, spread):
        _, low, high = interval(tokens.reshape(10, 10).mean(1, keepdims=True), np.full(10, 10.0))
        widths.append(float(high[0] - low[0]))
    assert widths[0] > 1
    assert widths[1] == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.floats(-10, 10), st.integers(1, 50)), min_size=2, max_size=12))
def test_an_interval_lies_within_the_values_and_is_the_same_each_time(pairs):
    values, weights = np.array([[value] for value, _ in pairs]), np.array([float(weight) for _, weight in pairs])
    first, again = interval(values, weights), interval(values, weights)
    assert [end.tolist() for end in first] == [end.tolist() for end in again]
    assert values.min() - 1e-9 <= first[1][0] <= first[2][0] <= values.max() + 1e-9


PLANTED = changes_of(
    (0, "mlp", "total", 2.0, 1.0, 3.0),
    (1, "mlp", "total", 0.5, 0.1, 0.9),
    (2, "mlp", "total", 0.1, -0.2, 0.4),
    (3, "mlp", "total", -2.0, -3.0, -1.0),
    (4, "mlp", "total", -0.1, -0.3, 0.0),
    (0, "attn", "total", -9.0, -9.5, -8.5),
    (0, "mlp", "direction", -1.0, -2.0, -0.5),
    (1, "mlp", "direction", 0.0, -1.0, 1.0),
    (2, "mlp", "direction", 1.0, 0.5, 1.5),
)


def test_stages_follow_the_interval_of_the_ffn():
    found = stages(PLANTED)
    expected = ["exploration", "exploration", "integration", "convergence", "integration"]
    assert list(found["stage"]) == expected
    assert spans(found) == [
        ("exploration", 0, 1),
        ("integration", 2, 2),
        ("convergence", 3, 3),
        ("integration", 4, 4),
    ]


def test_bupo_trains_the_last_layer_of_exploration():
    assert target(stages(PLANTED)) == 1
    assert target(stages(PLANTED, "direction")) == 2
    assert target(stages(changes_of((0, "mlp", "total", -1.0, -2.0, -0.5)))) is None


RISES = {"three stages": ([1.5] * 6 + [0.0] * 20 + [-1.5] * 10, 5), "all but the last": ([1.5] * 31 + [-1.5], 30)}
"""Entropy changes of the FFNs, in standard deviations between responses, and the layer to train."""
FLAT = {"none rises": ([0.0] * 36, None), "all fall": ([-1.5] * 36, None)}


def simulated(rises: list[float], random: np.random.Generator, skew: bool = False, n: int = 32) -> pd.DataFrame:
    """The table `layers` of a scan of `n` responses of different lengths, whose FFNs change entropy by `rises`."""
    tokens = np.maximum(1, np.round(np.exp(random.normal(4, 0.5, n)))).astype(int)
    noise = random.exponential(1, (n, len(rises))) - 1 if skew else random.normal(0, 1, (n, len(rises)))
    before = random.normal(3, 1, (n, len(rises)))
    after = before + np.array(rises) + noise
    rollout, layer = (axis.ravel() for axis in np.indices(before.shape))
    cells = pd.DataFrame({"rollout": rollout, "layer": layer, "tokens": tokens[rollout]})
    return pd.concat(
        cells.assign(site=site, entropy=values.ravel()) for site, values in (("mlp_in", before), ("mlp_out", after))
    )


def share_right(rises: list[float], layer: int | None, runs: int, skew: bool = False) -> float:
    random = np.random.default_rng(0)
    found = [target(stages(changes(simulated(rises, random, skew)))) for _ in range(runs)]
    return sum(one == layer for one in found) / runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "skew"),
    [("three stages", False), ("three stages", True), ("none rises", False), ("all but the last", False)],
)
def test_the_target_layer_is_right_in_95_of_100_scans(case, skew):
    assert share_right(*(RISES | FLAT)[case], runs=400, skew=skew) >= 0.95


@pytest.mark.slow
def test_by_separate_intervals_the_target_layer_is_right_in_less_than_half():
    (rises, layer), random, right = RISES["three stages"], np.random.default_rng(0), 0
    for _ in range(400):
        mlp = changes(simulated(rises, random, False)).query("change == 'mlp' and part == 'total'")
        right += mlp.loc[mlp["low"] > 0, "layer"].max() == layer
    assert right / 400 < 0.5


@pytest.mark.parametrize("case", [*RISES, *FLAT])
def test_the_target_layer_is_right_in_most_of_a_few_scans(case):
    assert share_right(*(RISES | FLAT)[case], runs=10) >= 0.9


def test_intervals_hold_for_all_columns_at_once():
    random, missed = np.random.default_rng(3), 0
    for _ in range(200):
        weights = np.exp(random.normal(4, 0.5, 32))
        low, high = simultaneous(random.normal(0, 1, (32, 20)), weights)
        missed += bool(((low > 0) | (high < 0)).any())
    assert missed <= 16  # 10 are expected, and 17 or more in 1 of 40 tries


def test_an_interval_for_all_columns_is_wider_than_that_of_one():
    values, weights = np.random.default_rng(1).normal(0, 1, (32, 20)), np.ones(32)
    _, low, high = interval(values, weights)
    low_all, high_all = simultaneous(values, weights)
    assert (low_all < low).all()
    assert (high_all > high).all()


def test_a_column_without_spread_has_an_interval_without_width():
    values = np.column_stack([np.full(8, 0.3), np.random.default_rng(1).normal(0, 1, 8)])
    low, high = simultaneous(values, np.ones(8))
    assert (low[0], high[0]) == pytest.approx((0.3, 0.3))
    assert low[1] < high[1]


def test_three_rollouts_are_too_few_to_tell_stages():
    found = changes(simulated([1.0, -1.0], np.random.default_rng(0), n=3))
    assert found["low"].notna().all()
    assert found[["low_all", "high_all"]].isna().all(axis=None)
    assert not len(stages(found))
    assert len(stages(changes(simulated([1.0, -1.0], np.random.default_rng(0), n=4)))) == 2


def test_nan_in_one_column_leaves_other_intervals_unchanged():
    values = np.random.default_rng(1).normal(0, 1, (32, 3))
    alone = simultaneous(values[:, 1:], np.ones(32))
    values[3, 0] = np.nan
    low, high = simultaneous(values, np.ones(32))
    assert np.isnan([low[0], high[0]]).all()
    assert [low[1:].tolist(), high[1:].tolist()] == [end.tolist() for end in alone]


def test_the_runner_up_is_the_last_other_layer_that_rises_by_itself():
    rising = (0, "mlp", "total", 1.0, 0.5, 1.5), (1, "mlp", "total", 1.0, 0.5, 1.5)
    uncertain = (7, "mlp", "total", 0.2, 0.1, 0.3, -0.1, 0.5)
    assert target(stages(changes_of(*rising, uncertain))) == 1
    assert runner_up(changes_of(*rising, uncertain)) == 7
    assert runner_up(changes_of(*rising)) == 0
    assert runner_up(changes_of(*rising[:1])) is None
    assert runner_up(changes_of(uncertain)) == 7


def test_targets_under_each_part_of_the_change():
    found = targets(PLANTED).set_index("part")
    assert dict(found["target"]) == {"total": 1, "direction": 2}
    assert found.loc["total", "runner_up"] == 0
    assert found["runner_up"].isna().to_dict() == {"total": False, "direction": True}
    assert list(found.loc["total", ["mean", "low", "high"]]) == [0.5, 0.1, 0.9]
    assert found.loc["direction", "spans"] == [("convergence", 0, 0), ("integration", 1, 1), ("exploration", 2, 2)]


def test_the_target_sentence_names_its_interval_and_the_runner_up():
    rising = changes_of((0, "mlp", "total", 1.0, 0.5, 1.5), (1, "mlp", "total", 2.0, 1.5, 2.5))
    assert target_in_words(suggestion(rising)) == (
        "Target layer: 1, the last whose FFN raises entropy significantly (+2 nats, 1.5 to 2.5, with 95 % confidence "
        "for all layers at once); the runner-up is layer 0."
    )
    uncertain = changes_of((7, "mlp", "total", 0.2, 0.1, 0.3, -0.1, 0.5))
    assert target_in_words(suggestion(uncertain)) == (
        "No layer's FFN raises entropy significantly, so there is no target layer; layer 7 comes closest."
    )


def test_three_rollouts_give_no_target_and_say_why():
    found = suggestion(changes(simulated([1.0, -1.0], np.random.default_rng(0), n=3)))
    assert found["target"] is None
    assert target_in_words(found).startswith("No target layer: choosing one needs at least 4 responses")


def test_layers_that_were_not_measured_part_a_span():
    found = pd.DataFrame({"layer": [0, 5], "stage": ["exploration", "exploration"]})
    assert spans(found) == [("exploration", 0, 0), ("exploration", 5, 5)]


def test_half_of_the_tokens_have_settled():
    frame = pd.DataFrame({"layer": [0, 1, 2], "mean": [0.2, 0.5, 1.0]})
    assert settling(frame) == 1
    assert settling(frame[:1]) is None


def test_relative_depth_is_the_share_of_layers_passed():
    frame = pd.DataFrame({"layer": [0, 0, 3, 4], "site": ["resid_pre", "mlp_out", "resid_post", "final"]})
    assert list(relative(frame, 4)["depth"]) == [0.0, 0.25, 1.0, 1.0]
    assert list(relative(frame[["layer"]], 8)["depth"]) == [1 / 8, 1 / 8, 4 / 8, 5 / 8]


RECORD = {
    "rollouts": 20,
    "d_vocab": 448,
    "dtype": "bfloat16",
    "asked": {"content": {"a.jsonl": {"sha256": "1"}}, "temperature": 1.0, "max_new_tokens": 64},
}


def test_what_differs_between_scans_is_said():
    other = {**RECORD, "d_vocab": 151936, "asked": {**RECORD["asked"], "content": {"b.jsonl": {"sha256": "2"}}}}
    said = " ".join(statistics.differences([RECORD, other]))
    assert "the problems" in said
    assert "448, 151936" in said
    assert "temperature" not in said


def of_hub(**content):
    return {**RECORD, "asked": {**RECORD["asked"], "content": content}}


def test_two_data_sets_of_the_hub_and_two_commits_of_one_differ():
    one, other = {"org/a@train": {"revision": "1" * 40}}, {"org/b@train": {"revision": "1" * 40}}
    assert statistics.differences([of_hub(**one), of_hub(**one)]) == []
    assert statistics.differences([of_hub(**one), of_hub(**other)]) == [
        "The scans differ in the problems: org/a@train (commit 111111111111), org/b@train (commit 111111111111)."
    ]
    later = {"org/a@train": {"revision": "2" * 40}}
    assert "commit 222222222222" in statistics.differences([of_hub(**one), of_hub(**later)])[0]


def test_two_data_sets_of_scans_that_kept_no_commit_differ():
    assert statistics.differences([of_hub(**{"org/a@train": None}), of_hub(**{"org/b@train": None})]) == [
        "The scans differ in the problems: org/a@train, org/b@train."
    ]


def test_scans_with_a_lens_each_have_the_same_problems():
    content = {**RECORD["asked"]["content"], "mine.safetensors": {"sha256": "3"}}
    lensed = {**RECORD, "asked": {**RECORD["asked"], "content": content, "lens": "mine.safetensors"}}
    assert statistics.differences([RECORD, lensed]) == []


def test_a_measure_that_no_site_has_gives_no_means():
    layers = pd.DataFrame({"rollout": [0], "layer": [0], "site": ["resid_post"], "tokens": [3], "entropy": [1.0]})
    assert len(statistics.means(layers, "cosine")) == 0


def test_the_same_problems_under_another_path_are_the_same():
    moved = {**RECORD, "asked": {**RECORD["asked"], "content": {"elsewhere/a.jsonl": {"sha256": "1"}}}}
    assert statistics.differences([RECORD, moved]) == []


def test_the_warning_counts_nonfinite_rollouts_and_names_the_first():
    layers = pd.concat([THREE_TOKENS.assign(layer=layer, readout="raw", norm=1.0) for layer in (0, 1)])
    assert not_finite(layers, "float16") is None
    layers.loc[(layers["layer"] == 1) & (layers["site"] == "mlp_out") & (layers["rollout"] == 1), "entropy"] = np.nan
    layers.loc[(layers["layer"] == 1) & (layers["site"] == "resid_post") & (layers["rollout"] == 1), "norm"] = np.inf
    assert not_finite(layers.reset_index(drop=True), "float16") == (
        "Warning: in 1 of 2 rollouts some numbers are NaN or infinite, the first norm at 1.resid_post: hidden states "
        "overflowed float16. Scan again with --dtype bfloat16 or --dtype float32."
    )


def test_measures_that_a_site_or_readout_lacks_raise_no_warning():
    lacking = THREE_TOKENS.assign(readout="norm", entropy_at_input_norm=np.nan, cosine=np.nan, kl=0.0)
    lacking.loc[lacking["site"] == "final", "kl"] = np.nan
    assert not_finite(lacking, "float16") is None
