"""A training run is summed up by its schedule, its ends, and its layers before and after."""

from collections.abc import Sequence

import pandas as pd
import pytest

from internal_policy.look import run_summary, runs
from internal_policy.look.runs import RunTables

BUPO = RunTables(runs.find("experiments/bupo"), "experiments/bupo")


def steps(*targets: str, **columns: Sequence[float | None]) -> pd.DataFrame:
    phase = ["final" if target == "final" else "internal" for target in targets]
    known = {"step": range(1, len(targets) + 1), "reward": 0.5, "phase": phase, "target": targets}
    return pd.DataFrame({**known, **columns})


def outputs(*scans: dict[int, float]) -> pd.DataFrame:
    """The entropies of layers' outputs in a scan at each step."""
    cells = [(step, layer, value) for step, scan in enumerate(scans) for layer, value in scan.items()]
    return pd.DataFrame(cells, columns=["step", "layer", "entropy"]).assign(site="resid_post")


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["final"] * 3, "GRPO: steps 1 to 3 train the whole policy."),
        (["5.mlp_out", "final"], "BuPO: step 1 trains 5.mlp_out, step 2 the whole policy."),
        (
            ["1.resid_post", "1.resid_post", "2.resid_post"],
            "BuPO: steps 1 to 2 train 1.resid_post, step 3 2.resid_post.",
        ),
    ],
)
def test_the_schedule_is_said_in_a_sentence(targets, said):
    assert run_summary.sentences(steps(*targets), None)[0] == said


def exams(*shares: float, **columns: Sequence[float | None]) -> pd.DataFrame:
    """Exams of 8 responses at steps 0, 10, ..."""
    known = {"step": [10 * n for n in range(len(shares))], "problems": "a", "samples": 8, "number": 64}
    return pd.DataFrame({**known, "avg_at_k": shares, **columns})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (exams(0.25), "Avg@8 on the exam of 64 problems is 25.0% (step 0)."),
        (exams(0.25, 0.9, 0.5), "Avg@8 on the exam of 64 problems rose from 25.0% (step 0) to 50.0% (step 20)."),
        (exams(0.25, 0.249).drop(columns="number"), "Avg@8 on the exam went from 25.0% (step 0) to 24.9% (step 10)."),
        (
            exams(0.5, 0.25, change=[None, -0.25], change_low=[None, -0.3], change_high=[None, -0.2]),
            "Avg@8 on the exam of 64 problems fell from 50.0% (step 0) to 25.0% (step 10): -25.0 points "
            "(95% -30.0 to -20.0, paired by problem).",
        ),
    ],
)
def test_the_exams_are_compared_in_a_sentence(table, said):
    assert run_summary.sentences(steps("final"), None, table)[-1] == said


@pytest.mark.parametrize(
    ("rewards", "said"),
    [
        ([0.25, 0.75], ["The mean reward rose from 0.25 (step 1) to 0.75 (step 2)."]),
        ([0.75, 0.25], ["The mean reward fell from 0.75 (step 1) to 0.25 (step 2)."]),
        ([0.5, 0.5], ["The mean reward went from 0.50 (step 1) to 0.50 (step 2)."]),
        ([0.5], []),
        ([None, None], []),
    ],
)
def test_the_reward_is_compared_where_there_are_two_ends(rewards, said):
    assert run_summary.sentences(steps(*["final"] * len(rewards), reward=rewards), None)[1:] == said


def test_the_layer_that_changed_most_is_named():
    frame = outputs({0: 1.0, 1: 2.0}, {0: 1.1, 1: 1.5})
    said = run_summary.sentences(steps("final"), frame)[-1]
    assert (
        said == "From step 0 to step 1 the entropy of the layers' outputs changed most at layer 1: 2.000 to 1.500 nats."
    )


def test_without_a_change_or_a_second_scan_no_layer_is_named():
    still = run_summary.sentences(steps("final"), outputs({0: 1.0}, {0: 1.001}))
    assert still[-1] == "From step 0 to step 1 no layer's output changed its entropy by 0.01 nats or more."
    assert len(run_summary.sentences(steps("final"), outputs({0: 1.0}))) == 1
    assert len(run_summary.sentences(steps("final"), outputs({0: 1.0}, {0: 2.0}).drop(columns="entropy"))) == 1


def test_ends_are_means_over_a_tenth_of_the_steps_that_have_a_value():
    rewards = [float(n) for n in range(20)]
    sparse = [None] * 4 + [3.0] + [None] * 14 + [5.0]
    found = run_summary.first_and_last(steps(*["final"] * 20, reward=rewards, perplexity=sparse)).set_index("measure")
    assert found.T.to_dict("list") == {
        "reward": [1, 2, 0.5, 19, 20, 18.5],
        "perplexity": [5, 5, 3.0, 20, 20, 5.0],
    }


def test_what_is_trained_on_has_names_for_people():
    some = {"groups_without_spread": [0.5] * 10, "rows_trained": [0.75] * 10, "resampled": [2.0] * 10}
    found = run_summary.first_and_last(steps(*["final"] * 10, **some))
    assert [run_summary.called(measure) for measure in found["measure"]][-3:] == [
        "share of prompts without spread",
        "share of responses trained on",
        "prompts drawn again",
    ]


def test_layers_have_the_numbers_of_the_first_scan_and_the_last():
    frame, metrics = BUPO.dynamics(), BUPO.metrics()
    table = run_summary.layers(metrics, frame)
    at = frame.set_index(["step", "layer", "site"])[["entropy", "change", "kl"]].T.to_dict("list")
    shown = {name: values.to_dict() for name, values in table.items()}
    assert [name for name, step in table.columns if step == "step 0"] == ["layer output", "Δ FFN", "KL from layer 6"]
    assert shown[("layer output", "step 0")][3] == at[(0, 3, "resid_post")][0]
    assert shown[("Δ FFN", "step 36")][3] == at[(36, 3, "mlp_out")][1]
    assert shown[("layer output", "step 36")][8] == at[(36, 8, "final")][0]
    assert shown[("KL from layer 6", "step 36")][7] == at[(36, 7, "resid_post")][2]


def test_one_scan_gives_one_column_for_each_quantity():
    table = run_summary.layers(steps("final"), outputs({0: 1.0, 1: 2.0}))
    assert list(table.columns) == [("layer output", "step 0")]


def test_a_run_without_scans_or_evaluations_has_neither_table(tmp_path):
    steps("final").to_parquet(tmp_path / runs.METRICS)
    run = RunTables(tmp_path, "mine")
    assert run_summary.dynamics(run) is None
    assert run_summary.evaluations(run) is None
