"""Stages follow the intervals of the FFNs, and the target layer is the correct one."""

import numpy as np
import pandas as pd
import pytest

from internal_policy.look.statistics import changes
from internal_policy.look.targets import in_words, runner_up, spans, stages, suggestion, target, targets


def changes_of(*rows: tuple) -> pd.DataFrame:
    """Changes whose simultaneous intervals equal their separate ones unless others are given."""
    columns = ["layer", "change", "part", "mean", "low", "high", "low_all", "high_all"]
    return pd.DataFrame([row if len(row) == len(columns) else (*row, *row[-2:]) for row in rows], columns=columns)


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
"""FFN entropy changes, in standard deviations between responses, and the correct target layer."""
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
def test_the_target_layer_is_correct_in_95_of_100_scans(case, skew):
    assert share_right(*(RISES | FLAT)[case], runs=400, skew=skew) >= 0.95


@pytest.mark.slow
def test_with_separate_intervals_the_target_layer_is_correct_in_less_than_half():
    (rises, layer), random, right = RISES["three stages"], np.random.default_rng(0), 0
    for _ in range(400):
        mlp = changes(simulated(rises, random, False)).query("change == 'mlp' and part == 'total'")
        right += mlp.loc[mlp["low"] > 0, "layer"].max() == layer
    assert right / 400 < 0.5


@pytest.mark.parametrize("case", [*RISES, *FLAT])
def test_the_target_layer_is_correct_in_most_of_a_few_scans(case):
    assert share_right(*(RISES | FLAT)[case], runs=10) >= 0.9


def test_three_rollouts_are_too_few_to_tell_stages():
    found = changes(simulated([1.0, -1.0], np.random.default_rng(0), n=3))
    assert found["low"].notna().all()
    assert found[["low_all", "high_all"]].isna().all(axis=None)
    assert not len(stages(found))
    assert len(stages(changes(simulated([1.0, -1.0], np.random.default_rng(0), n=4)))) == 2


def test_one_rollout_has_no_stage_and_no_target():
    found = changes(simulated([1.0, -1.0], np.random.default_rng(0), n=1))
    assert not len(stages(found))
    assert target(stages(found)) is None


def test_the_runner_up_is_the_last_other_layer_that_rises_by_itself():
    rising = (0, "mlp", "total", 1.0, 0.5, 1.5), (1, "mlp", "total", 1.0, 0.5, 1.5)
    uncertain = (7, "mlp", "total", 0.2, 0.1, 0.3, -0.1, 0.5)
    assert target(stages(changes_of(*rising, uncertain))) == 1
    assert runner_up(changes_of(*rising, uncertain)) == 7
    assert runner_up(changes_of(*rising)) == 0
    assert runner_up(changes_of(*rising[:1])) is None
    assert runner_up(changes_of(uncertain)) == 7


def test_each_part_of_the_change_has_its_own_target():
    found = targets(PLANTED).set_index("part")
    assert dict(found["target"]) == {"total": 1, "direction": 2}
    assert found.loc["total", "runner_up"] == 0
    assert found["runner_up"].isna().to_dict() == {"total": False, "direction": True}
    assert list(found.loc["total", ["mean", "low", "high"]]) == [0.5, 0.1, 0.9]
    assert found.loc["direction", "spans"] == [("convergence", 0, 0), ("integration", 1, 1), ("exploration", 2, 2)]


def test_the_target_sentence_names_its_interval_and_the_runner_up():
    rising = changes_of((0, "mlp", "total", 1.0, 0.5, 1.5), (1, "mlp", "total", 2.0, 1.5, 2.5))
    assert in_words(suggestion(rising)) == (
        "Target layer: 1, the last whose FFN raises entropy significantly (+2 nats, 1.5 to 2.5, with 95% confidence "
        "for all layers at once); the runner-up is layer 0."
    )
    uncertain = changes_of((7, "mlp", "total", 0.2, 0.1, 0.3, -0.1, 0.5))
    assert in_words(suggestion(uncertain)) == (
        "No layer's FFN raises entropy significantly, so there is no target layer; layer 7 comes closest."
    )


def test_three_rollouts_give_no_target_and_say_why():
    found = suggestion(changes(simulated([1.0, -1.0], np.random.default_rng(0), n=3)))
    assert found["target"] is None
    assert in_words(found).startswith("No target layer: choosing one needs at least 4 rollouts")


def test_unmeasured_layers_split_a_span():
    found = pd.DataFrame({"layer": [0, 5], "stage": ["exploration", "exploration"]})
    assert spans(found) == [("exploration", 0, 0), ("exploration", 5, 5)]
