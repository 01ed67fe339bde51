"""Training logs where its time went, and how many tokens and operations it took."""

import pandas as pd
import pytest
import torch
from conftest import tiny_model
from trainer import Fixed, alternating, trainer

from internal_policy.models.hooks import HookPoint
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train import flops, throughput
from internal_policy.train.callbacks import RunLogger, ScanSchedule
from internal_policy.train.schedule import Phase
from internal_policy.train.throughput import Stopwatch

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def test_time_counts_for_the_innermost_section(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(ticks))
    stopwatch = Stopwatch()
    with stopwatch.timing("outer"), stopwatch.timing("inner"):
        pass
    assert stopwatch.seconds == {"other": 1, "outer": 2 + 4, "inner": 3}


@pytest.fixture(scope="module")
def rows(tmp_path_factory, tokenizer) -> pd.DataFrame:
    """The metrics of a step on layer 1 and one on the whole policy."""
    folder = tmp_path_factory.mktemp("run")
    rollouts = [Rollout("", None, 0, (5, 6, 7), (8, 9, 10, 11), "", None, True)]
    logger = RunLogger(
        folder, 4, (Phase.parse("1.resid_post:1"),), ScanSchedule(rollouts, HookPoint(1, "resid_post"), 2)
    )
    run = trainer(
        folder,
        tokenizer,
        kind=Fixed,
        callbacks=[logger],
        schedule=["1.resid_post:1"],
        max_steps=8,
        num_iterations=2,
        reward=alternating,
    )
    run.train()
    return pd.read_parquet(folder / "metrics.parquet")


def test_rates_are_tokens_over_seconds(rows):
    sampled = 8 * rows["length"]
    assert (rows["generation_tokens_per_second"] * rows["generation_seconds"]).to_numpy() == pytest.approx(sampled)
    trained = 2 * sampled  # two passes over each response
    assert (rows["training_tokens_per_second"] * rows["training_seconds"]).to_numpy() == pytest.approx(trained)


def test_sections_are_part_of_the_time_of_a_step(rows):
    sections = rows[["generation_seconds", "rewards_seconds", "scoring_seconds", "training_seconds"]]
    assert (sections > 0).all(axis=None)
    assert (sections.sum(axis=1) < rows["seconds"]).all()


def test_a_scan_is_timed_where_there_is_one(rows):
    assert rows["scan_seconds"].notna().tolist() == [False, True]


def test_an_internal_policy_takes_fewer_operations(rows):
    internal, whole = rows["training_flops"]
    assert 0 < internal < whole
    assert "mfu" not in rows  # on a CPU


def test_peak_memory_is_that_of_a_process_with_pytorch(rows):
    assert (rows["peak_memory"] > 1e8).all()
    assert (rows["peak_memory"] < 1e12).all()


def test_mfu_is_the_share_of_the_peak(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(throughput.TimedTrainer, "_peak", lambda _: 1e9)
    run = trainer(tmp_path, tokenizer)
    run.passes.append(flops.Count(3e9))
    run.stopwatch.seconds["training"] = 12.0
    found = run.measured()
    assert found["mfu"] == pytest.approx(0.25)
    assert run.measured().keys() & {"mfu", "training_tokens_per_second"} == set()  # measured anew


@pytest.mark.parametrize(("bf16", "expected"), [(True, 756e12), (False, 51.2e12)])
def test_the_peak_is_that_of_the_type_multiplied_in(tmp_path, tokenizer, monkeypatch, bf16, expected):
    run = trainer(tmp_path, tokenizer, tiny_model("qwen3").float())
    run.args.bf16 = bf16
    monkeypatch.setattr(type(run.accelerator), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    assert run._peak() == expected
