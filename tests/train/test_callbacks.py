"""A training run is logged as one row per step, however often the trainer logs."""

import signal
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import tiny_model
from trainer import Fixed, trainer
from transformers import TrainerCallback, TrainerState

from internal_policy.models.hooks import HookPoint
from internal_policy.tasks.rollouts import Rollout
from internal_policy.train import callbacks, checkpoints
from internal_policy.train.callbacks import Interrupt, RunLogger, ScanSchedule
from internal_policy.train.schedule import Phase

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
SCHEDULE = ["1.resid_post:1"]


def run_logger(folder, every: int = 0, **more) -> RunLogger:
    rollouts = [Rollout("", None, 0, (5, 6, 7), (8, 9, 10, 11), "", None, True)]
    scans = ScanSchedule(rollouts, HookPoint(1, "resid_post"), every, **more)
    return RunLogger(folder, 2, tuple(map(Phase.parse, SCHEDULE)), scans)


def metrics(folder, tokenizer, **options) -> pd.DataFrame:
    """The rows of a training of 3 steps of 2 updates."""
    logger = run_logger(folder)
    run = trainer(folder, tokenizer, kind=Fixed, callbacks=[logger], schedule=SCHEDULE, max_steps=6, **options)
    run.train()
    rows = pd.read_parquet(folder / "metrics.parquet")
    return rows[[name for name in rows.columns if not name.endswith(("seconds", "second", "memory"))]]


@pytest.mark.parametrize(
    "options",
    [
        {"logging_steps": 2, "logging_first_step": True},
        {"logging_steps": 1},
        {"logging_steps": 100},
        {"logging_strategy": "no"},
        {"logging_strategy": "epoch"},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_metrics_do_not_depend_on_logging_steps(tmp_path, tokenizer, options):
    expected = metrics(tmp_path / "once", tokenizer, logging_steps=2)
    assert expected["step"].tolist() == [1, 2, 3]
    found = metrics(tmp_path / "other", tokenizer, **options)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)


def test_training_again_starts_new_tables(tmp_path, tokenizer):
    logger = run_logger(tmp_path)
    run = trainer(tmp_path, tokenizer, kind=Fixed, callbacks=[logger], schedule=SCHEDULE, max_steps=4)
    run.train()
    run.train()
    assert logger.metrics["step"].tolist() == [1, 2]


class Later(TrainerCallback):
    """Turns a clock on by a minute after each update, as other work between steps would."""

    def __init__(self, clock):
        self.clock = clock

    def on_step_end(self, args, state, control, **_):
        self.clock[0] += 60


def test_the_time_of_a_step_leaves_out_other_work_between_steps(tmp_path, tokenizer, monkeypatch):
    clock, logger = [0.0], run_logger(tmp_path)
    read = SimpleNamespace(monotonic=lambda: clock[0], process_time=lambda: clock[0])
    monkeypatch.setattr(callbacks, "time", read)
    trainer(tmp_path, tokenizer, kind=Fixed, callbacks=[logger, Later(clock)], max_steps=4).train()
    assert logger.metrics[["seconds", "cpu_seconds"]].to_numpy().tolist() == [[60, 60]] * 2  # after the first of two


class Signal(TrainerCallback):
    """Sends this process a signal during the first update."""

    def __init__(self, number):
        self.number = number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 0:
            signal.raise_signal(self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_with_a_checkpoint_after_the_step(tmp_path, tokenizer, number):
    interrupt, said = Interrupt(), []
    before = signal.getsignal(number)
    run = trainer(tmp_path, tokenizer, kind=Fixed, callbacks=[Signal(number), interrupt], save_strategy="steps")
    with interrupt.listening(said.append):
        run.train()
    assert list(checkpoints.found(tmp_path)) == [2]
    assert len(said) == 1
    assert signal.getsignal(number) == before


def test_two_signals_within_2_seconds_are_one(monkeypatch):
    interrupt, said, now = Interrupt(), [], [5.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    with interrupt.listening(said.append):
        signal.raise_signal(signal.SIGINT)
        now[0] += 1.9
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert interrupt.pressed
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(said) == 1


def test_layers_are_scanned_through_the_trained_readout(tmp_path, tokenizer):
    model, entropy = tiny_model("qwen3"), {}
    for readout in ("raw", "norm"):
        logger = run_logger(tmp_path, every=1, readout=readout)
        logger._scan(0, TrainerState(), model)
        entropy[readout] = logger.dynamics.set_index("site")["entropy"]
    same = entropy["raw"] == entropy["norm"]
    assert set(same[same].index) == {"final"}
