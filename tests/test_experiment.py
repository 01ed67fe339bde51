"""The experiment's problems, order of runs, choice of learning rates and counted operations."""

from itertools import islice
from math import sqrt

import pandas as pd
import pytest
import torch
from experiment import flops, plan, problems, rates, results, training  # pyright: ignore[reportMissingImports]
from experiment.plan import METHODS, SEEDS, Method, Run, Sizes  # pyright: ignore[reportMissingImports]
from scipy.stats import nct, t
from transformers import AutoConfig, AutoModelForCausalLM

from internal_policy.train import flops as counted


def test_no_numbers_are_drawn_twice():
    drawn = [each.response.partition(":")[0] for each in islice(problems.drawn(), 3000)]
    assert len(set(drawn)) == len(drawn)


def test_runs_that_are_done_at_any_time_are_paired_by_seed():
    chosen = {model: {method.chosen_as.key: 1e-4 for method in METHODS[model]} for model in METHODS}
    runs = list(plan.compared(chosen))
    assert len(runs) == sum(SEEDS[model] * len(METHODS[model]) for model in METHODS)
    assert len({run.name for run in runs}) == len(runs)
    half = runs[: len(runs) // 2]
    full = {(run.model, run.seed) for run in half if run.method == METHODS[run.model][-1]}
    for model, seed in full:
        done = {run.method for run in half if (run.model, run.seed) == (model, seed)}
        assert done == {*METHODS[model]}


def test_grpo_is_also_run_at_the_rate_of_bupo():
    chosen = {"demo-llama": {method.chosen_as.key: 1e-4 for method in METHODS["demo-llama"]} | {"bupo-6": 2e-4}}
    matched = [run for run in plan.compared(chosen, 1) if run.method.name == "grpo-matched"]
    assert [run.learning_rate for run in matched] == [2e-4]


def test_every_method_is_offered_the_same_rates_and_seeds():
    runs = plan.choosing("demo-qwen3")
    by_method = pd.DataFrame([(run.method.key, run.learning_rate, run.seed) for run in runs]).groupby(0)
    assert len({tuple(sorted(rows[[1, 2]].itertuples(index=False, name=None))) for _, rows in by_method}) == 1
    assert all(run.chooses for run in runs)
    assert {method.chosen_as for method in METHODS["demo-qwen3"]} == {run.method for run in runs}


def test_a_run_draws_its_problems_without_repetition_from_the_pool():
    sizes = Sizes()
    assert sizes.steps * sizes.prompts <= sizes.pool
    assert sizes.steps % sizes.every == sizes.short % sizes.every == sizes.long % sizes.every == 0


def test_a_choosing_run_trains_the_internal_policy_for_a_quarter_of_its_steps(tmp_path):
    run = Run("demo-qwen3", Method("bupo", 3, "short"), 1e-4, plan.CHOOSING)
    config = training.settings(run, Sizes(), tmp_path)
    assert [4 * phase.steps for phase in config.phases] == [Sizes().choosing_steps]
    assert config.updates_per_step == 4
    assert config.warmup_steps == 0


def test_the_chosen_rate_has_the_highest_mean_and_the_deviation_is_pooled():
    marks = {
        ("grpo", 1e-4): (0.5, 0.7),
        ("grpo", 2e-4): (0.9, 0.1),
        ("rloo", 1e-4): (0.1, 0.2),
        ("rloo", 2e-4): (0.4, 0.4),
    }
    rows = [(*key, seed, avg) for key, values in marks.items() for seed, avg in enumerate(values)]
    scores = pd.DataFrame(rows, columns=["method", "rate", "seed", "avg"])
    assert rates.best(scores) == {"grpo": 1e-4, "rloo": 2e-4}
    # variances 0.02 and 0: their mean is 0.01
    assert rates.deviation(scores, rates.best(scores)) == pytest.approx(0.1)


def test_the_detectable_difference_is_found_in_80_of_100_experiments():
    found = rates.detectable(0.02, 8, 1)
    shift = found / (0.02 * sqrt(2 / 8))  # noncentrality of the paired t statistic
    power = 1 - nct.cdf(t.ppf(0.975, 7), 7, shift)
    assert power == pytest.approx(0.8, abs=0.02)
    assert rates.detectable(0.02, 8, 12) > found


@pytest.mark.parametrize("layers", [2, 1])
def test_the_formula_counts_what_a_pass_takes(layers):
    config = AutoConfig.for_model(
        "qwen3", num_hidden_layers=layers, hidden_size=16, intermediate_size=24, vocab_size=32, head_dim=4
    )
    config.num_attention_heads, config.num_key_value_heads = 4, 2
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.ones(3, 9, dtype=torch.long)
    with torch.no_grad(), counted.counting(model, torch.ones_like(ids)) as count:
        model(ids)
    head = counted.unembedding(model, 3 * 5, trained=False)
    assert 3 * flops.forward(flops.shape(model), layers, 4, 5) == pytest.approx(count.operations + head)


def test_only_main_columns_are_kept_of_a_run(tmp_path):
    run = Run("demo-qwen3", Method("bupo", 3, "short"), 1e-4, 0)
    metrics = pd.DataFrame({"step": [1, 2], "phase": ["internal", "final"], "reward": [0.1, 0.2], "seconds": 1.0})
    (tmp_path / run.name).mkdir()
    training.write(tmp_path / run.name / training.METRICS, metrics)
    kept = results.steps(run, tmp_path)
    assert kept["internal_steps"].tolist() == [1, 1]
    assert "seconds" not in kept
    assert kept["reward"].dtype == "float32"
